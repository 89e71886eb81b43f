//! Every file in `tests/fuzz/corpus` through the checks of its fuzz target, so that an input that
//! was found once stays a test.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../tests/fuzz/src/event.rs"]
mod event;
#[path = "../../tests/fuzz/src/packet.rs"]
mod packet;
#[path = "../../tests/fuzz/src/policy.rs"]
mod policy;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target)
}

/// Runs `check` on every file of a target's corpus.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = folder(target);
    let mut files = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("readable").path();
        // With a failure's output, which input it was.
        println!("{}", path.display());
        check(&fs::read(&path).expect("readable"));
        files += 1;
    }
    assert!(files > 0, "{} is empty", folder.display());
}

#[test]
fn packets() {
    replay("packet", packet::check);
}

#[test]
fn policies() {
    replay("policy", policy::check);
}

#[test]
fn events() {
    replay("event", event::check);
}

/// The files of a target's corpus.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder(target)).expect("the corpus is there");
    files.map(|file| fs::read(file.expect("readable").path()).expect("readable")).collect()
}

// The seeds are there to lead the fuzzer into every corner.

#[test]
fn the_seeds_of_packets_meet_every_reason_of_the_parser() {
    use ztseg_common::packet::parse;
    use ztseg_common::verdict::Reason;

    let seeds = corpus("packet");
    let met: Vec<_> = seeds.iter().map(|bytes| parse(bytes.as_slice(), 0).err()).collect();
    for reason in [
        Reason::Truncated,
        Reason::Malformed,
        Reason::TooManyHeaders,
        Reason::LengthBeyondPacket,
        Reason::TinyFragment,
        Reason::OverlappingFragment,
        Reason::BadFragment,
        Reason::SourceRoute,
        Reason::Jumbogram,
        Reason::UnknownProtocol,
    ] {
        assert!(met.contains(&Some(reason)), "no seed is {}", reason.name());
    }
    assert!(met.iter().filter(|found| found.is_none()).count() > 10);
}

#[test]
fn some_seeds_of_policies_reach_the_compiler() {
    use ztseg::policy::source::Source;

    let load = |bytes: Vec<u8>| {
        let text = String::from_utf8_lossy(&bytes);
        ztseg::policy::load(&[Source { name: "seed.yaml".into(), text: text.as_ref().into() }])
    };
    let loaded: Vec<_> = corpus("policy").into_iter().filter_map(|seed| load(seed).ok()).collect();
    assert!(loaded.iter().filter(|l| l.resolved.rules.len() > 2 && l.tests.len() > 1).count() >= 3);
}

#[test]
fn most_seeds_of_events_decode() {
    use ztseg::events::decode::decode;

    let seeds = corpus("event");
    let decodes = |seed: &&Vec<u8>| {
        bytemuck::try_pod_read_unaligned(seed).is_ok_and(|event| decode(&event).is_ok())
    };
    assert!(2 * seeds.iter().filter(decodes).count() > seeds.len());
}
