//! What somebody with root alters in the kernel is noticed within a second, put right and told.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg::datapath::measure::{ProgramType, load};
use ztseg::datapath::sys::{self, AttachType, MapSpec, MapType};
use ztseg::datapath::{filters, has_tcx};
use ztseg_common::ABI_VERSION;
use ztseg_common::key::EntryKey;
use ztseg_common::value::{Control, Entry, Workload, slot};
use ztseg_tests::actor::{Actor, Kind};
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server};
use ztseg_tests::world::{World, patient};

use crate::Body;
use crate::environment::{Environment, has_bpf_lsm};

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("life::a_detached_program_is_attached_again", a_detached_program),
    ("life::a_program_in_place_of_ours_is_replaced", a_swapped_program),
    ("life::a_removed_pin_is_no_gap_and_made_again", a_removed_pin),
    ("life::the_control_word_is_put_right", the_control_word),
    ("life::workloads_are_put_right", workloads),
    ("life::verdicts_cannot_be_written_and_maps_are_put_back", verdicts),
];

pub(crate) const ALLOWED: u16 = 2000;
pub(crate) const DENIED: u16 = 2001;
/// What is altered is noticed within.
const NOTICED: Duration = Duration::from_secs(1);

pub(crate) const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: life }
spec:
  segments:
    app: { match: [ { cgroup: /app } ] }
    guest: { match: [ { interface: zt-tap0 } ] }
  allow:
    - { name: open, from: [app, guest], to: any, ports: [udp/2000, tcp/2000] }
";

/// A world with an agent, `/app` and a guest behind an interface, and a server elsewhere.
pub(crate) struct Scene {
    // In the order in which they end.
    pub(crate) agent: Agent,
    _server: Server,
    pub(crate) app: Place,
    pub(crate) world: World,
}

impl Scene {
    pub(crate) fn new() -> Result<Self> {
        Self::with(POLICY, "", &[])
    }

    pub(crate) fn with(policy: &str, settings: &str, args: &[&str]) -> Result<Self> {
        let world = World::new()?;
        let app = world.workload("/app")?;
        let listen = [ALLOWED, DENIED].map(|port| {
            let to = (world.uplink.far(false), port).into();
            [Listen::Udp(to), Listen::Tcp(to)]
        });
        let server = Server::start(&world.peer.place(), &listen.concat())?;
        let agent = Agent::start_with(&world, policy, settings, args)?;
        Ok(Self { agent, _server: server, app, world })
    }

    fn ask(&self, from: &Place, port: u16) -> Result<Outcome> {
        let probe = Probe::new(Ask::Udp, (self.world.uplink.far(false), port).into());
        Ok(probe.patience(patient(Duration::from_millis(200))).run(from)?.outcome)
    }

    /// That the policy is enforced at both kinds of hooks, or nowhere.
    pub(crate) fn check(&self, enforced: bool) -> Result<()> {
        for from in [&self.app, &self.world.guest.place()] {
            let found = [self.ask(from, ALLOWED)?, self.ask(from, DENIED)?];
            ensure!(found[0] == Outcome::Ok, "what is allowed is {found:?}");
            ensure!((found[1] != Outcome::Ok) == enforced, "{found:?}, enforced: {enforced}");
        }
        if has_bpf_lsm() {
            let (_, said) = Actor::start(&self.app)?.try_socket(Kind::Packet)?;
            ensure!(said.is_done() != enforced, "a packet socket: {said:?}, enforced: {enforced}");
        }
        Ok(())
    }

    fn pin(&self, folder: &str, name: &str) -> PathBuf {
        self.world.pins().join(format!("v{ABI_VERSION}")).join(folder).join(name)
    }

    fn open(&self, folder: &str, name: &str) -> Result<OwnedFd> {
        let pin = self.pin(folder, name);
        sys::open_pinned(&pin).with_context(|| format!("cannot open {}", pin.display()))
    }

