use ztseg_common::addr::Port;
use ztseg_common::key::workload_interface;
use ztseg_common::state::SOCKET_CREATED;

use super::super::diag::tests::socket;
use super::*;
use crate::datapath::Capacity;
use crate::inventory::Membership;
use crate::policy::compile::compile;
use crate::policy::load;
use crate::policy::resolved::SegmentId;
use crate::policy::source::Source;

const WEB: WorkloadKey = 10;
const DB: WorkloadKey = 20;
const TAP: WorkloadKey = workload_interface(3);
const STAMP: u64 = 7 << 32;
const OLDER: u64 = 6 << 32;
const HERE: u64 = 1;
const THERE: u64 = 2;
const CLIENT: (&str, u16) = ("127.0.0.1", 40_000);
const FAR: &str = "192.0.2.7";
const HOST: &str = "192.0.2.1";

/// Port 1 is open, 2 and 3 are denied to `web` and to `db`, and 2 is told.
const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: p }
spec:
  segments:
    web: { match: [ { cgroup: /web } ] }
    db: { match: [ { cgroup: /db } ] }
    vm: { isolation: [], match: [ { interface: tap } ] }
  deny:
    - { name: told, from: web, to: [192.0.2.0/24, vm], ports: [tcp/2], reject: true }
    - { name: silent, from: web, to: [192.0.2.0/24, vm], ports: [tcp/3] }
    - { name: told-in, from: [127.0.0.0/8, 192.0.2.1], to: db, ports: [tcp/4], reject: true }
  allow:
    - { name: out, from: web, to: any }
    - { name: in, from: web, to: db }
";

fn image(policy: &str, interface: bool) -> Image {
    let source = Source { name: "p".into(), text: policy.into() };
    let resolved = load(&[source]).expect("valid").resolved;
    let member = |key, segment: Option<u32>| Membership {
        key,
        name: format!("{key}"),
        level: Some(1),
        segments: segment.map(SegmentId).into_iter().collect(),
    };
    let mut members = vec![member(WEB, Some(0)), member(DB, Some(1)), member(1, None)];
    members.extend(interface.then(|| Membership { level: None, ..member(TAP, Some(2)) }));
    compile(&resolved, &members, &Capacity::default()).expect("compiles")
}

fn view_of(policy: &str, interface: bool) -> View {
    let owners = [(WEB, WEB), (11, WEB), (DB, DB), (1, 1)].into();
    let (image, owners) = (Arc::new(image(policy, interface)), Arc::new(owners));
    View { stamp: STAMP, image, owners, netns: HERE, now: Timestamp::UNIX_EPOCH }
}

fn view() -> View {
    view_of(POLICY, false)
}

/// A socket that was allowed under an older policy.
fn allowed(phase: Phase, cgroup: u64, role: Role, ends: [(&str, u16); 2]) -> TcpSocket {
    let socket = socket(phase, ends[0], ends[1]);
    let state = SocketState {
        stamp: OLDER,
        workload_stamp: OLDER,
        workload: cgroup,
        role: role as u8,
        verdict: Verdict::Allow as u8,
        flags: SOCKET_CREATED,
        netns: THERE,
        remote: socket.remote.0,
        remote_port: socket.remote.1,
        ..SocketState::default()
    };
    TcpSocket { cgroup, state: Some(state), ..socket }
}

/// What `web` has opened from `HOST`.
fn opened(to: (&str, u16)) -> TcpSocket {
    allowed(Phase::Connected, WEB, Role::Initiator, [(HOST, 40_000), to])
}

fn with(socket: &TcpSocket, change: impl FnOnce(&mut SocketState)) -> TcpSocket {
    let mut socket = socket.clone();
    change(socket.state.as_mut().expect("a state"));
    socket
}

fn found(view: &View, sockets: &[TcpSocket]) -> Vec<usize> {
    rejected(view, sockets).into_iter().collect()
}

