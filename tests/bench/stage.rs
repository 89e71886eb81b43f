//! Where everything happens: a world, a server behind one of its interfaces, and a client in one
//! of its cgroups. Every configuration sees the same packets.
//!
//! ```text
//!   client (a cgroup of `host`) ── zt-tap0 ═══ eth0 ── server (`guest`)
//! ```
//! The cgroup hooks are the client's, the TC hooks those of `zt-tap0`, behind which the server is
//! the workload. Client, server and all that the kernel does between them run on one CPU.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use ztseg::clocks::Clocks;
use ztseg::datapath::{Capacity, Datapath, Options};
use ztseg_tests::process::{Place, Process};
use ztseg_tests::world::World;

use crate::generator::{self, Done, Order, Work};
use crate::policy::{CAPACITY, Input, Shape, Subjects};

/// Set by Ctrl-C: everything is removed on the way out.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Fails when the run was interrupted.
pub(crate) fn go_on() -> Result<()> {
    ensure!(!STOP.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// How often the reader of events looks, as the agent does.
const READER: Duration = Duration::from_millis(20);

/// A world with a client and a server in it.
#[derive(Debug)]
pub(crate) struct Stage {
    // Dropped in this order: processes, then the world.
    client: Process,
    server: Process,
    pub(crate) subjects: Subjects,
    pub(crate) client_address: Ipv4Addr,
    pub(crate) server_address: Ipv4Addr,
    pub(crate) world: World,
}

impl Stage {
    /// Makes the world and goes into its `host` namespace with this thread.
    pub(crate) fn new(cpu: usize) -> Result<Self> {
        let world = World::new()?;
        let host = File::open(world.host.path()).context("cannot open the namespace host")?;
        let client_place = world.workload("/client")?;
        // The world has made sure that this is not the machine's.
        setns(host, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace host")?;
        let ifindex = if_nametoindex(world.tap.interface.as_str())
            .context("the world's interface has no index")?;
        let (IpAddr::V4(client_address), IpAddr::V4(server_address)) =
            (world.tap.near(false), world.tap.far(false))
        else {
            bail!("the world's link has no IPv4 addresses");
        };
        let subjects = Subjects {
            cgroups: chain(world.cgroup_root(), &world.cgroup("/client")?)?,
            ifindex,
            network: IpNet::V4(Ipv4Net::new(server_address, 28)?.trunc()),
        };
        let server = start(&world.guest.place(), "server", cpu)?;
        let client = start(&client_place, "client", cpu)?;
        Ok(Self { client, server, subjects, client_address, server_address, world })
    }

    /// Lets the client work, while the events of `reading` are read.
    pub(crate) fn measure(
        &mut self,
        work: Work,
        time: Duration,
        round: u16,
        mut reading: Option<&mut Datapath>,
    ) -> Result<Done> {
        go_on()?;
        let milliseconds = u64::try_from(time.as_millis())?;
        let server_pid = self.server.pid();
        let order = Order { work, server: self.server_address, server_pid, milliseconds, round };
        self.client.say(&serde_json::to_string(&order)?).context("the client is gone")?;
        let deadline = Instant::now() + time + Duration::from_secs(10);
        loop {
            let wait = if reading.is_some() { READER } else { time + Duration::from_secs(10) };
            match self.client.wait_for_output("nanoseconds", wait) {
                Ok(line) => return serde_json::from_str(&line).context("the client's answer"),
                Err(error) if Instant::now() > deadline || reading.is_none() => return Err(error),
                Err(_) => {}
            }
            if let Some(datapath) = &mut reading {
                datapath.drain_events(&mut |_| ());
            }
        }
    }

    /// A datapath of its own with a policy of this shape in force; attached to nothing.
    pub(crate) fn datapath(&self, name: &str, shape: Shape) -> Result<Datapath> {
        let mut datapath = self.empty_datapath(name, CAPACITY)?;
        datapath.commit(&Input::new(&self.subjects, shape).compile()?, &Clocks::now())?;
        Ok(datapath)
    }

    /// A datapath of its own without a policy; attached to nothing.
    pub(crate) fn empty_datapath(&self, name: &str, capacity: Capacity) -> Result<Datapath> {
        go_on()?;
        let options = Options {
            bpffs: self.world.pins().join(name),
            cgroup_root: self.world.cgroup_root().to_owned(),
            capacity,
            debug: false,
        };
        Ok(Datapath::open(&options)?)
    }

    /// Segments of many packets on the link, or frames of one.
    pub(crate) fn segmentation_offload(&self, on: bool) -> Result<()> {
        let count = if on { 65_535 } else { 1 };
        let set = |interface: &str| format!("link set dev {interface} gso_max_segs {count}\n");
        self.world.host.batch(&set(&self.world.tap.interface))?;
        self.world.guest.batch(&set(&self.world.tap.far_interface))
    }
}

fn start(place: &Place, role: &str, cpu: usize) -> Result<Process> {
    let own = std::env::current_exe().context("this program's file is unknown")?;
    let mut process = place.spawn(own, &[generator::ARGUMENT, role, &cpu.to_string()])?;
    process.wait_for_output("ready", Duration::from_secs(10))?;
    Ok(process)
}

/// The cgroups from `root` down to `leaf`, with their levels below the hierarchy's root, whose
/// kernfs id is one.
fn chain(root: &Path, leaf: &Path) -> Result<Vec<(u64, u32)>> {
    let id = |path: &Path| -> Result<u64> {
        Ok(fs::metadata(path).with_context(|| format!("no cgroup {}", path.display()))?.ino())
    };
    let mut level = 0;
    for above in root.ancestors() {
        if id(above)? == 1 {
            break;
        }
        level += 1;
    }
    Ok(vec![(id(root)?, level), (id(leaf)?, level + 1)])
}
