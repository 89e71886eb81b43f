//! The API over a socket, with the real client, and the loop behind it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::fake::{Call, Fake};
use super::{POLICY, appeared, cgroup, core_with};
use crate::agent::handle::Handle;
use crate::agent::run::{Inputs, PolicyPaths, run};
use crate::agent::watch::FileWatch;
use crate::api::client::{Client, ClientError};
use crate::api::server::{self, BindError};
use crate::api::types::{ApplyRequest, EventLine, Origin, PolicyFile, Status, WorkloadInfo};
use crate::datapath::Capacity;
use crate::discover::Discovered;
use crate::events::log::EventLog;
use crate::explain::{Answer, Explanation, Question};
use crate::present::compact::tests::event;

/// An agent whose policy is a folder with one file.
struct World {
    folder: tempfile::TempDir,
    client: Client,
    fake: Fake,
    events: Arc<EventLog>,
    reports: mpsc::Sender<Discovered>,
    reload: mpsc::Sender<()>,
    _stop: mpsc::Sender<()>,
}

impl World {
    fn policy_file(&self) -> PathBuf {
        self.folder.path().join("policies/shop.yaml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("run/ztseg.sock")
    }

    async fn status(&self) -> Status {
        self.client.get("/v1/status").await.expect("a status")
    }

    /// Waits for a state, at most five seconds.
    async fn until(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        for _ in 0..500 {
            let status = self.status().await;
            if is(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:#?}", self.status().await);
    }
}

/// Must run within a `LocalSet`-free current-thread runtime: the loop is a task of it.
fn world() -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).expect("made");
    std::fs::write(policies.join("shop.yaml"), POLICY).expect("written");
    let socket = folder.path().join("run/ztseg.sock");
    let bound = server::bind(&socket).expect("bound");
    let (core, fake) = core_with(Capacity::default(), &[cgroup(1, "/"), cgroup(3, "/shop/web")]);
    let events = core.events.clone();
    let (handle, commands) = Handle::new(events.clone());
    tokio::spawn(server::serve(bound, handle));
    let policy = PolicyPaths { paths: vec![policies], optional: vec![] };
    let (reports, reports_rx) = mpsc::channel(16);
    let (reload, reload_rx) = mpsc::channel(1);
    let (stop, stop_rx) = mpsc::channel(1);
    // Nobody is to be told.
    let (_, views) = mpsc::channel(1);
    let inputs = Inputs {
        views,
        commands,
        reports: reports_rx,
        files: Some(FileWatch::start(&policy.paths).expect("watched")),
        reload: reload_rx,
        stop: stop_rx,
    };
    let last = policy.read().expect("read").sources;
    tokio::spawn(run(core, policy, Some(last), inputs));
    let client = Client::new(&socket);
    World { folder, client, fake, events, reports, reload, _stop: stop }
}

#[tokio::test]
async fn what_is_configured_is_applied_again() {
    let world = world();
    let applied = world.client.apply(None).await.expect("applied");
    assert_eq!((applied.generation, applied.files, applied.segments, applied.rules), (2, 1, 3, 1));
    assert_eq!(world.status().await.origin, Origin::Configured);
}

#[tokio::test]
async fn metrics_are_text_that_any_scraper_reads() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = world();
    world.status().await;
    let mut stream = UnixStream::connect(world.socket()).await.expect("connected");
    stream.write_all(b"GET /v1/metrics HTTP/1.0\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    for line in [
        "ztseg_drop_count_total{direction=\"egress\"} 17",
        "ztseg_policy_generation 1",
        "ztseg_workloads{segment=\"web\"} 1",
        "# EOF",
    ] {
        assert!(answer.contains(line), "no {line} in\n{answer}");
    }
}

#[tokio::test]
async fn files_can_be_sent() {
    let world = world();
    let file = |text: &str| {
        let file = PolicyFile { name: "sent.yaml".into(), text: text.into() };
        ApplyRequest { files: vec![file] }
    };
    world.client.apply(Some(&file(POLICY))).await.expect("applied");
    let status = world.status().await;
    assert_eq!((status.origin, status.generation), (Origin::Sent, 2));
    assert_eq!(status.policies, ["sent.yaml"]);
    let bad = file(&POLICY.replace("tcp/80", "tcp/80000"));
    let error = world.client.apply(Some(&bad)).await.expect_err("refused");
    let ClientError::Refused(text) = error else { panic!("{error}") };
    assert!(text.contains("sent.yaml") && text.contains("80000"), "{text}");
    let status = world.status().await;
    assert_eq!(status.generation, 2);
    assert!(status.last_error.is_some());
}

#[tokio::test]
async fn the_policy_in_force_explains_itself() {
    let world = world();
    let ask = |from: &str, to: &str, service: &str| {
        let question = Question { from: from.into(), to: to.into(), service: service.into() };
        let client = world.client.clone();
        async move { client.post::<Explanation>("/v1/explain", &question).await }
    };
    let allowed = ask("192.0.2.7", "/shop/web/worker", "tcp/80").await.expect("an answer");
    assert_eq!(allowed.verdict, Answer::Allow);
    assert_eq!(allowed.to.segments, ["web", "front"]);
    let rule = allowed.ingress.and_then(|end| end.rule);
    assert_eq!(rule.as_deref(), Some("shop/in"));
    // A set of segments that no workload here has.
    let denied = ask("interface:tap-7", "web", "tcp/443").await.expect("an answer");
    assert_eq!((denied.verdict, denied.audit), (Answer::Deny, false));
    let error = ask("wbe", "web", "tcp/443").await.expect_err("refused");
    let ClientError::Refused(text) = error else { panic!("{error}") };
    assert!(text.contains("did you mean `web`?"), "{text}");
    // What has no answer changes nothing.
    assert_eq!(world.status().await.generation, 1);
}

