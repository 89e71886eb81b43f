//! Rules.

use jiff::Timestamp;

use super::reader::{Context, Fields, Shape};
use super::{network, port};
use crate::policy::diagnostic::{Span, quote};
use crate::policy::model::{Peer, Port, Rule, Side, Spanned};
use crate::policy::names;
use crate::policy::resolved::PortRange;
use crate::policy::yaml::{Node, Value};

pub(super) const FIELDS: &[&str] = &["name", "from", "to", "ports", "log", "reject", "expires"];
const EXAMPLE: &str = "`{ from: web, to: db, ports: [tcp/5432] }`";

/// Reads a rule of the list `field`, which is `deny`, `allow` or `pass`.
pub(super) fn rule(cx: &mut Context<'_>, node: &Node, field: &str) -> Rule {
    let what = match field {
        "deny" => "a deny rule",
        "allow" => "an allow rule",
        _ => "a pass rule",
    };
    let mut rule = Rule {
        name: None,
        log: false,
        reject: None,
        expires: None,
        from: Side::default(),
        to: Side::default(),
        ports: vec![],
        span: node.span,
    };
    let shape = Shape { what, fields: FIELDS, later: &[] };
    let Some(fields) = Fields::read(cx, node, &shape, EXAMPLE) else { return rule };
    rule.name = fields
        .get("name")
        .and_then(|n| cx.text(n, "`name`", "a name such as `web-to-db`"))
        .map(|name| cx.name(name.value, name.span, "a rule's name"));
    rule.log = fields.get("log").and_then(|n| cx.boolean(n, "`log`")).unwrap_or(false);
    if let Some(node) = fields.get("log").filter(|_| rule.log && field == "pass") {
        let message = "`log` reports what a rule decides; a pass rule leaves that to the next tier";
        cx.error(node.span, message, "leave it out, and set it at the rule that decides");
    }
    if let Some(node) = fields.get("reject") {
        rule.reject = cx.boolean(node, "`reject`");
        if rule.reject == Some(true) && field != "deny" {
            let message = format!("`reject` says how a deny rule denies; this is {what}");
            cx.error(node.span, message, "leave it out, or move the rule to `deny`");
        }
    }
    rule.expires = fields.get("expires").and_then(|node| time(cx, node));
    if let Some(node) = fields.need(cx, "from", "`from:` with who opens the flow, or `from: any`") {
        rule.from = side(cx, node, "from");
    }
    if let Some(node) = fields.need(cx, "to", "`to:` with who is asked, or `to: any`") {
        rule.to = side(cx, node, "to");
    }
    rule.ports = match fields.get("ports") {
        Some(node) => ports(cx, node),
        None => vec![Spanned::new(Port::Range(PortRange::ANY), node.span)],
    };
    rule
}

/// A moment as RFC 3339 writes it.
fn time(cx: &mut Context<'_>, node: &Node) -> Option<Timestamp> {
    const EXAMPLE: &str = "a time with its zone, such as `2030-12-31T18:00:00Z`";
    let text = cx.text(node, "`expires`", EXAMPLE)?;
    match text.value.parse::<Timestamp>() {
        Ok(time) if time > Timestamp::UNIX_EPOCH => return Some(time),
        Ok(_) => {
            let message = format!("`expires` {} is before 1970", quote(text.value));
            cx.error(text.span, message, &format!("write {EXAMPLE}"));
        }
        Err(_) => {
            let message = format!("`expires` {} is not a time", quote(text.value));
            cx.error(text.span, message, &format!("write {EXAMPLE}"));
        }
    }
    None
}

fn side(cx: &mut Context<'_>, node: &Node, field: &str) -> Side {
    let what = format!("`{field}`");
    let example = "a segment, an address group, a CIDR, a list of them, or `any`";
    let items = match &node.value {
        Value::List(items) if items.is_empty() => {
            let message = format!("{what} is an empty list");
            cx.error(node.span, message, "write `any` for everything, or remove the rule");
            return Side::default();
        }
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    let mut side = Side { peers: vec![], complete: true };
    for item in items {
        let Some(text) = cx.text(item, &what, example) else {
            side.complete = false;
            continue;
        };
        match peer(cx, text) {
            Some(peer) => side.peers.push(Spanned::new(peer, item.span)),
            None => side.complete = false,
        }
    }
    side
}

fn peer(cx: &mut Context<'_>, text: Spanned<&str>) -> Option<Peer> {
    let Spanned { value, span } = text;
    if value == "any" {
        return Some(Peer::Any);
    }
    if network::looks_like_one(value) && !not_only_a_host(value) {
        match network::network(value) {
            Ok(net) => return Some(Peer::Network(net)),
            Err(error) => cx.error(span, error.message, &error.help),
        }
        return None;
    }
    name(cx, value, span).map(Peer::Name)
}

/// `db.example.com:5432` and `https://db.example.com/`: a host's name with something around it.
fn not_only_a_host(text: &str) -> bool {
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    host != text && network::looks_like_dns(host)
}

/// A name that is used; what cannot be one is reported.
pub(super) fn name(cx: &mut Context<'_>, text: &str, span: Span) -> Option<String> {
    if network::looks_like_dns(text) || not_only_a_host(text) {
        let message = format!("{}: a DNS name as a peer is not in the language yet", quote(text));
        let help = if text == "localhost" {
            "name the segment that the flow is with; for the address write `127.0.0.0/8` and `\"::1\"`"
        } else {
            "write its addresses, best as an address group"
        };
        cx.error(span, message, help);
        return None;
    }
    if text == "host" {
        let help = "define a segment with `match: [ { host: true } ]` and write its name";
        cx.error(span, "`host` is a reserved word, not a segment's name", help);
        return None;
    }
    if names::RESERVED.contains(&text) {
        let message = format!("{} is a reserved word, not a segment's name", quote(text));
        cx.error(span, message, "write `any`, or the name of a segment or address group");
        return None;
    }
    if !names::is_well_formed(text) {
        let message = format!("{} is neither a name nor an address", quote(text));
        let help = match names::well_formed_like(text) {
            Some(like) if text.eq_ignore_ascii_case(&like) => format!("write `{like}`"),
            _ if text.contains([',', ' ']) => "write a list: `[web, db]`".to_owned(),
            _ => "write the name of a segment or address group, a CIDR, or `any`".to_owned(),
        };
        cx.error(span, message, &help);
        return None;
    }
    Some(text.to_owned())
}

fn ports(cx: &mut Context<'_>, node: &Node) -> Vec<Spanned<Port>> {
    let help = "leave `ports` out for every protocol and port";
    let example = "`[tcp/443]`";
    let items = cx.filled_list(node, "`ports`", example, help).unwrap_or_default();
    let mut ports = Vec::new();
    for item in items {
        let Some(text) = cx.text(item, "an entry of `ports`", "`tcp/443`") else { continue };
        match port::entry(text.value) {
            Ok(port) => ports.push(Spanned::new(port, text.span)),
            Err(error) => cx.error(text.span, error.message, &error.help),
        }
    }
    ports
}