#[test]
fn only_what_is_denied_and_to_be_told() {
    let sockets = [opened((FAR, 1)), opened((FAR, 2)), opened((FAR, 3))];
    assert_eq!(found(&view(), &sockets), [1]);
    let more = POLICY.replace("spec:\n", "spec:\n  reject: true\n");
    assert_eq!(found(&view_of(&more, false), &sockets), [1, 2]);
    // Below a workload is the workload, and what belongs to nobody is left alone.
    for (cgroup, expected) in [(11, 1), (99, 0), (DB, 0)] {
        let socket = TcpSocket { cgroup, ..opened((FAR, 2)) };
        assert_eq!(found(&view(), &[socket]).len(), expected, "cgroup {cgroup}");
    }
}

#[test]
fn isolation_is_told_where_the_policy_says_so() {
    let denied = |policy: &str| {
        let closed = policy.replace("    - { name: out, from: web, to: any }\n", "");
        found(&view_of(&closed, false), &[opened((FAR, 1))]).len()
    };
    assert_eq!(denied(POLICY), 0);
    assert_eq!(denied(&POLICY.replace("spec:\n", "spec:\n  reject: true\n")), 1);
}

#[test]
fn what_is_not_certain_is_left_alone() {
    let socket = opened((FAR, 2));
    let left: [(&str, TcpSocket); 7] = [
        ("no state", TcpSocket { state: None, ..socket.clone() }),
        ("never judged", with(&socket, |s| s.role = 0)),
        ("judged for another peer", with(&socket, |s| s.remote_port = Port::new(9))),
        ("judged for another address", with(&socket, |s| s.remote = Addr::v4([192, 0, 2, 8]))),
        ("a peer that is gone", with(&socket, |s| s.peer = DB)),
        ("an interface that is no workload", with(&socket, |s| s.peer = TAP)),
        ("a listener", TcpSocket { phase: Phase::Listening, ..socket.clone() }),
    ];
    for (why, socket) in left {
        assert_eq!(found(&view(), &[socket]), [0; 0], "{why}");
    }
    let local = allowed(Phase::Connected, WEB, Role::Initiator, [CLIENT, ("127.0.0.1", 2)]);
    assert_eq!(found(&view(), &[local]), [0; 0], "loopback without the other end");
}

#[test]
fn where_interfaces_are_workloads_only_the_packet_says_who_the_peer_is() {
    let view = view_of(POLICY, true);
    let socket = opened((FAR, 2));
    assert_eq!(found(&view, std::slice::from_ref(&socket)), [0], "in another namespace");
    let here = with(&socket, |s| s.netns = HERE);
    assert_eq!(found(&view, std::slice::from_ref(&here)), [0; 0], "an address is not enough");
    let behind = with(&opened(("198.51.100.9", 2)), |s| (s.netns, s.peer) = (HERE, TAP));
    assert_eq!(found(&view, &[behind]), [0], "the interface that was seen");
}

#[test]
fn the_kernels_word_counts_before_the_evaluators() {
    let image = view().image;
    let rank = |told| {
        let is =
            |r: &ztseg_common::value::Rule| r.action == 1 && (r.flags & RULE_REJECT != 0) == told;
        u32::try_from(image.rules.iter().skip(1).position(is).expect("a rule") + 1).expect("few")
    };
    let denied = |socket: &TcpSocket, rule| {
        with(socket, |s| {
            (s.stamp, s.workload_stamp) = (STAMP, STAMP);
            (s.verdict, s.reason, s.rule) = (Verdict::Deny as u8, Reason::Rule as u8, rule);
        })
    };
    let told = denied(&opened((FAR, 1)), rank(true));
    assert_eq!(found(&view(), std::slice::from_ref(&told)), [0], "the evaluator would allow it");
    assert_eq!(found(&view(), &[denied(&opened((FAR, 2)), rank(false))]), [0; 0], "silent");
    // A verdict that must not be kept has no stamp; one of an older policy is none.
    assert_eq!(found(&view(), &[with(&told, |s| s.stamp = 0)]), [0]);
    let older = with(&told, |s| (s.stamp, s.workload_stamp) = (OLDER, OLDER));
    assert_eq!(found(&view(), &[older]), [0; 0]);
    let allowed = with(&opened((FAR, 2)), |s| (s.stamp, s.workload_stamp) = (STAMP, STAMP));
    assert_eq!(found(&view(), &[allowed]), [0; 0], "the kernel knows better");
    for (reason, flags, expected) in [
        (Reason::Isolation, true, 1),
        (Reason::Isolation, false, 0),
        (Reason::NotInitialised, true, 0),
    ] {
        let policy = POLICY.replace("spec:\n", &format!("spec:\n  reject: {flags}\n"));
        let socket = with(&denied(&told, 0), |s| s.reason = reason as u8);
        assert_eq!(found(&view_of(&policy, false), &[socket]).len(), expected, "{reason:?}");
    }
}

