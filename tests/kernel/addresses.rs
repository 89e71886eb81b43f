//! Addresses that join and leave segments while a generation is in force: each is one map operation, and
//! their flows are judged again at once.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use ztseg::agent::enforcer::Enforcer;
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::{map_by_id, map_delete, map_dump, map_lookup, map_update, open_pinned};
use ztseg::datapath::{
    AddressPut, Capacity, Datapath, DatapathError, InterfaceSide, Options, Tampering,
};
use ztseg::image::{Image, SegmentSet};
use ztseg::inventory::{CgroupFacts, InterfaceFacts, Inventory, Membership};
use ztseg::policy::compile::{Members, compile_with_members};
use ztseg::policy::resolved::{Resolved, SegmentId};
use ztseg::policy::source::Source;
use ztseg_common::ABI_VERSION;
use ztseg_common::addr::Addr;
use ztseg_common::value::{Peer, generation, slot};
use ztseg_tests::process::Place;
use ztseg_tests::traffic::{Ask, Listen, Outcome, Probe, Server, Stream, StreamKind};
use ztseg_tests::world::{World, patient, times};

use crate::Body;
use crate::commit::{KINDS, streams};
use crate::environment::Environment;
use crate::takeover::level;

/// The tests of this file.
pub(crate) const TESTS: &[(&str, Body)] = &[
    ("addresses::live_flows_follow_them", live_flows_follow_them),
    ("addresses::others_lose_nothing", others_lose_nothing),
    ("addresses::a_commit_keeps_them", a_commit_keeps_them),
    ("addresses::a_dead_agent_leaves_nothing_behind", a_dead_agent_leaves_nothing_behind),
    ("addresses::what_has_no_room_is_committed", what_has_no_room_is_committed),
    ("addresses::they_are_put_right", they_are_put_right),
];

/// Open to members of `db`.
const MEMBER: u16 = 2000;
/// Open by the address alone.
const ANYBODY: u16 = 2001;
/// Open to members of `cache`.
const CACHE: u16 = 2002;

const POLICY: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: addresses }
spec:
  segments:
    app: { match: [ { cgroup: /app } ] }
    guest: { match: [ { interface: zt-tap0 } ] }
    db: { match: [ { addresses: [203.0.113.7] } ] }
    cache: { match: [ { addresses: [203.0.113.8] } ] }
  allow:
    - { name: db, from: [app, guest], to: db, ports: [tcp/2000, udp/2000] }
    - { name: cache, from: [app, guest], to: cache, ports: [udp/2002] }
    - { name: net, from: [app, guest], to: [192.0.2.0/28, '2001:db8:1::/64'], ports: [tcp/2001, udp/2001] }
";

struct Scene {
    // In the order in which they end.
    datapath: Datapath,
    image: Image,
    resolved: Resolved,
    memberships: Vec<Membership>,
    options: Options,
    server: Server,
    app: Place,
    world: World,
}

impl Scene {
    fn new(capacity: Capacity) -> Result<Self> {
        let world = World::new()?;
        let app = world.workload("/app")?;
        let listen: Vec<Listen> = [MEMBER, ANYBODY, CACHE]
            .into_iter()
            .flat_map(|port| [false, true].map(|v6| SocketAddr::from((world.uplink.far(v6), port))))
            .flat_map(|to| [Listen::Udp(to), Listen::Tcp(to)])
            .collect();
        let server = Server::start(&world.peer.place(), &listen)?;
        let options = Options {
            bpffs: world.pins().to_owned(),
            cgroup_root: world.cgroup_root().to_owned(),
            capacity,
            debug: false,
        };
        let source = Source { name: "addresses.yaml".into(), text: POLICY.into() };
        let loaded = ztseg::policy::load(&[source]).map_err(|e| anyhow!("{e}"))?;
        let mut inventory = Inventory::new();
        inventory.set_policy(&loaded.resolved);
        for path in ["/", "/app"] {
            let folder = world.cgroup(path)?;
            let (id, level) = (fs::metadata(&folder)?.ino(), level(&folder)?);
            inventory.insert_cgroup(CgroupFacts { id, path: path.to_owned(), level });
        }
        let ifindex = world.host.within(|| Ok(nix::net::if_::if_nametoindex("zt-tap0")?))?;
        let name = "zt-tap0".to_owned();
        inventory.set_interfaces([InterfaceFacts { ifindex, name, host_side: false }]);
        let memberships: Vec<_> = inventory.memberships().cloned().collect();
        let resolved = loaded.resolved;
        let image = compile_with_members(&resolved, &memberships, &Members::new(), &capacity)?;
        world.ensure_apart()?;
        let datapath = start(&world, &options, &image)?;
        Ok(Self { datapath, image, resolved, memberships, options, server, app, world })
    }

