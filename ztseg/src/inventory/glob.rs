//! Many globs at once: which of them match a name.
//!
//! Names without `*` are looked up by hash. Globs lie under the text before their first `*`, so a
//! name meets only those whose beginning it shares, however many there are.

use std::collections::{BTreeMap, HashMap};

/// Whether a pattern, in which `*` stands for any characters, also none, matches a name.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    // The leftmost place of each part leaves the most room for those after it.
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Patterns by the text before their first `*`.
type Buckets<T> = HashMap<Box<str>, Vec<(Box<str>, T)>>;

/// Values under patterns.
#[derive(Clone, Debug)]
pub(super) struct GlobIndex<T> {
    literals: HashMap<Box<str>, T>,
    /// By the length in bytes of the text before the first `*`.
    globs: BTreeMap<usize, Buckets<T>>,
}

impl<T> Default for GlobIndex<T> {
    fn default() -> Self {
        Self { literals: HashMap::new(), globs: BTreeMap::new() }
    }
}

impl<T: Default> GlobIndex<T> {
    /// The value under a pattern, new where there was none.
    pub(super) fn entry(&mut self, pattern: &str) -> &mut T {
        let Some(star) = pattern.find('*') else {
            return self.literals.entry(pattern.into()).or_default();
        };
        let bucket = self.globs.entry(star).or_default().entry(pattern[..star].into()).or_default();
        let at = bucket.iter().position(|(known, _)| **known == *pattern);
        let at = at.unwrap_or_else(|| {
            bucket.push((pattern.into(), T::default()));
            bucket.len() - 1
        });
        &mut bucket[at].1
    }

    /// Calls `each` with the value of every pattern that matches `name`.
    pub(super) fn matching<'a>(&'a self, name: &str, mut each: impl FnMut(&'a T)) {
        if let Some(value) = self.literals.get(name) {
            each(value);
        }
        for (len, buckets) in self.globs.range(..=name.len()) {
            let bucket = name.get(..*len).and_then(|prefix| buckets.get(prefix));
            for (pattern, value) in bucket.into_iter().flatten() {
                if matches(pattern, name) {
                    each(value);
                }
            }
        }
    }

    /// Whether there is no pattern.
    pub(super) fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.globs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_index(pattern: &str, name: &str) -> bool {
        let mut index = GlobIndex::<u8>::default();
        *index.entry(pattern) = 1;
        let mut n = 0;
        index.matching(name, |v| n += v);
        n == 1
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("nginx.service", "nginx.service", true),
            ("nginx.service", "nginx.services", false),
            ("*", "", true),
            ("*", "anything", true),
            ("web-*", "web-", true),
            ("web-*", "web", false),
            ("*.service", "a.service", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("*ab*ab*", "ab", false),
            ("*ab*ab*", "xabyabz", true),
            ("é*", "é", true),
            ("a*", "é", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
            assert_eq!(in_index(pattern, name), expected, "{pattern} on {name}, in an index");
        }
    }

    #[test]
    fn equal_patterns_share_a_value() {
        let mut index = GlobIndex::<Vec<u8>>::default();
        assert!(index.is_empty());
        for pattern in ["web-*", "web-*", "web-1", "we*"] {
            index.entry(pattern).push(1);
        }
        assert!(!index.is_empty());
        let mut found = Vec::new();
        index.matching("web-1", |v| found.push(v.len()));
        assert_eq!(found, [1, 1, 2]);
    }
}
