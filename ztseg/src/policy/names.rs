//! Names: what may be one, and which one was meant.

/// The longest name in bytes, as for a DNS label (RFC 1123 section 2.1, RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 63;

/// Words that mean something else where the name of a segment or an address group stands, or that other YAML readers take for
/// something other than text.
pub const RESERVED: &[&str] = &[
    "any",
    "all",
    "none",
    "host",
    "self",
    "nobody",
    "unknown",
    "unmanaged",
    "localhost",
    "null",
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
];

/// Whether `name` is `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 characters.
pub fn is_well_formed(name: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|b| inner(&b))
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The name that `text` comes closest to when written by the rules; `None` when nothing is left.
pub fn well_formed_like(text: &str) -> Option<String> {
    let mut out = String::new();
    for c in text.trim().chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => out.push(c),
            '-' | '_' | '.' | ' ' | '/' | ':' if !out.ends_with('-') => out.push('-'),
            _ => {}
        }
        if out.len() == MAX_NAME {
            break;
        }
    }
    let name = out.trim_matches('-');
    (is_well_formed(name) && !RESERVED.contains(&name)).then(|| name.to_owned())
}

/// The one of `known` that `name` was most likely meant to be, if any is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer texts are no typos, and the comparison costs their product.
    if name.len() > 2 * MAX_NAME {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let most = (lower.chars().count() / 3).max(1);
    known
        .into_iter()
        .filter(|k| k.len().abs_diff(lower.len()) <= most)
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_ascii_lowercase()), k))
        .filter(|(distance, k)| *distance <= most && *distance < k.chars().count())
        .min()
        .map(|(_, k)| k)
}

/// `did you mean `x`?` for the nearest of `known`, else the list of them when it is short.
pub fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    const MOST: usize = 12;
    if let Some(near) = nearest(name, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let mut list: Vec<_> = known.into_iter().take(MOST + 1).map(|k| format!("`{k}`")).collect();
    let more = list.len() > MOST;
    list.truncate(MOST);
    match list.len() {
        0 => None,
        1 => Some(format!("there is only {}", list[0])),
        _ if more => Some(format!("there are {}, and more", list.join(", "))),
        _ => Some(format!("there are {}", list.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "0", "web", "web-1", "1-a", &"x".repeat(63)] {
            assert!(is_well_formed(good), "{good}");
        }
        for bad in ["", "-", "-a", "a-", "Web", "a.b", "a_b", "ä", "a b", &"x".repeat(64)] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }

    #[test]
    fn a_name_is_proposed_for_what_is_none() {
        assert_eq!(well_formed_like("Web_Front").as_deref(), Some("web-front"));
        assert_eq!(well_formed_like("-a-").as_deref(), Some("a"));
        assert_eq!(well_formed_like("…"), None);
        assert_eq!(well_formed_like("Any"), None);
        assert_eq!(well_formed_like(&"x".repeat(80)).map(|n| n.len()), Some(63));
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let known = ["web", "db", "office"];
        assert_eq!(nearest("wbe", known), Some("web"));
        assert_eq!(nearest("WEB", known), Some("web"));
        assert_eq!(nearest("ofice", known), Some("office"));
        assert_eq!(nearest("cache", known), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest(&"w".repeat(1000), known), None);
    }
}