    fn segments(&self, names: &[&str]) -> Result<SegmentSet> {
        let id = |name: &&str| {
            let index = self.resolved.segments.iter().position(|s| s.name == *name);
            Ok(SegmentId(u32::try_from(index.context("no such segment")?)?))
        };
        names.iter().map(id).collect()
    }

    /// Puts an address through the agent's interface.
    fn put(&mut self, address: IpAddr, names: &[&str]) -> Result<AddressPut> {
        let segments = self.segments(names)?;
        let (address, clocks) = (Addr::from(address), Clocks::now());
        Ok(Enforcer::put_address(&mut self.datapath, &mut self.image, address, &segments, &clocks)?)
    }

    /// The same, in the generation in force.
    fn put_in_place(&mut self, address: IpAddr, names: &[&str]) -> Result<()> {
        let before = self.datapath.stamp().0;
        let done = self.put(address, names)?;
        let after = self.datapath.stamp().0;
        ensure!(done == AddressPut::InForce, "{address} in {names:?}: {done:?}");
        ensure!(generation(before) == generation(after), "another generation is in force");
        self.in_step()
    }

    /// Both addresses of the other host.
    fn put_peer(&mut self, names: &[&str]) -> Result<()> {
        [false, true].into_iter().try_for_each(|v6| {
            let address = self.world.uplink.far(v6);
            self.put_in_place(address, names)
        })
    }

    fn commit(&mut self) -> Result<()> {
        self.datapath.commit(&self.image, &Clocks::now())?;
        self.in_step()
    }

    /// The map of hosts that is in force.
    fn hosts(&self) -> Result<OwnedFd> {
        let pin = self.world.pins().join(format!("v{ABI_VERSION}/maps/HOSTS"));
        let outer = open_pinned(&pin).with_context(|| format!("no {}", pin.display()))?;
        let mut id = [0u32];
        map_lookup(outer.as_fd(), &slot(self.datapath.stamp().0), &mut id)?;
        Ok(map_by_id(id[0])?)
    }

    /// That the kernel has what the image has.
    fn in_step(&self) -> Result<()> {
        let there: BTreeMap<_, _> =
            map_dump::<Addr, Peer>(self.hosts()?.as_fd())?.into_iter().collect();
        let image: BTreeMap<_, _> = self.image.hosts.iter().collect();
        ensure!(there == image, "the kernel has {} hosts, not {}", there.len(), image.len());
        Ok(())
    }

    /// Whether a datagram of `/app` is answered.
    fn reaches(&self, port: u16, v6: bool) -> Result<bool> {
        let to = SocketAddr::from((self.world.uplink.far(v6), port));
        let probe = Probe::new(Ask::Udp, to).patience(patient(Duration::from_millis(200)));
        Ok(probe.run(&self.app)?.outcome == Outcome::Ok)
    }

    /// What `/app` reaches, in both families.
    fn expect(&self, open: &[u16], when: &str) -> Result<()> {
        for v6 in [false, true] {
            for port in [MEMBER, ANYBODY, CACHE] {
                let reached = self.reaches(port, v6)?;
                ensure!(reached == open.contains(&port), "{when}: {port}, IPv6 {v6}: {reached}");
            }
        }
        Ok(())
    }

    /// How much came in at a port.
    fn arrived(&mut self, port: u16) -> Result<Vec<u64>> {
        let end = format!(":{port}");
        let counts = self.server.counts()?.into_iter();
        Ok(counts.filter(|(to, _)| to.ends_with(&end)).map(|(_, count)| count).collect())
    }

    /// That nothing comes in at a port.
    fn is_silent(&mut self, port: u16) -> Result<Vec<u64>> {
        // What was let through before is read by now.
        thread::sleep(patient(Duration::from_millis(20)));
        let before = self.arrived(port)?;
        thread::sleep(Duration::from_millis(200));
        let after = self.arrived(port)?;
        ensure!(before == after, "denied, but {before:?} became {after:?}");
        Ok(after)
    }

    /// Streams of every kind from both workloads to a port, in both families.
    fn streams(&self, port: u16, kinds: &[StreamKind]) -> Result<Vec<(String, Stream)>> {
        let mut all = Vec::new();
        for place in [&self.app, &self.world.guest.place()] {
            for v6 in [false, true] {
                all.extend(streams(place, (self.world.uplink.far(v6), port).into(), kinds)?);
            }
        }
        Ok(all)
    }
}

