//! What an agent of another ABI version left in force, and what is left when an agent detaches.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use ztseg::datapath::{filters, has_tcx};
use ztseg_common::ABI_VERSION;
use ztseg_tests::traffic::{Listen, Server, Stream, StreamKind};
use ztseg_tests::world::pace;

use crate::Body;
use crate::environment::Environment;
use crate::life::{ALLOWED, DENIED, POLICY, Scene, ifindex};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("upgrade::from_another_version_loses_no_packet_and_passes_none", from_another_version),
    ("upgrade::on_exit_detach_leaves_nothing", on_exit_detach_leaves_nothing),
    ("upgrade::on_exit_keep_leaves_all_in_force", on_exit_keep_leaves_all_in_force),
];

/// Both directions are isolated. Peers may ask `/app` here.
const IN: u16 = 2002;

fn from_another_version(_: &Environment) -> Result<()> {
    let policy = format!("{POLICY}    - {{ from: any, to: app, ports: [tcp/{IN}, udp/{IN}] }}\n");
    let mut scene = Scene::with(&policy, "", &[])?;
    let to = |port| SocketAddr::from((scene.world.uplink.far(false), port));
    let near = |port| SocketAddr::from((scene.world.uplink.near(false), port));
    let listen = [IN, DENIED].map(|port| [Listen::Udp(near(port)), Listen::Tcp(near(port))]);
    let _server = Server::start(&scene.app, &listen.concat())?;
    let interval = pace(Duration::from_millis(2));
    let (app, guest, peer) = (&scene.app, scene.world.guest.place(), scene.world.peer.place());
    let kinds =
        [StreamKind::Tcp, StreamKind::Udp, StreamKind::UdpUnconnected, StreamKind::TcpConnects];
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for (place, name, open, closed) in [
        (app, "out of a cgroup", to(ALLOWED), to(DENIED)),
        (&guest, "out of an interface", to(ALLOWED), to(DENIED)),
        (&peer, "into a cgroup", near(IN), near(DENIED)),
    ] {
        for kind in kinds {
            let stream = Stream::start(place, kind, open, interval).context(name)?;
            allowed.push((format!("{kind:?} {name}"), stream));
        }
        for kind in [StreamKind::Udp, StreamKind::UdpUnconnected] {
            let stream = Stream::start(place, kind, closed, interval).context(name)?;
            denied.push((format!("{kind:?} {name}"), stream));
        }
    }
    let pins = scene.world.pins().to_owned();
    let (this, other) = (pins.join(format!("v{ABI_VERSION}")), pins.join("v0"));
    for kill in [false, true, false] {
        if kill {
            scene.agent.kill9();
        } else {
            scene.agent.stop()?;
        }
        fs::rename(&this, &other).context("pretending to be another version")?;
        scene.agent.run(&[])?;
        ensure!(!other.exists(), "{} is still there", other.display());
        ensure!(this.join("links/ztseg_egress").exists(), "nothing is pinned");
        scene.check(true)?;
    }
    for (name, stream) in allowed {
        let counts = stream.finish().with_context(|| name.clone())?;
        ensure!(
            counts.received == counts.sent && counts.errors == 0 && counts.sent > 100,
            "{name} lost something: {counts:?}"
        );
    }
    for (name, stream) in denied {
        let counts = stream.finish().with_context(|| name.clone())?;
        ensure!(counts.received == 0 && counts.sent > 1, "{name}: some came back: {counts:?}");
    }
    let log = scene.agent.log();
    ensure!(log.contains("of layouts v0"), "it does not say what it removed: {log}");
    scene.agent.stop()
}

fn on_exit_detach_leaves_nothing(_: &Environment) -> Result<()> {
    let mut scene = Scene::with(POLICY, "onExit: detach\n", &[])?;
    let index = ifindex(&scene.world)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        scene.check(true)?;
        scene.agent.stop_by(signal)?;
        scene.check(false)?;
        ensure!(!scene.world.pins().exists(), "{} is still there", scene.world.pins().display());
        if !has_tcx() {
            let gone = scene.world.host.within(move || Ok(filters::remove_qdisc(index)))?;
            ensure!(gone.is_err(), "the clsact qdisc was still there");
        }
        scene.agent.run(&[])?;
    }
    scene.check(true)?;
    scene.agent.stop()
}

/// The flag wins over the configuration.
fn on_exit_keep_leaves_all_in_force(_: &Environment) -> Result<()> {
    let mut scene = Scene::with(POLICY, "onExit: detach\n", &["--on-exit", "keep"])?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        scene.agent.stop_by(signal)?;
        scene.check(true)?;
        scene.agent.run(&["--on-exit", "keep"])?;
        scene.check(true)?;
    }
    scene.agent.stop()
}
