//! Labels, and selectors over them.

use std::collections::BTreeMap;
use std::fmt;

/// The labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The longest label value, and the longest name in a label's key
/// (`k8s.io/apimachinery/pkg/util/validation`).
const MAX_PART: usize = 63;
/// The longest name of an object, and the longest prefix of a label's key.
const MAX_SUBDOMAIN: usize = 253;

/// A label selector: requirements that are ANDed, sorted, each once. Without any it matches
/// everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(Vec<Requirement>);

/// What a selector asks of one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What it asks.
    pub test: Test,
}

/// What is asked of a label's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Test {
    /// It is one of these; sorted.
    In(Vec<String>),
    /// It is none of these, or the label is missing; sorted.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.test {
            Test::In(values) => value.is_some_and(|v| values.binary_search(v).is_ok()),
            Test::NotIn(values) => value.is_none_or(|v| values.binary_search(v).is_err()),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    }
}

impl Selector {
    /// A selector of these requirements, in whatever order.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut list: Vec<_> = requirements.into_iter().collect();
        for requirement in &mut list {
            if let Test::In(values) | Test::NotIn(values) = &mut requirement.test {
                values.sort_unstable();
                values.dedup();
            }
        }
        list.sort_unstable();
        list.dedup();
        Self(list)
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether all its requirements hold.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

/// As `kubectl get -l` takes it; `*` for everything.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("*");
        }
        for (n, Requirement { key, test }) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Test::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Test::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Test::Exists => f.write_str(key)?,
                Test::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

/// Whether `text` can be a label's key: a name, or a DNS name, a slash, and a name.
pub fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_part(name),
        None => is_part(text),
    }
}

/// Whether `text` can be a label's value.
pub fn is_value(text: &str) -> bool {
    text.is_empty() || is_part(text)
}

fn is_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= MAX_PART && text.bytes().all(inner) && edge(bytes.first()) && edge(bytes.last())
}

/// Whether `text` can be the name of an object: a DNS name in lower case (RFC 1123).
pub fn is_subdomain(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label =
        |l: &str| !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-');
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(label)
}

/// Whether `text` can be the name of a port (RFC 6335 section 5.1, in lower case).
pub fn is_port_name(text: &str) -> bool {
    const MAX: usize = 15;
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= MAX
        && text.bytes().all(inner)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(list: &[(&str, &str)]) -> Labels {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn one(key: &str, test: Test) -> Selector {
        Selector::new([Requirement { key: key.to_owned(), test }])
    }

    #[test]
    fn what_a_missing_label_means() {
        let values = || vec!["b".to_owned(), "a".to_owned()];
        for (test, matches) in [
            (Test::In(values()), [true, false, false]),
            (Test::NotIn(values()), [false, true, true]),
            (Test::Exists, [true, true, false]),
            (Test::DoesNotExist, [false, false, true]),
        ] {
            let selector = one("x", test);
            let found = [labels(&[("x", "a")]), labels(&[("x", "c")]), labels(&[("y", "a")])]
                .map(|l| selector.matches(&l));
            assert_eq!(found, matches, "{selector}");
        }
        assert!(Selector::default().matches(&labels(&[])));
    }

    #[test]
    fn a_selector_is_the_same_in_whatever_order_it_is_written() {
        let a = |values: &[&str]| Requirement {
            key: "a".into(),
            test: Test::In(values.iter().map(|v| (*v).to_owned()).collect()),
        };
        let b = || Requirement { key: "b".into(), test: Test::DoesNotExist };
        let first = Selector::new([a(&["x", "y"]), b()]);
        assert_eq!(first, Selector::new([b(), a(&["y", "x", "y"]), b()]));
        assert_eq!(first.to_string(), "a in (x,y),!b");
        assert_eq!(Selector::new([a(&["x"])]).to_string(), "a=x");
        assert_eq!(Selector::default().to_string(), "*");
    }

    #[test]
    fn keys_values_and_names_follow_kubernetes() {
        let long = "x".repeat(64);
        for good in ["app", "app.kubernetes.io/name", "a_b.C-d", "x.y/Z"] {
            assert!(is_key(good), "{good}");
        }
        for bad in ["", "/a", "a/", "-a", "a/b/c", "app@b", "UP.example/a", &long] {
            assert!(!is_key(bad), "{bad}");
        }
        assert!(is_value("") && is_value("Web_1.2") && !is_value("$web") && !is_value(&long));
        assert!(is_subdomain("a.b-c.d1") && !is_subdomain("a..b") && !is_subdomain("A"));
        for good in ["http", "a1", "x-y", "0a"] {
            assert!(is_port_name(good), "{good}");
        }
        for bad in ["", "80", "-a", "a-", "a--b", "HTTP", "sixteen-letters1"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }
}