    /// The inner map in force of an outer one.
    fn inner(&self, name: &str) -> Result<(OwnedFd, OwnedFd, u32)> {
        let mut control = [Control::default()];
        sys::map_lookup(self.open("maps", "CONTROL")?.as_fd(), &0u32, &mut control)?;
        let (outer, slot) = (self.open("maps", name)?, slot(control[0].stamp));
        let mut id = [0u32];
        sys::map_lookup(outer.as_fd(), &slot, &mut id)?;
        Ok((outer, sys::map_by_id(id[0])?, slot))
    }

    /// Alters something, and waits until the agent has noticed it, in time, and put it right.
    fn alter(&self, what: &str, object: &str, alter: impl FnOnce() -> Result<()>) -> Result<()> {
        let count = |status: &Value| status["tampering"][what].as_u64();
        let before = count(&self.agent.status()?).context("no such kind of tampering")?;
        let start = SystemTime::now();
        alter()?;
        let status = self.agent.wait_for_status(|status| count(status) > Some(before))?;
        let is_it = |e: &&Value| e["what"] == what && e["object"].to_string().contains(object);
        let records = status["security"].as_array().context("no list")?;
        let record = records.iter().rev().find(is_it);
        let record = record.with_context(|| format!("{object} is not in {records:#?}"))?;
        ensure!(record["repaired"] == true && record["kind"] == "security", "{record:#}");
        let time: jiff::Timestamp = record["time"].as_str().context("no time")?.parse()?;
        let late = SystemTime::from(time).duration_since(start).unwrap_or_default();
        println!("{what}: {object}: noticed after {} ms", late.as_millis());
        ensure!(late <= patient(NOTICED), "noticed after {late:?} only");
        self.agent.wait_for_event(|event| event == record)?;
        self.check(true)
    }

    /// That this one thing was noticed once, and nothing else was.
    fn quiet(&self, expected: u64) -> Result<()> {
        thread::sleep(patient(NOTICED));
        let status = self.agent.status()?;
        let counts = status["tampering"].as_object().context("no counts")?;
        let all: u64 = counts.values().filter_map(Value::as_u64).sum();
        ensure!(all == expected, "{all} findings, not {expected}: {:#}", status["security"]);
        Ok(())
    }
}

/// The index of the guest's interface.
pub(crate) fn ifindex(world: &World) -> Result<u32> {
    world.host.within(|| Ok(nix::net::if_::if_nametoindex("zt-tap0")?))
}

fn a_detached_program(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    scene.check(true)?;
    let mut programs = vec!["ztseg_egress", "ztseg_ingress", "ztseg_create", "ztseg_connect4"];
    if has_bpf_lsm() {
        programs.push("ztseg_packet");
    }
    for program in &programs {
        scene.alter("link-detached", program, || {
            let link = scene.open("links", program)?;
            Ok(sys::link_detach(link.as_fd())?)
        })?;
    }
    let index = ifindex(&scene.world)?;
    let mut expected = programs.len() as u64 + 1;
    scene.alter("link-detached", "ztseg_tc_from at zt-tap0", || {
        if has_tcx() {
            let link = scene.open("links", &format!("ztseg_tc_from@{index}"))?;
            return Ok(sys::link_detach(link.as_fd())?);
        }
        // Both filters go with it.
        expected += 1;
        scene.world.host.within(move || Ok(filters::remove_qdisc(index)?))
    })?;
    scene.quiet(expected)?;
    let (_, compact, _) = scene.agent.command(&["events"])?;
    ensure!(compact.contains("SECURITY link-detached: ztseg_egress at "), "{compact}");
    let (_, table, _) = scene.agent.command(&["events", "-o", "table"])?;
    ensure!(table.contains("SECURITY"), "{table}");
    // An interface that goes is no tampering.
    scene.world.host.batch("link del zt-tap0\n")?;
    scene.quiet(expected)?;
    scene.agent.stop()
}

fn a_swapped_program(_: &Environment) -> Result<()> {
    /// `r0 = 1; exit`: everything passes.
    const PASS: [u64; 2] = [0x1_0000_00b7, 0x95];
    let mut scene = Scene::new()?;
    scene.alter("program-replaced", "ztseg_egress", || {
        let pass = load(ProgramType::CgroupSkb, Some(AttachType::CgroupEgress), &PASS)?;
        let link = scene.open("links", "ztseg_egress")?;
        Ok(sys::link_update(link.as_fd(), pass.as_fd())?)
    })?;
    scene.quiet(1)?;
    scene.agent.stop()
}

