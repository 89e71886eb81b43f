//! Protocols, port numbers and port names, and addresses.

use ipnet::IpNet;
use ztseg_common::addr::proto;

use super::field::{formed, given, needed, string};
use crate::policy::diagnostic::quote;
use crate::policy::kubernetes::labels::is_port_name;
use crate::policy::kubernetes::model::Port;
use crate::policy::model::Spanned;
use crate::policy::parse::network;
use crate::policy::parse::reader::{Context, Fields};
use crate::policy::resolved::PortRange;
use crate::policy::yaml::{Node, Value};

const PROTOCOLS: &[(&str, u8)] = &[("TCP", proto::TCP), ("UDP", proto::UDP), ("SCTP", proto::SCTP)];
const NAME: (fn(&str) -> bool, &str) =
    (is_port_name, "at most 15 lower-case letters, digits and `-`, with a letter among them");

/// `protocol`, which is TCP where it is missing. Go programs write what is missing as no text.
pub(super) fn protocol(cx: &mut Context<'_>, fields: &Fields<'_>) -> Option<u8> {
    let unset = |node: &&Node| matches!(&node.value, Value::Scalar { text, .. } if text.is_empty());
    match given(fields, "protocol").filter(|node| !unset(node)) {
        Some(node) => cx.choice(node, "`protocol`", PROTOCOLS),
        None => Some(proto::TCP),
    }
}

/// A port's number, in a field that must be there.
pub(super) fn number(cx: &mut Context<'_>, fields: &Fields<'_>, name: &str) -> Option<u16> {
    let node = needed(cx, fields, name, &format!("`{name}: 443`"))?;
    one_number(cx, node, name)
}

/// A port's number.
pub(super) fn one_number(cx: &mut Context<'_>, node: &Node, name: &str) -> Option<u16> {
    cx.integer(node, &format!("`{name}`"), 1..=65_535).and_then(|n| u16::try_from(n).ok())
}

/// `start` and `end`, of which the first must be the lower one.
pub(super) fn range(
    cx: &mut Context<'_>,
    node: &Node,
    fields: &Fields<'_>,
    protocol: Option<u8>,
) -> Option<PortRange> {
    let (start, end) = (number(cx, fields, "start"), number(cx, fields, "end"));
    let (first, last, protocol) = (start?, end?, protocol?);
    if first >= last {
        let message = format!("the range from {first} to {last} does not go up");
        let help = "write the lower number as `start`; for one port, name that alone";
        cx.error(node.span, message, help);
        return None;
    }
    Some(PortRange { protocol: Some(protocol), first, last })
}

/// The name of a port.
pub(super) fn name(cx: &mut Context<'_>, node: &Node, protocol: Option<u8>) -> Option<Port> {
    let name = formed(cx, node, "a port's name", NAME)?.value.to_owned();
    Some(Port::Named { name, protocol })
}

/// Whether a node is a number rather than a name.
pub(super) fn is_number(node: &Node) -> bool {
    let digits =
        |text: &str| text.trim_start_matches(['+', '-']).bytes().all(|b| b.is_ascii_digit());
    matches!(&node.value, Value::Scalar { text, plain: true } if digits(text))
}

/// A CIDR; as in Kubernetes, bits behind the prefix mean nothing.
pub(super) fn cidr(cx: &mut Context<'_>, node: &Node, what: &str) -> Option<Spanned<IpNet>> {
    let text = string(cx, node, what, "`192.0.2.0/24`")?;
    match text.value.parse::<IpNet>() {
        Ok(net) if !is_mapped(&net) => return Some(Spanned::new(net.trunc(), text.span)),
        _ => {}
    }
    match network::network(text.value) {
        Ok(address) => {
            let message = format!("{what} {} has no prefix length", quote(text.value));
            cx.error(text.span, message, &format!("write `{address}` for the one address"));
        }
        Err(error) => cx.error(text.span, error.message, &error.help),
    }
    None
}

fn is_mapped(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().to_ipv4_mapped().is_some())
}
