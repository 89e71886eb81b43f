//! The agent's state as `OpenMetrics` text. Cardinality is bounded by the policy: labels are
//! directions, outcomes, maps and segments.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use ztseg_common::event::Counter as Kernel;

use crate::api::types::Status;

/// What `Content-Type` the text has (`OpenMetrics` 1.0, section "Exposition").
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Ratios = Family<Labels, Gauge<f64, AtomicU64>>;
type Numbers = Family<Labels, Gauge>;

/// The text for one moment.
pub fn text(status: &Status) -> String {
    let kernel = |counter: Kernel| status.counters.get(counter.name()).copied().unwrap_or(0);
    let mut registry = Registry::with_prefix("ztseg");

    let dropped = Counters::default();
    let forwarded = Counters::default();
    for (direction, drops, passes) in [
        ("ingress", Kernel::DroppedIngress, Kernel::AllowedIngress),
        ("egress", Kernel::DroppedEgress, Kernel::AllowedEgress),
    ] {
        let labels = vec![("direction", direction.to_owned())];
        dropped.get_or_create(&labels).inc_by(kernel(drops));
        forwarded.get_or_create(&labels).inc_by(kernel(passes));
    }
    registry.register("drop_count", "Packets and system calls denied", dropped);
    registry.register("forward_count", "Decisions to let a flow pass", forwarded);

    let audited = Counter::<u64>::default();
    audited.inc_by(kernel(Kernel::Audited));
    registry.register("audit_count", "Decisions that audit mode alone let pass", audited);

    let events = Counters::default();
    for (outcome, count) in [
        ("sent", kernel(Kernel::EventsSent)),
        ("folded", kernel(Kernel::EventsFolded)),
        ("over_budget", kernel(Kernel::EventsOverBudget)),
        ("ring_full", kernel(Kernel::EventsLost)),
        ("undecodable", status.events_undecodable),
        ("slow_reader", status.events_lost_by_readers),
    ] {
        events.get_or_create(&vec![("outcome", outcome.to_owned())]).inc_by(count);
    }
    registry.register("events", "Reports of the kernel programs, by what became of them", events);

    let tampering = Counters::default();
    for (what, count) in &status.tampering {
        tampering.get_or_create(&vec![("what", what.clone())]).inc_by(*count);
    }
    let help = "Changes of programs, pins and maps by somebody else, noticed and repaired";
    registry.register("tampering", help, tampering);

    let pressure = Ratios::default();
    for fill in &status.capacity {
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people and alerts")]
        let ratio = fill.used as f64 / f64::from(fill.limit.max(1));
        pressure.get_or_create(&vec![("capacity", fill.option.clone())]).set(ratio);
    }
    registry.register("bpf_map_pressure", "How full a ceiling is, 0 to 1", pressure);

    let bytes = Numbers::default();
    for map in &status.maps {
        let labels = vec![("map_name", map.name.clone())];
        bytes.get_or_create(&labels).set(i64::try_from(map.bytes).unwrap_or(i64::MAX));
    }
    registry.register("bpf_map_bytes", "Kernel memory of a map", bytes);

    let workloads = Numbers::default();
    for (segment, count) in &status.workloads_by_segment {
        let labels = vec![("segment", segment.clone())];
        workloads.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    registry.register("workloads", "Workloads of this host, by segment", workloads);

    let generation = Gauge::<i64>::default();
    generation.set(status.generation.into());
    registry.register("policy_generation", "The policy in force", generation);

    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut out, &registry);
    out
}
