//! The real programs: workloads behind interfaces of a network namespace of the test's own, with
//! routes to them, and packets given to the programs at them.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use bytemuck::Pod;
use ztseg::clocks::Clocks;
use ztseg::datapath::sys::{map_delete, map_dump, map_lookup, map_update, open_pinned, test_run};
use ztseg::datapath::{Capacity, Datapath};
use ztseg::image::Image;
use ztseg_common::key::{FlowKey4, FlowKey6, WorkloadKey, workload_interface};
use ztseg_common::shares::{Totals, Usage};
use ztseg_common::state::{FlowState, ticks};
use ztseg_common::value::{Control, Workload};

use super::single::{DROPPED, PASSES, context};
use crate::programs::Unattached;

/// `TC_ACT_REDIRECT`: denied, and the answer goes back.
const ANSWERED: u32 = 7;

/// As many workloads as the generator makes.
pub(super) const WORKLOADS: usize = 8;

/// Of each workload's interface, by number: who is behind it.
pub(super) const ADDRESSES: [[&str; 2]; WORKLOADS] = [
    ["10.1.2.3", "2001:db8:1:2::3"],
    ["10.1.2.4", "2001:db8:1:2::4"],
    ["10.1.2.127", "2001:db8:1:2::1"],
    ["10.1.2.128", "2001:db8:1:3::1"],
    ["10.1.2.129", "2001:db8::1"],
    ["10.1.3.0", "2001:db8:1::1"],
    ["10.2.0.1", "fd00::1"],
    ["192.0.2.7", "2001:db9::1"],
];

/// The addresses of the workloads, with their numbers.
pub(super) fn owners() -> Vec<(IpAddr, usize)> {
    let parse = |(number, addresses): (usize, &[&str; 2])| {
        addresses.map(|address| address.parse().ok().map(|address: IpAddr| (address, number)))
    };
    ADDRESSES.iter().enumerate().flat_map(parse).flatten().collect()
}

/// The programs, their maps, and the interfaces.
pub(super) struct Line {
    unattached: Unattached,
    /// At the interface of a workload: what it is sent, and what it sends.
    programs: [OwnedFd; 2],
    interfaces: Vec<u32>,
    /// Leads everywhere else.
    uplink: u32,
    control: OwnedFd,
    /// The flow tables of each IP version, with what was spilled, and who has how much of them.
    flows4: [OwnedFd; 2],
    flows6: [OwnedFd; 2],
    usage: OwnedFd,
    totals: OwnedFd,
    /// Jiffies a second.
    hz: u32,
}

