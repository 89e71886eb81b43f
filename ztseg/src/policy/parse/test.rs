//! Tests: `{ allow: web -> db tcp/5432 }`.

use ztseg_common::addr::proto;

use super::reader::{Context, Fields, Shape};
use super::{network, port, rule};
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::labels::is_subdomain;
use crate::policy::model::{End, Spanned, Test};
use crate::policy::names;
use crate::policy::testcase::Expect;
use crate::policy::yaml::Node;

pub(super) const SHAPE: Shape = Shape { what: "a test", fields: &["allow", "deny"], later: &[] };
const EXAMPLE: &str = "`allow: web -> db tcp/5432`";

/// Reads a test; `None` if something is wrong with it.
pub(super) fn test(cx: &mut Context<'_>, node: &Node) -> Option<Test> {
    let fields = Fields::read(cx, node, &SHAPE, EXAMPLE)?;
    let (expect, flow) = match (fields.get("allow"), fields.get("deny")) {
        (Some(flow), None) => (Expect::Allow, flow),
        (None, Some(flow)) => (Expect::Deny, flow),
        (Some(_), Some(flow)) => {
            cx.error(flow.span, "a test with both `allow` and `deny`", "write a test for each");
            return None;
        }
        (None, None) if fields.misspelt() => return None,
        (None, None) => {
            let message = "a test has neither `allow` nor `deny`";
            cx.error(node.span, message, &format!("write {EXAMPLE}"));
            return None;
        }
    };
    let text = cx.text(flow, "the flow of a test", "`web -> db tcp/5432`")?;
    let parts: Vec<&str> = text.value.split_whitespace().collect();
    let &[from, "->", to, service] = parts.as_slice() else {
        let message = format!("{} is not a flow", quote(text.value));
        cx.error(
            text.span,
            message,
            "write `SOURCE -> DESTINATION PROTOCOL/PORT`, as in `web -> db tcp/5432`",
        );
        return None;
    };
    let before = cx.out.len();
    let from = end(cx, text, from);
    let to = end(cx, text, to);
    let service = one_service(cx, text, service);
    let (from, to, (protocol, port)) = (from?, to?, service?);
    families(cx, text, &from, &to, protocol);
    (cx.out.len() == before).then(|| Test {
        expect,
        from,
        to,
        protocol,
        port,
        text: Spanned::new(text.value.to_owned(), text.span),
    })
}

/// Where a word of the flow stands; words are slices of the whole.
fn place<'w>(cx: &Context<'_>, whole: Spanned<&str>, word: &'w str) -> Spanned<&'w str> {
    let start = word.as_ptr().addr() - whole.value.as_ptr().addr();
    Spanned::new(word, cx.part(whole, start, start + word.len()))
}

fn end(cx: &mut Context<'_>, whole: Spanned<&str>, word: &str) -> Option<Spanned<End>> {
    let Spanned { value, span } = place(cx, whole, word);
    if let Some(name) = value.strip_prefix("workload:") {
        return rule::name(cx, name, span).map(|name| Spanned::new(End::Workload(name), span));
    }
    if let Some((namespace, name)) = value.split_once('/')
        && names::is_well_formed(namespace)
        && is_subdomain(name)
    {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        return Some(Spanned::new(End::Pod { namespace, name }, span));
    }
    if value == "any" || value.contains('/') {
        let message = format!("{} is not one end of a flow", quote(value));
        cx.error(
            span,
            message,
            "write a segment, one address, a pod as `NAMESPACE/NAME`, or `workload:NAME`",
        );
        return None;
    }
    if network::looks_like_one(value) {
        return match network::address(value) {
            Ok(address) => Some(Spanned::new(End::Address(address), span)),
            Err(error) => {
                cx.error(span, error.message, &error.help);
                None
            }
        };
    }
    rule::name(cx, value, span).map(|name| Spanned::new(End::Name(name), span))
}

/// One protocol with one port or type.
fn one_service(cx: &mut Context<'_>, whole: Spanned<&str>, word: &str) -> Option<(u8, u16)> {
    let Spanned { value, span } = place(cx, whole, word);
    match port::parse(value) {
        Ok(range) if range.first == range.last => range.protocol.map(|p| (p, range.first)),
        Ok(_) => {
            let message = format!("{} is more than one port", quote(value));
            cx.error(
                span,
                message,
                "a test asks for one, such as `tcp/443` or `icmp/echo-request`",
            );
            None
        }
        Err(error) => {
            cx.error(span, error.message, &error.help);
            None
        }
    }
}

/// Both ends, and the protocol, must be of one address family.
fn families(
    cx: &mut Context<'_>,
    whole: Spanned<&str>,
    from: &Spanned<End>,
    to: &Spanned<End>,
    protocol: u8,
) {
    let v4 = |end: &End| match end {
        End::Address(address) => Some(address.is_ipv4()),
        End::Name(_) | End::Pod { .. } | End::Workload(_) => None,
    };
    let protocol = match protocol {
        proto::ICMP => Some(true),
        proto::ICMPV6 => Some(false),
        _ => None,
    };
    let all = [v4(&from.value), v4(&to.value), protocol];
    if all.contains(&Some(true)) && all.contains(&Some(false)) {
        let message = format!("{} mixes IPv4 and IPv6", quote(whole.value));
        cx.error(whole.span, message, "no such flow can be; `icmp` is IPv4, `icmpv6` is IPv6");
    }
}
