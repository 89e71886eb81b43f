//! Where a policy stands: its tier, and its place in that.

use super::reader::{Context, Fields};
use crate::policy::model::Spanned;
use crate::policy::resolved::Tier;

pub(super) const TIERS: &[(&str, Tier)] =
    &[("admin", Tier::Admin), ("application", Tier::Application), ("baseline", Tier::Baseline)];

/// The highest number that a policy can be ordered by.
pub(super) const MAX_PRIORITY: u32 = 65_535;

/// Reads the tier and the priority in it; says what is missing or has no place there.
pub(super) fn order(cx: &mut Context<'_>, spec: &Fields<'_>) -> (Tier, Option<Spanned<u32>>) {
    let node = spec.get("tier");
    let tier = match node {
        Some(node) => cx.choice(node, "`tier`", TIERS),
        None => Some(Tier::Application),
    };
    let priority = spec.get("priority").and_then(|node| {
        let number = cx.integer(node, "`priority`", 0..=MAX_PRIORITY)?;
        Some(Spanned::new(number, node.span))
    });
    // Where it is none of the three, which was said, nobody knows whether it has an order.
    let Some(tier) = tier else { return (Tier::Application, None) };
    if tier == Tier::Application {
        // A priority is read and means nothing there: a deny rule beats every allow rule.
        no_pass(cx, spec);
        return (tier, None);
    }
    if let Some(node) = node.filter(|_| spec.get("priority").is_none() && !spec.misspelt()) {
        let message = format!("a policy of the tier `{}` has no `priority`", tier.name());
        let help = "add for example `priority: 100`; the lower number is looked at first";
        cx.error(node.span, message, help);
    }
    (tier, priority)
}

/// Says that a pass rule has no meaning in the application tier.
fn no_pass(cx: &mut Context<'_>, spec: &Fields<'_>) {
    if let Some(key) = spec.key("pass") {
        let message = "`pass` in the tier `application`, which has no order";
        let help = "remove it: a pass rule ends the tier `admin` or `baseline` for a flow; there, no rule means the same";
        cx.error(key.span, message, help);
    }
}
