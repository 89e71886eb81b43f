//! The agent with a datapath that only records, and its API over a real socket.

mod fake;
mod server;

use std::path::Path;
use std::sync::Arc;

use jiff::SignedDuration;
use ztseg_common::event::Event;
use ztseg_common::key::workload_interface;

use self::fake::{Call, Fake};
use super::boot::First;
use super::core::{Core, Found, Options, interface_facts};
use super::prepare::prepare;
use super::sources::PolicyFiles;
use crate::api::types::{EventLine, Origin};
use crate::clocks::Clocks;
use crate::datapath::{Capacity, Finding, InterfaceSide, Tampering};
use crate::discover::Discovered;
use crate::discover::cgroups::{CgroupEvent, WatchMode};
use crate::discover::interfaces::Interface;
use crate::events::log::EventLog;
use crate::inventory::{CgroupFacts, Inventory};
use crate::policy::failsafe::Failsafe;
use crate::policy::source::Source;

const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: shop }
spec:
  segments:
    web: { match: [ { cgroup: /shop/web } ] }
    front: { match: [ { cgroup: \"/shop/*\" } ] }
    vm: { match: [ { interface: tap-* } ] }
  allow:
    - { name: in, from: any, to: web, ports: [tcp/80] }
";

fn files(text: &str) -> PolicyFiles {
    let sources = vec![Source { name: "shop.yaml".into(), text: text.into() }];
    PolicyFiles { sources, warnings: Vec::new() }
}

fn cgroup(id: u64, path: &str) -> CgroupFacts {
    let level = u32::try_from(path.matches('/').count()).expect("few");
    CgroupFacts { id, path: path.into(), level: if path == "/" { 0 } else { level } }
}

fn appeared(id: u64, path: &str) -> Discovered {
    Discovered::Cgroup(CgroupEvent::Appeared(cgroup(id, path)))
}

fn vanished(id: u64, path: &str) -> Discovered {
    Discovered::Cgroup(CgroupEvent::Vanished { id, path: path.into() })
}

fn interface(index: u32, name: &str, kind: &str) -> Interface {
    Interface { index, name: name.into(), kind: kind.into() }
}

fn core_with(capacity: Capacity, cgroups: &[CgroupFacts]) -> (Core<Fake>, Fake) {
    let fake = Fake::default();
    (start(fake.clone(), capacity, cgroups, vec![]), fake)
}

fn start(
    fake: Fake,
    capacity: Capacity,
    cgroups: &[CgroupFacts],
    interfaces: Vec<Interface>,
) -> Core<Fake> {
    let mut inventory = Inventory::new();
    for facts in cgroups {
        inventory.insert_cgroup(facts.clone());
    }
    inventory.set_interfaces(interface_facts(&interfaces));
    let files = files(POLICY);
    let prepared =
        prepare(&files.sources, false, &Failsafe::off(), &inventory, &capacity).expect("valid");
    let found = Found { inventory, interfaces, watch: WatchMode::Notified };
    let options = Options {
        audit: false,
        capacity,
        failsafe: Failsafe::off(),
        state_dir: None,
        cgroup_root: Path::new("/cg").into(),
        bpffs: Path::new("/pins").into(),
    };
    let events = Arc::new(EventLog::with_queue(8));
    let first = First { files, prepared, origin: Origin::Configured, error: None };
    Core::start(options, fake, found, first, events, None).expect("started")
}

fn core() -> (Core<Fake>, Fake) {
    core_with(Capacity::default(), &[cgroup(1, "/"), cgroup(2, "/shop"), cgroup(3, "/shop/web")])
}

/// Commits again, so that the kernel's clock is told anew, and only where a rule ends.
#[test]
fn a_clock_that_is_set_is_followed() {
    let (mut core, fake) = core_with(Capacity::default(), &[cgroup(1, "/")]);
    let now = Clocks::now();
    let set = |hours| Clocks { wall: now.wall + SignedDuration::from_hours(hours), ..now };
    fake.take();
    core.follow_clocks(&set(1));
    assert_eq!(fake.take(), [], "no rule ends");
    let expiring = POLICY.replace("to: web,", "to: web, expires: 2999-01-01T00:00:00Z,");
    core.apply(&files(&expiring), Origin::Sent).expect("valid");
    fake.take();
    core.follow_clocks(&Clocks::now());
    assert_eq!(fake.take(), [], "nobody has set it");
    for hours in [1, -5] {
        core.follow_clocks(&set(hours));
        assert_eq!(fake.take(), [Call::Commit { workloads: 1 }]);
        core.follow_clocks(&set(hours));
        assert_eq!(fake.take(), [], "it was followed already");
    }
}

#[test]
fn the_first_policy_is_committed_before_anything_is_attached() {
    let (core, fake) = core();
    let calls = [Call::Commit { workloads: 2 }, Call::AttachCgroup, Call::RetireOthers];
    assert_eq!(fake.take(), calls);
    let status = core.status();
    assert_eq!((status.generation, status.cgroups), (1, 3));
    assert_eq!(status.workloads_by_segment["web"], 1);
    assert_eq!(status.policies, ["shop.yaml"]);
}

#[test]
fn a_new_cgroup_of_known_segments_is_one_put_and_no_new_generation() {
    let (mut core, fake) = core();
    fake.take();
    // In /shop/* alone: each segment alone has classes in every image.
    core.discovered(appeared(4, "/shop/api"));
    core.settle();
    assert_eq!(fake.take(), [Call::Put { key: 4, level: Some(2) }]);
    core.discovered(vanished(4, "/shop/api"));
    core.settle();
    assert_eq!(fake.take(), [Call::Remove { key: 4 }]);
    core.settle();
    assert_eq!(fake.take(), []);
    assert_eq!(core.status().generation, 1);
}

#[test]
fn a_new_set_of_segments_is_a_new_generation() {
    let capacity = Capacity::default();
    let (mut core, fake) = core_with(capacity, &[cgroup(1, "/"), cgroup(2, "/shop")]);
    fake.take();
    core.discovered(appeared(3, "/shop/web"));
    core.discovered(appeared(4, "/shop/api"));
    core.settle();
    let calls = fake.take();
    assert!(calls.contains(&Call::Commit { workloads: 3 }), "{calls:?}");
    let status = core.status();
    assert_eq!((status.generation, status.workloads), (2, 3));
    let web = core.workloads().into_iter().find(|w| w.name == "/shop/web").expect("there");
    let mut segments = web.segments;
    segments.sort();
    assert_eq!(segments, ["front", "web"]);
}

#[test]
fn what_comes_and_goes_at_once_costs_nothing() {
    let (mut core, fake) = core();
    fake.take();
    for id in 10..1000 {
        core.discovered(appeared(id, "/shop/short"));
        core.discovered(vanished(id, "/shop/short"));
    }
    core.settle();
    assert_eq!(fake.take(), []);
}

#[test]
fn a_bad_policy_changes_nothing_and_says_why() {
    let (mut core, fake) = core();
    fake.take();
    let error = core.apply(&files(&POLICY.replace("to: web", "to: wbe")), Origin::Configured);
    assert!(error.expect_err("refused").contains("wbe"));
    assert_eq!(fake.take(), []);
    let status = core.status();
    assert_eq!(status.generation, 1);
    assert!(status.last_error.expect("said").message.contains("shop.yaml"));
    core.apply(&files(POLICY), Origin::Configured).expect("fine");
    let status = core.status();
    assert_eq!((status.generation, status.last_error), (2, None));
}

#[test]
fn a_commit_that_fails_keeps_the_old_policy_and_its_workloads() {
    let (mut core, fake) = core();
    fake.take();
    fake.fail(true);
    let only_vm = POLICY
        .replace("web: { match: [ { cgroup: /shop/web } ] }", "web: { match: [ { cgroup: /x } ] }");
    core.apply(&files(&only_vm), Origin::Configured).expect_err("the fake fails");
    let status = core.status();
    assert_eq!((status.generation, status.workloads_by_segment["web"]), (1, 1));
    fake.fail(false);
    fake.take();
    core.apply(&files(&only_vm), Origin::Configured).expect("fine");
    assert_eq!(core.status().workloads_by_segment["web"], 0);
}

/// The new policy must not wait for what cannot be attached to, while an older version decides.
#[test]
fn where_an_interface_refuses_older_versions_stay_and_do_not_decide_alone() {
    for refuses in [false, true] {
        let fake = Fake::default();
        if refuses {
            fake.refuse_interfaces();
        }
        let tap = vec![interface(7, "tap-a", "tun")];
        let core = start(fake.clone(), Capacity::default(), &[cgroup(1, "/")], tap);
        let last = if refuses { Call::DecideBesideOthers } else { Call::RetireOthers };
        assert_eq!(fake.take().last(), Some(&last));
        assert_eq!(core.status().last_error.is_some(), refuses);
    }
}

#[test]
fn a_put_that_fails_is_said_and_tried_again() {
    let (mut core, fake) = core();
    fake.fail(true);
    core.discovered(appeared(4, "/shop/api"));
    core.settle();
    assert!(core.status().last_error.is_some());
    fake.fail(false);
    fake.take();
    core.settle();
    assert_eq!(fake.take(), [Call::Put { key: 4, level: Some(2) }]);
    assert_eq!(core.status().last_error, None);
}

#[test]
fn more_workloads_than_the_ceiling_are_said_and_placed_when_there_is_room() {
    let capacity = Capacity { workloads: 2, ..Capacity::default() };
    let (mut core, fake) = core_with(capacity, &[cgroup(1, "/"), cgroup(3, "/shop/web")]);
    fake.take();
    core.discovered(appeared(4, "/shop/api"));
    core.settle();
    assert_eq!(fake.take(), []);
    let problem = core.status().last_error.expect("said").message;
    assert!(problem.contains("capacity.workloads"), "{problem}");
    core.discovered(vanished(3, "/shop/web"));
    core.settle();
    core.settle();
    assert_eq!(fake.take(), [Call::Remove { key: 3 }, Call::Put { key: 4, level: Some(2) }]);
    assert_eq!(core.status().last_error, None);
}

#[test]
fn interfaces_are_attached_when_they_are_workloads_and_forgotten_when_they_go() {
    let (mut core, fake) = core();
    fake.take();
    let eth0 = interface(2, "eth0", "");
    core.discovered(Discovered::Interfaces(vec![eth0.clone(), interface(7, "tap-a", "tun")]));
    core.settle();
    let key = workload_interface(7);
    let attach = Call::Attach { index: 7, name: "tap-a".into(), side: InterfaceSide::Far };
    assert_eq!(fake.take(), [Call::Put { key, level: None }, attach]);
    core.discovered(Discovered::Interfaces(vec![eth0]));
    core.settle();
    assert_eq!(fake.take(), [Call::Remove { key }, Call::Detach { index: 7 }]);
}

#[test]
fn events_get_their_names_and_what_cannot_be_read_is_counted() {
    let (mut core, fake) = core();
    let classes = core.running.image.workloads[&3];
    let mut event = crate::events::decode::tests::denied();
    (event.workload, event.subject, event.generation) = (3, classes.subject, 1);
    fake.push(event);
    fake.push(Event::default());
    fake.unreadable(2);
    core.drain();
    let (last, _) = core.events.read(10);
    assert_eq!(last.len(), 1);
    let event = last[0].event().expect("an event");
    assert_eq!(event.workload, "/shop/web");
    assert!(event.isolated_by.contains(&"web".to_owned()), "{event:?}");
    assert_eq!(core.status().events_undecodable, 3);
}

#[test]
fn an_event_keeps_the_names_of_its_own_generation() {
    let (mut core, fake) = core();
    let subject = core.running.image.workloads[&3].subject;
    let mut event = crate::events::decode::tests::denied();
    (event.workload, event.subject, event.generation) = (3, subject, 1);
    event.reason = ztseg_common::verdict::Reason::Rule as u8;
    event.rule = 1;
    core.apply(&files(&POLICY.replace("name: in", "name: out")), Origin::Sent).expect("fine");
    fake.push(event);
    core.drain();
    let (last, _) = core.events.read(1);
    assert_eq!(last[0].event().and_then(|e| e.rule.as_deref()), Some("shop/in"));
}

#[test]
fn what_somebody_alters_is_an_event_and_in_the_status() {
    let (mut core, fake) = core();
    let finding = |what, repaired| Finding { what, object: "x at y".into(), repaired };
    fake.find(vec![
        finding(Tampering::LinkDetached, Ok(())),
        finding(Tampering::PinRemoved, Err("the disk is gone".into())),
    ]);
    core.guard();
    fake.find(vec![finding(Tampering::PinRemoved, Err("the disk is gone".into()))]);
    core.guard();
    let (last, _) = core.events.read(10);
    let lines: Vec<_> = last.iter().map(|l| serde_json::to_value(&**l).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["kind"], &lines[0]["what"]),
        (&"security".into(), &"link-detached".into())
    );
    assert_eq!((&lines[1]["repaired"], &lines[1]["object"]), (&false.into(), &"x at y".into()));
    let read: EventLine = serde_json::from_value(lines[1].clone()).expect("read again");
    assert_eq!(read, *last[1]);
    let status = core.status();
    assert_eq!((status.tampering["link-detached"], status.tampering["pin-removed"]), (1, 1));
    assert_eq!((status.tampering["map-replaced"], status.security.len()), (0, 2));
    let metrics = crate::present::metrics::text(&status);
    assert!(metrics.contains("ztseg_tampering_total{what=\"pin-removed\"} 1"), "{metrics}");
}
