//! What a `match` entry names: cgroups, units, interfaces, the host.

use super::reader::Context;
use crate::policy::diagnostic::quote;
use crate::policy::yaml::Node;

/// Kinds of units that have a cgroup with processes (systemd.unit(5), systemd.resource-control(5)).
const UNITS: &[&str] = &["service", "scope", "socket", "mount", "swap"];
/// Kinds of units that have none.
const NO_CGROUP: &[&str] = &["timer", "target", "path", "device", "automount", "snapshot"];
/// The longest name of an interface: `IFNAMSIZ` with its closing zero is 16 (linux/if.h).
const MAX_INTERFACE: usize = 15;

/// Reports glob characters other than `*`, so that nobody takes them for what they are in a shell.
pub(super) fn no_other_globs(
    cx: &mut Context<'_>,
    text: &str,
    node: &Node,
    what: &str,
) -> Option<()> {
    let other = text.chars().find(|c| matches!(c, '?' | '[' | ']' | '{' | '}'))?;
    let message = format!("`{other}` in {what} {}", quote(text));
    cx.error(node.span, message, "only `*` is a wildcard; write an entry for each name");
    Some(())
}

/// A path below the cgroup root.
pub(super) fn cgroup(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    const MOUNT: &str = "/sys/fs/cgroup";
    let text =
        cx.text(node, "`cgroup`", "a path below the cgroup root, such as `/shop/web`")?.value;
    if no_other_globs(cx, text, node, "the cgroup path").is_some() {
        return None;
    }
    let path = quote(text);
    let (message, help) = if let Some(below) = text.strip_prefix(MOUNT)
        && (below.is_empty() || below.starts_with('/'))
    {
        let below = if below.len() < 2 { "/shop/web" } else { below };
        (format!("the cgroup path {path} starts at the file system's root"), below.to_owned())
    } else if !text.starts_with('/') {
        (format!("the cgroup path {path} does not start with `/`"), format!("/{text}"))
    } else if text.trim_matches('/').is_empty() {
        let help = "name a cgroup below it, such as `/shop/web`; write `host: true` for what is in no other workload";
        cx.error(node.span, "the cgroup root itself cannot be matched", help);
        return None;
    } else if text.split('/').any(|part| matches!(part, "." | "..")) {
        let help = "write the path without `.` and `..`";
        cx.error(node.span, format!("the cgroup path {path} has `.` or `..` in it"), help);
        return None;
    } else if text.ends_with('/') || text.contains("//") {
        let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty()).collect();
        (format!("the cgroup path {path} has an empty part"), format!("/{}", parts.join("/")))
    } else if text.split('/').any(|part| part.contains("**") && part != "**") {
        let help = "write `**` as a part of its own, as in `/shop/**/web`, or `*` within a part";
        cx.error(node.span, format!("`**` within a part of the cgroup path {path}"), help);
        return None;
    } else {
        return Some(text.to_owned());
    };
    cx.error(node.span, message, &format!("paths are below the cgroup root: write `{help}`"));
    None
}

/// A unit of the system manager.
pub(crate) fn unit(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = cx.text(node, "`unit`", "a unit, such as `nginx.service`")?.value;
    if no_other_globs(cx, text, node, "the unit's name").is_some() {
        return None;
    }
    let name = quote(text);
    let kind = text.rsplit_once('.').map_or("", |(_, kind)| kind);
    let (message, help) = if text.contains('/') {
        (format!("{name} is a path, not a unit"), format!("write `cgroup: {text}`"))
    } else if text.contains("**") {
        (format!("`**` in the unit's name {name}"), "write `*`".to_owned())
    } else if text.contains(char::is_whitespace) {
        (format!("the unit's name {name} has a space in it"), "write one unit an entry".to_owned())
    } else if kind == "slice" {
        let help = format!("write `cgroup: /{text}`, with its parent slices before it");
        (format!("{name} is a slice, which holds units and is none itself"), help)
    } else if NO_CGROUP.contains(&kind) {
        let help = "write the service that it starts, such as `nginx.service`".to_owned();
        (format!("the unit {name} has no processes"), help)
    } else if let Some((before, kind)) = text.split_once("@.") {
        let help = format!("write `{before}@*.{kind}` for all its instances");
        (format!("{name} is a template, not a unit"), help)
    } else if !UNITS.contains(&kind) && !text.ends_with('*') {
        (format!("the unit's name {name} has no kind"), format!("write `{text}.service`"))
    } else {
        return Some(text.to_owned());
    };
    cx.error(node.span, message, &help);
    None
}

/// An interface of this host.
pub(super) fn interface(cx: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = cx.text(node, "`interface`", "a name, such as `tap-web*`")?.value;
    if no_other_globs(cx, text, node, "the interface's name").is_some() {
        return None;
    }
    let name = quote(text);
    let (message, help) = if text == "lo" {
        let help =
            "match the services on it by `unit` or `cgroup`; their loopback traffic is judged";
        ("the loopback interface is no workload".to_owned(), help)
    } else if text.contains("**") {
        (format!("`**` in the interface's name {name}"), "write `*`")
    } else if text.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':')) {
        let help = "names of interfaces have no `/`, `:` or space; write it as `ip link` shows it";
        (format!("{name} is not an interface's name"), help)
    } else if text.chars().filter(|c| *c != '*').map(char::len_utf8).sum::<usize>() > MAX_INTERFACE
    {
        let help = "names of interfaces have at most 15 characters; write it as `ip link` shows it";
        (format!("the interface's name {name} is too long"), help)
    } else {
        return Some(text.to_owned());
    };
    cx.error(node.span, message, help);
    None
}

/// `host: true`
pub(super) fn host(cx: &mut Context<'_>, node: &Node) -> bool {
    match cx.boolean(node, "`host`") {
        Some(true) => true,
        Some(false) => {
            cx.error(node.span, "`host: false` matches nothing", "leave `host` out");
            false
        }
        None => false,
    }
}