#[tokio::test]
async fn a_changed_file_is_applied_and_a_bad_one_keeps_the_old_policy() {
    let world = world();
    std::fs::write(world.policy_file(), "kind: Nonsense\n").expect("written");
    let status = world.until("the error", |s| s.last_error.is_some()).await;
    assert_eq!(status.generation, 1);
    std::fs::write(world.policy_file(), POLICY).expect("written");
    let status = world.until("the good one", |s| s.last_error.is_none()).await;
    assert_eq!(status.generation, 2);
    // Touched, not changed: no new generation.
    std::fs::write(world.policy_file(), POLICY).expect("written");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.status().await.generation, 2);
    world.reload.send(()).await.expect("asked");
    world.until("the reload", |s| s.generation == 3).await;
    std::fs::remove_dir_all(world.folder.path().join("policies")).expect("removed");
    let status = world.until("the missing folder", |s| s.last_error.is_some()).await;
    assert_eq!((status.generation, status.rules), (3, 1));
}

#[tokio::test]
async fn workloads_follow_reports() {
    let world = world();
    world.reports.send(appeared(9, "/shop/api")).await.expect("sent");
    world.until("the workload", |s| s.workloads == 3).await;
    let list: Vec<WorkloadInfo> = world.client.get("/v1/workloads").await.expect("a list");
    let api = list.iter().find(|w| w.name == "/shop/api").expect("there");
    assert_eq!(
        (api.id, api.kind.as_str(), &api.segments[..]),
        (9, "cgroup", &["front".into()][..])
    );
    assert!(world.fake.take().contains(&Call::Put { key: 9, level: Some(2) }));
}

#[tokio::test]
async fn events_come_as_lines_the_last_ones_and_those_that_follow() {
    let world = world();
    for generation in 0..3 {
        let mut event = event();
        event.generation = generation;
        world.events.publish(event);
    }
    let mut seen = Vec::new();
    let lines = |seen: &mut Vec<u32>, line: &[u8]| match serde_json::from_slice(line) {
        Ok(EventLine::Event(event)) => seen.push(event.generation),
        other => panic!("{other:?}"),
    };
    let all = |line: &[u8]| {
        lines(&mut seen, line);
        ControlFlow::Continue(())
    };
    world.client.lines("/v1/events?last=2", all).await.expect("lines");
    assert_eq!(seen, [1, 2]);

    let (started, first) = oneshot::channel();
    let mut started = Some(started);
    let events = world.events.clone();
    tokio::spawn(async move {
        first.await.expect("the first line");
        let mut event = event();
        event.generation = 77;
        events.publish(event);
    });
    let mut seen = Vec::new();
    let follow = |line: &[u8]| {
        lines(&mut seen, line);
        if let Some(started) = started.take() {
            started.send(()).expect("waited for");
        }
        if seen.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    world.client.lines("/v1/events?follow=1&last=1", follow).await.expect("lines");
    assert_eq!(seen, [2, 77]);
}

#[tokio::test]
async fn a_slow_reader_loses_events_is_told_and_holds_nobody_up() {
    let world = world();
    let mut stream = UnixStream::connect(world.socket()).await.expect("connected");
    let request = b"GET /v1/events?follow=1 HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.expect("asked");
    while world.events.followers() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // It does not read; the socket's buffers fill, then its queue of eight.
    for _ in 0..20_000 {
        world.events.publish(event());
        tokio::task::yield_now().await;
    }
    assert_eq!(world.status().await.generation, 1, "the agent answers others");
    let mut text = String::new();
    let mut buffer = vec![0; 65536];
    while !text.contains("{\"lost\":") {
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer));
        let n = read.await.expect("in time").expect("read");
        assert_ne!(n, 0, "the stream ended");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    assert!(world.status().await.events_lost_by_readers > 0);
}

#[tokio::test]
async fn a_second_agent_is_refused_and_a_dead_ones_socket_is_replaced() {
    let world = world();
    let error = server::bind(&world.socket()).expect_err("refused");
    assert!(matches!(error, BindError::SecondAgent(_)), "{error}");
    assert!(error.to_string().contains("--socket"), "{error}");

    let other = world.folder.path().join("other.sock");
    drop(std::os::unix::net::UnixListener::bind(&other).expect("bound"));
    assert!(other.exists(), "left behind");
    drop(server::bind(&other).expect("replaced"));
    assert!(!other.exists(), "removed at the end");
    std::fs::write(&other, "precious").expect("written");
    let error = server::bind(&other).expect_err("no socket");
    assert!(matches!(error, BindError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read(&other).expect("kept"), b"precious");
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_group() {
    use std::os::unix::fs::PermissionsExt;
    let world = world();
    let mode = |path: PathBuf| std::fs::metadata(path).expect("there").permissions().mode();
    assert_eq!(mode(world.socket()) & 0o777, 0o660);
    assert_eq!(mode(world.folder.path().join("run")) & 0o777, 0o755);
}

#[tokio::test]
async fn no_agent_and_no_such_path_are_said_plainly() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = Client::new(&folder.path().join("x.sock"));
    let error = nobody.get::<Status>("/v1/status").await.expect_err("nobody");
    assert!(matches!(error, ClientError::NoAgent { .. }), "{error}");
    assert!(error.to_string().contains("systemctl start ztseg"), "{error}");
    let world = world();
    let error = world.client.get::<Status>("/v1/nothing").await.expect_err("nothing");
    assert!(matches!(error, ClientError::Refused(_)), "{error}");
    let error = world.client.get::<Status>("/v1/events?lsat=1").await.expect_err("misspelt");
    assert!(error.to_string().contains("lsat"), "{error}");
}
