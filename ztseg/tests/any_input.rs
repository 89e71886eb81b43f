//! No input makes the front end panic: random bytes, and valid policies with parts changed.

use std::path::Path;

use proptest::prelude::*;
use ztseg::config::Config;
use ztseg::policy::source::Source;

/// Loads, and renders what is wrong, both ways; both must come to an end.
fn load(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let source = Source { name: "any.yaml".into(), text: text.as_ref().into() };
    if let Err(diagnostics) = ztseg::policy::load(std::slice::from_ref(&source)) {
        assert!(!diagnostics.is_empty());
        assert!(diagnostics.to_string().starts_with("any.yaml:"));
        let _ = diagnostics.render(true);
        let lines = text.lines().count().max(1);
        for d in &diagnostics {
            let position = diagnostics.position(d);
            // A syntax error may stand behind the last line.
            assert!((1..=lines + 1).contains(&(position.line as usize)), "{position}");
        }
    }
    let _ = Config::from_yaml(&source);
}

fn examples() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read(folder.join(name)).expect("readable");
    [
        "../policies/demo.yaml",
        "../policies/bastion.yaml",
        "../policies/kubernetes.yaml",
        "tests/bad-policies/ports.yaml",
        "tests/bad-policies/kubernetes-admin-network-policy.yaml",
    ]
    .map(read)
    .to_vec()
}

/// One change of a text: what YAML and the language give meaning to, in places that it fits.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize, usize),
    Insert(usize, &'static str),
    Byte(usize, u8),
    Repeat(usize, usize),
    Swap(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let words = prop::sample::select(vec![
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "\n",
        "\t",
        "\r",
        "\0",
        "\"",
        "'",
        "#",
        "&a ",
        "*a",
        "!!x ",
        "|",
        ">",
        "? ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "<<: ",
        "~",
        "any",
        "0",
        "-1",
        "/",
        "::",
        "ä",
        "\u{feff}",
        "\u{2028}",
        "\u{202e}",
        "tcp/",
        " -> ",
        "\\",
        "  ",
        ",",
        "\u{1f4a9}",
        "@",
        "`",
    ]);
    prop_oneof![
        (any::<usize>(), 0..40usize).prop_map(|(at, n)| Change::Remove(at, n)),
        (any::<usize>(), words).prop_map(|(at, word)| Change::Insert(at, word)),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<usize>(), 0..200usize).prop_map(|(at, n)| Change::Repeat(at, n)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Change::Swap(a, b)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let n = bytes.len();
    if n == 0 {
        return;
    }
    match *change {
        Change::Remove(at, count) => {
            bytes.drain(at % n..(at % n + count).min(n));
        }
        Change::Insert(at, word) => {
            bytes.splice(at % n..at % n, word.bytes());
        }
        Change::Byte(at, byte) => bytes[at % n] = byte,
        Change::Repeat(at, count) => {
            let part = bytes[at % n..(at % n + count).min(n)].to_vec();
            bytes.splice(at % n..at % n, part);
        }
        Change::Swap(a, b) => bytes.swap(a % n, b % n),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        load(&bytes);
    }

    #[test]
    fn random_yaml(text in "[-\\[\\]{}:,?&*!|>'\"%@`# \t\r\n\\\\a0~<.é\u{feff}\u{85}]{0,80}") {
        load(text.as_bytes());
    }

    #[test]
    fn changed_policies(
        which in 0..5usize,
        changes in prop::collection::vec(change(), 1..12),
    ) {
        let mut bytes = examples().swap_remove(which);
        for change in &changes {
            apply(&mut bytes, change);
        }
        load(&bytes);
    }
}