fn a_removed_pin(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    for (folder, name) in [("links", "ztseg_egress"), ("maps", "CONTROL"), ("maps", "ENTRIES")] {
        let pin = scene.pin(folder, name);
        scene.alter("pin-removed", name, || {
            fs::remove_file(&pin)?;
            // It is no gap.
            scene.check(true)
        })?;
        ensure!(pin.exists(), "{} is not there again", pin.display());
    }
    // Another link in place of ours.
    scene.alter("pin-removed", "ztseg_ingress", || {
        let pin = scene.pin("links", "ztseg_ingress");
        fs::remove_file(&pin)?;
        Ok(sys::pin(scene.open("links", "ztseg_egress")?.as_fd(), &pin)?)
    })?;
    scene.alter("pin-removed", "SOCKETS", || Ok(fs::remove_dir_all(scene.world.pins())?))?;
    // The pins are what keeps it in force.
    scene.agent.kill9();
    scene.check(true)?;
    scene.agent.run(&[])?;
    scene.check(true)?;
    let links = fs::read_dir(scene.pin("links", ""))?.count();
    let expected = if has_tcx() { 9 } else { 7 } + usize::from(has_bpf_lsm());
    ensure!(links == expected, "{links} links are pinned, not {expected}");
    scene.quiet(0)?;
    scene.agent.stop()
}

fn the_control_word(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let control = scene.open("maps", "CONTROL")?;
    let mut now = [Control::default()];
    sys::map_lookup(control.as_fd(), &0u32, &mut now)?;
    let write = |value: Control| Ok(sys::map_update(control.as_fd(), &0u32, &value)?);
    // As before any policy: everything would pass.
    scene.alter("control-altered", "stamp", || write(Control::default()))?;
    scene.alter("control-altered", "levels", || write(Control { levels: 0, ..now[0] }))?;
    scene.quiet(2)?;
    scene.agent.stop()
}

fn workloads(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let (_, map, _) = scene.inner("WORKLOADS")?;
    let cgroup = scene.app.cgroup.as_ref().context("a cgroup")?;
    let key = fs::metadata(cgroup)?.ino();
    let name = format!("cgroup {key}");
    scene.alter("workloads-altered", &name, || Ok(sys::map_delete(map.as_fd(), &key)?))?;
    let forged = Workload { subject: 1, identity: 1, ..Workload::default() };
    scene.alter("workloads-altered", &name, || Ok(sys::map_update(map.as_fd(), &key, &forged)?))?;
    let foreign = fs::metadata(scene.world.cgroup("/app/below")?)?.ino();
    let name = format!("cgroup {foreign}");
    scene.alter("workloads-altered", &name, || {
        Ok(sys::map_update(map.as_fd(), &foreign, &forged)?)
    })?;
    scene.quiet(3)?;
    scene.agent.stop()
}

fn verdicts(_: &Environment) -> Result<()> {
    let mut scene = Scene::new()?;
    let (outer, entries, slot) = scene.inner("ENTRIES")?;
    let key = EntryKey { subject: 2, kind: 3, direction: 2, ..EntryKey::default() };
    let error = sys::map_update(entries.as_fd(), &key, &Entry::default());
    let error = error.expect_err("the map is frozen");
    ensure!(error.raw_os_error() == Some(nix::errno::Errno::EPERM as i32), "{error}");

    let spec = MapSpec {
        map_type: MapType::Hash,
        key_size: size_of::<EntryKey>(),
        value_size: size_of::<Entry>(),
        max_entries: 1,
        flags: 0,
    };
    let empty = sys::map_create("ENTRIES", &spec, None)?;
    scene.alter("map-replaced", &format!("ENTRIES[{slot}]"), || {
        Ok(sys::map_update(outer.as_fd(), &slot, &empty.as_raw_fd())?)
    })?;
    scene.alter("map-replaced", &format!("ENTRIES[{slot}]"), || {
        Ok(sys::map_delete(outer.as_fd(), &slot)?)
    })?;
    scene.quiet(2)?;
    scene.agent.stop()
}