/// Puts an image in force, as an agent does when it starts.
fn start(world: &World, options: &Options, image: &Image) -> Result<Datapath> {
    let (options, image) = (options.clone(), Arc::new(image.clone()));
    world.host.within(move || {
        let mut datapath = Datapath::open(&options)?;
        datapath.commit(&image, &Clocks::now())?;
        datapath.attach_cgroup()?;
        let ifindex = nix::net::if_::if_nametoindex("zt-tap0")?;
        datapath.attach_interface(ifindex, "zt-tap0", InterfaceSide::Far)?;
        Ok(datapath)
    })
}

fn all_came_back(streams: Vec<(String, Stream)>) -> Result<()> {
    for (name, stream) in streams {
        let counts = stream.finish()?;
        let whole = counts.received == counts.sent && counts.errors == 0;
        ensure!(whole && counts.sent >= u64::from(times(100)), "{name}: {counts:?}");
    }
    Ok(())
}

/// From the moment that the call returns, nothing arrives; when the address is a member again, all goes
/// on. What an address may be asked by its CIDR goes on all the time.
fn live_flows_follow_them(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(Capacity::default())?;
    scene.expect(&[ANYBODY], "as no member")?;
    scene.put_peer(&["db"])?;
    scene.expect(&[MEMBER, ANYBODY], "in db")?;
    let members = scene.streams(MEMBER, &KINDS[..3])?;
    let others = scene.streams(ANYBODY, &KINDS)?;
    for other in [&["cache"][..], &[], &["cache"]] {
        scene.put_peer(other)?;
        let still = scene.is_silent(MEMBER)?;
        ensure!(scene.reaches(CACHE, false)? == other.contains(&"cache"), "in {other:?}");
        scene.put_peer(&["db"])?;
        // TCP tries again after a while, which doubles.
        let start = Instant::now();
        while scene.arrived(MEMBER)?.iter().zip(&still).any(|(now, then)| now <= then) {
            let long = start.elapsed() > patient(Duration::from_secs(10));
            ensure!(!long, "a member again, but not all goes on");
            thread::sleep(Duration::from_millis(20));
        }
    }
    all_came_back(others)?;
    for (name, stream) in members {
        let counts = stream.finish()?;
        // TCP makes good what was lost.
        let whole = counts.received == counts.sent;
        ensure!(whole == name.starts_with("Tcp"), "{name}: {counts:?}");
    }
    Ok(())
}

/// Hundreds of changes of other addresses, and of the same one without a change of its class.
fn others_lose_nothing(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(Capacity::default())?;
    scene.put_peer(&["db"])?;
    let members = scene.streams(MEMBER, &KINDS)?;
    for n in 0..times(500) {
        let other = IpAddr::from(Ipv4Addr::from(0xc633_6400 + n % 256));
        scene.put_in_place(other, [&["db"][..], &["cache"], &[]][n as usize % 3])?;
        scene.put_peer(&["db"])?;
        thread::sleep(Duration::from_millis(1));
    }
    all_came_back(members)?;
    // They were not all taken for members.
    scene.expect(&[MEMBER, ANYBODY], "at the end")
}

/// The image that is committed next has what was put, and nothing that was taken away: the same image,
/// and one that is compiled with the members that there are.
fn a_commit_keeps_them(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(Capacity::default())?;
    let far = [false, true].map(|v6| scene.world.uplink.far(v6));
    scene.put_peer(&["db"])?;
    scene.commit()?;
    scene.expect(&[MEMBER, ANYBODY], "committed with the member")?;
    // Both generations have that map now.
    scene.put_peer(&["cache"])?;
    scene.expect(&[CACHE, ANYBODY], "changed after that")?;
    // In both there was no peer yet.
    let both = scene.put(far[0], &["db", "cache"])?;
    ensure!(both == AddressPut::NeedsCompile, "{both:?}");
    scene.expect(&[CACHE, ANYBODY], "a class that is not there")?;
    let set = scene.segments(&["db", "cache"])?;
    let members: Members = far.map(|address| (address.into(), set.clone())).into();
    scene.image = compile_with_members(
        &scene.resolved,
        &scene.memberships,
        &members,
        &scene.options.capacity,
    )?;
    scene.commit()?;
    scene.expect(&[MEMBER, CACHE, ANYBODY], "compiled")?;
    scene.put_peer(&["db"])?;
    scene.expect(&[MEMBER, ANYBODY], "in one of them")?;
    scene.put_peer(&["db", "cache"])?;
    scene.put_peer(&[])?;
    scene.expect(&[ANYBODY], "in none")?;
    scene.commit()?;
    scene.expect(&[ANYBODY], "committed without the member")
}

