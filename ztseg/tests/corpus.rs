//! Every file in `tests/fuzz/corpus` through the checks of its fuzz target, so that an input that
//! was found once stays a test.

use std::fs;
use std::path::Path;

#[path = "../../tests/fuzz/src/event.rs"]
mod event;
#[path = "../../tests/fuzz/src/packet.rs"]
mod packet;
#[path = "../../tests/fuzz/src/policy.rs"]
mod policy;

/// Runs `check` on every file of a target's corpus.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
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

/// The seeds are there to lead the fuzzer into every corner of the parser.
#[test]
fn the_seeds_of_packets_meet_every_reason_of_the_parser() {
    use ztseg_common::packet::parse;
    use ztseg_common::verdict::Reason;

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/packet");
    let files = fs::read_dir(&folder).expect("the corpus is there");
    let read = files.map(|f| fs::read(f.expect("readable").path()).expect("readable"));
    let met: Vec<_> = read.map(|bytes| parse(bytes.as_slice(), 0).err()).collect();
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