impl Line {
    /// Loads the programs; to be called in a network namespace of its own.
    pub(super) fn new() -> Result<Self> {
        let interfaces = interfaces()?;
        // Small tables are soon emptied; no case has a hundredth of that.
        let capacity = Capacity { flows: 8192, verdicts: 1 << 20, ..Capacity::default() };
        let mut unattached = Unattached::open("flows", capacity)?;
        let pin = |name: &str| {
            let path = unattached.maps().join(name);
            open_pinned(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let flows4 = [pin("FLOWS4")?, pin("SPILL4")?];
        let flows6 = [pin("FLOWS6")?, pin("SPILL6")?];
        let (control, usage, totals) = (pin("CONTROL")?, pin("USAGE")?, pin("TOTALS")?);
        let datapath = unattached.get()?;
        let programs = [datapath.program_fd("ztseg_tc_to")?, datapath.program_fd("ztseg_tc_from")?];
        let uplink = nix::net::if_::if_nametoindex("zt-flow-up")?;
        let hz = read(&control)?.hz;
        Ok(Self {
            unattached,
            programs,
            interfaces,
            uplink,
            control,
            flows4,
            flows6,
            usage,
            totals,
            hz,
        })
    }

    /// The key of a workload.
    pub(super) fn key(&self, workload: usize) -> WorkloadKey {
        workload_interface(self.interfaces[workload])
    }

    fn datapath(&mut self) -> Result<&mut Datapath> {
        self.unattached.get()
    }

    pub(super) fn commit(&mut self, image: &Image, clocks: &Clocks) -> Result<()> {
        self.datapath()?.commit(image, clocks)?;
        Ok(())
    }

    /// Makes a workload, or gives one other segments.
    pub(super) fn put(&mut self, workload: usize, value: Workload) -> Result<()> {
        let key = self.key(workload);
        Ok(self.datapath()?.put_workload(key, None, value)?)
    }

    pub(super) fn remove(&mut self, workload: usize) -> Result<()> {
        let key = self.key(workload);
        Ok(self.datapath()?.remove_workload(key)?)
    }

    /// Whether connections may be older than the programs.
    pub(super) fn adopt(&self, on: bool) -> Result<()> {
        let control = read(&self.control)?;
        let control = Control { adopt_until: if on { u64::MAX } else { 0 }, ..control };
        map_update(self.control.as_fd(), &0u32, &control).context("cannot set the control word")
    }

    /// Whether a packet passes that a workload sends (`outbound`) or is sent, `from` a workload or
    /// from elsewhere.
    pub(super) fn passes(
        &self,
        workload: usize,
        outbound: bool,
        from: Option<usize>,
        frame: &[u8],
    ) -> Result<bool> {
        let came_in = match from {
            _ if outbound => 0,
            Some(from) => self.interfaces[from],
            None => self.uplink,
        };
        let program = &self.programs[usize::from(outbound)];
        let run = test_run(program.as_fd(), frame, &context(self.interfaces[workload], came_in), 1)
            .context("test run")?;
        match run.value {
            PASSES => Ok(true),
            DROPPED | ANSWERED => Ok(false),
            other => bail!("the program returned {other:#x}"),
        }
    }

    /// Lets all flows have been silent for so many seconds more. The kernel's clock cannot be set.
    pub(super) fn age(&self, seconds: u64) -> Result<()> {
        let by = ticks(seconds * u64::from(self.hz));
        self.flows4.iter().try_for_each(|table| age::<FlowKey4>(table.as_fd(), by))?;
        self.flows6.iter().try_for_each(|table| age::<FlowKey6>(table.as_fd(), by))
    }

    /// How many flows are in the tables.
    pub(super) fn flows(&self) -> Result<usize> {
        let mut count = 0;
        for [v4, v6] in [0, 1].map(|table| [&self.flows4[table], &self.flows6[table]]) {
            count += all::<FlowKey4, FlowState>(v4.as_fd())?.len();
            count += all::<FlowKey6, FlowState>(v6.as_fd())?.len();
        }
        Ok(count)
    }

    /// Empties the tables.
    pub(super) fn forget(&self) -> Result<()> {
        self.flows4.iter().try_for_each(|table| empty::<FlowKey4, FlowState>(table.as_fd()))?;
        self.flows6.iter().try_for_each(|table| empty::<FlowKey6, FlowState>(table.as_fd()))?;
        empty::<u32, Usage>(self.usage.as_fd())?;
        map_update(self.totals.as_fd(), &0u32, &Totals::default()).context("cannot write totals")
    }
}

fn read(control: &OwnedFd) -> Result<Control> {
    let mut value = [Control::default()];
    map_lookup(control.as_fd(), &0u32, &mut value).context("cannot read the control word")?;
    Ok(value[0])
}

fn all<K: Pod, V: Pod>(table: BorrowedFd<'_>) -> Result<Vec<(K, V)>> {
    map_dump(table).context("cannot read a table")
}

fn age<K: Pod>(table: BorrowedFd<'_>, by: u32) -> Result<()> {
    for (key, state) in all::<K, FlowState>(table)? {
        let older = FlowState { last_seen: state.last_seen.wrapping_sub(by), ..state };
        map_update(table, &key, &older).context("cannot write a flow")?;
    }
    Ok(())
}

fn empty<K: Pod, V: Pod>(table: BorrowedFd<'_>) -> Result<()> {
    for (key, _) in all::<K, V>(table)? {
        map_delete(table, &key).context("cannot empty a table")?;
    }
    Ok(())
}

/// Makes an interface for each workload with routes to its addresses, and one to everywhere else;
/// gives the indexes of the first.
fn interfaces() -> Result<Vec<u32>> {
    let mut commands = "link set lo up\n".to_owned();
    let mut add = |name: &str, routes: [&str; 2]| {
        let [v4, v6] = routes;
        // Writing to a string does not fail.
        let _ = write!(
            commands,
            "link add {name} type veth peer name {name}-far\n\
             link set {name}-far up\nlink set {name} up\n\
             route add {v4} dev {name}\nroute add {v6} dev {name}\n"
        );
    };
    let name = |workload: usize| format!("zt-flow{workload}");
    for (workload, addresses) in ADDRESSES.iter().enumerate() {
        add(&name(workload), *addresses);
    }
    add("zt-flow-up", ["0.0.0.0/0", "::/0"]);
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("ip has no standard input")?.write_all(commands.as_bytes())?;
    ensure!(ip.wait()?.success(), "cannot make the interfaces");
    // Of this thread's namespace.
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1")?;
    }
    (0..WORKLOADS).map(|i| Ok(nix::net::if_::if_nametoindex(name(i).as_str())?)).collect()
}