/// An agent dies when the kernel has a change and nobody else knows of it.
fn a_dead_agent_leaves_nothing_behind(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(Capacity::default())?;
    scene.put_peer(&["db"])?;
    let members = scene.streams(MEMBER, &KINDS)?;
    let known = scene.image.clone();
    let more = IpAddr::from([198, 51, 100, 9]);
    scene.put_in_place(more, &["db"])?;
    scene.put_in_place("203.0.113.7".parse()?, &["cache"]).err().context("not a class yet")?;
    scene.image = known;
    let Scene { datapath, image, resolved, memberships, options, server, app, world } = scene;
    drop(datapath);
    let datapath = start(&world, &options, &image)?;
    let mut scene = Scene { datapath, image, resolved, memberships, options, server, app, world };
    scene.in_step()?;
    all_came_back(members)?;
    scene.put_in_place(more, &["db"])?;
    scene.put_peer(&[])?;
    scene.expect(&[ANYBODY], "by the next agent")
}

/// A map has room for some more; then the image is committed whole, up to the ceiling.
fn what_has_no_room_is_committed(_: &Environment) -> Result<()> {
    const PEERS: u32 = 3000;
    let mut scene = Scene::new(Capacity { peers: PEERS, ..Capacity::default() })?;
    scene.put_peer(&["db"])?;
    let members = scene.streams(MEMBER, &KINDS)?;
    let (mut commits, mut put) = (0, 0);
    let error = loop {
        let address = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + put));
        ensure!(put <= PEERS, "no ceiling");
        match scene.put(address, &["db"]) {
            Ok(AddressPut::InForce) => {}
            Ok(AddressPut::Committed(_)) => {
                commits += 1;
                scene.in_step()?;
            }
            Ok(other) => bail!("{address}: {other:?}"),
            Err(error) => break error,
        }
        put += 1;
    };
    let refused = error.downcast_ref::<DatapathError>();
    ensure!(
        matches!(refused, Some(DatapathError::Capacity { option: "peers", .. })),
        "refused: {error:#}"
    );
    scene.in_step()?;
    let hosts = scene.image.hosts.len();
    ensure!(hosts + scene.image.prefixes.len() == PEERS as usize, "{hosts} hosts");
    println!("{put} addresses more, {commits} of them by a commit");
    ensure!((1..5).contains(&commits), "{commits} commits");
    // One that goes makes room for another.
    scene.put_in_place([10, 0, 0, 0].into(), &[])?;
    scene.put_in_place([10, 9, 0, 0].into(), &["db"])?;
    // All this takes less time than what is asked of a stream.
    thread::sleep(patient(Duration::from_millis(500)));
    all_came_back(members)
}

/// What somebody with root writes into the map is noticed and undone.
fn they_are_put_right(_: &Environment) -> Result<()> {
    let mut scene = Scene::new(Capacity::default())?;
    scene.put_peer(&["db"])?;
    let far = Addr::from(scene.world.uplink.far(false));
    let db = scene.image.hosts.get(&far).context("no entry")?;
    let foreign = Addr::v4([198, 51, 100, 9]);
    let map = scene.hosts()?;
    // The first look after a change only sees what is there.
    ensure!(scene.datapath.inspect().is_empty(), "something is altered already");
    let acts = [
        ("removed", far, None),
        ("other", far, Some(Peer::UNKNOWN)),
        ("foreign", foreign, Some(db)),
    ];
    for (what, address, now) in acts {
        match now {
            Some(peer) => map_update(map.as_fd(), &address, &peer)?,
            None => map_delete(map.as_fd(), &address)?,
        }
        let found = scene.datapath.inspect();
        let name = IpAddr::from(address).to_string();
        ensure!(
            found.len() == 1
                && found[0].what == Tampering::AddressesAltered
                && found[0].object.contains(&name)
                && found[0].repaired.is_ok(),
            "{what}: {found:?}"
        );
        scene.in_step()?;
        ensure!(scene.datapath.inspect().is_empty(), "{what}: found again");
        scene.expect(&[MEMBER, ANYBODY], what)?;
    }
    Ok(())
}