#[test]
fn both_ends_of_a_local_connection() {
    let ends = |port| [CLIENT, ("127.0.0.1", port)];
    let pair = |port| {
        let [a, b] = ends(port);
        [
            allowed(Phase::Connected, WEB, Role::Initiator, ends(port)),
            allowed(Phase::Connected, DB, Role::Responder, [b, a]),
        ]
    };
    assert_eq!(found(&view(), &pair(1)), [0; 0]);
    assert_eq!(found(&view(), &pair(4)), [0, 1], "denied at the other end");
    // Accepted, and silent since.
    let [client, server] = pair(4);
    let silent = with(&server, |s| (s.role, s.stamp, s.flags) = (0, 0, SOCKET_LISTENED));
    assert_eq!(found(&view(), &[client.clone(), silent]), [0, 1]);
    let fresh = with(&server, |s| (s.role, s.stamp, s.flags) = (0, 0, SOCKET_CREATED));
    assert_eq!(found(&view(), &[client.clone(), fresh]), [0; 0], "which end it is is not known");
    // A workload always reaches itself.
    let own = TcpSocket { cgroup: DB, ..client };
    assert_eq!(found(&view(), &[own, server]), [0; 0]);
}

#[test]
fn who_asks_a_local_listener_in_vain() {
    let asking = |to: (&str, u16)| {
        let from = if to.0 == FAR { HOST } else { to.0 };
        allowed(Phase::Asking, WEB, Role::Initiator, [(from, 40_000), to])
    };
    let listener = |address: &str, cgroup| TcpSocket {
        cgroup,
        ..socket(Phase::Listening, (address, 4), ("0.0.0.0", 0))
    };
    for any in ["127.0.0.1", "0.0.0.0", "::"] {
        let sockets = [listener(any, DB), asking(("127.0.0.1", 4))];
        assert_eq!(found(&view(), &sockets), [1], "{any}");
    }
    let to_own_address = [listener("0.0.0.0", DB), asking((HOST, 4))];
    assert_eq!(found(&view(), &to_own_address), [1]);
    // Another host's port is not this one's.
    let elsewhere = [listener("0.0.0.0", DB), asking((FAR, 4))];
    assert_eq!(found(&view(), &elsewhere), [0; 0]);
    for (why, others) in [
        ("who is asked is not certain", vec![listener("0.0.0.0", DB), listener("0.0.0.0", WEB)]),
        ("not its port's", vec![socket(Phase::Listening, ("0.0.0.0", 5), ("0.0.0.0", 0))]),
        ("whose it is is not known", vec![listener("0.0.0.0", 99)]),
        ("itself", vec![listener("0.0.0.0", WEB)]),
    ] {
        let sockets = [others, vec![asking(("127.0.0.1", 4))]].concat();
        assert_eq!(found(&view(), &sockets), [0; 0], "{why}");
    }
}

#[test]
fn behind_a_translation_the_packets_ends_count() {
    let to = |wire: [u8; 4], port| {
        with(&opened(("198.51.100.1", 80)), |s| {
            (s.wire_remote, s.wire_port) = (Addr::v4(wire), Port::new(port));
        })
    };
    assert_eq!(found(&view(), &[to([192, 0, 2, 7], 2), to([192, 0, 2, 7], 1)]), [0]);
}

#[test]
fn a_policy_that_tells_nobody_is_known_as_one() {
    assert!(tells(&view().image));
    let silent = POLICY.replace(", reject: true", "");
    assert!(!tells(&view_of(&silent, false).image));
    let isolation = silent.replace("spec:\n", "spec:\n  reject: true\n");
    assert!(tells(&view_of(&isolation, false).image));
}
