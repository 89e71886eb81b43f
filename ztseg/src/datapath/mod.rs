//! The datapath: the kernel programs and their maps, as the agent uses them.
//!
//! This is the contract that the agent is written against; everything below it talks to the
//! kernel. One [`Datapath`] is owned by one task.

pub mod batch;
mod bpffs;
mod clock;
mod control;
mod debug;
mod detach;
mod error;
pub mod filters;
mod generation;
mod guard;
mod hosts;
mod layout;
mod links;
mod lsm;
pub mod measure;
mod memory;
pub mod object;
mod pin;
mod programs;
mod report;
pub mod sweep;
pub mod sys;
mod takeover;
mod turn;
mod versions;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use ztseg_common::event::{EVENT_VERSION, Event};
use ztseg_common::key::{MAX_CGROUP_LEVEL, WorkloadKey, interface_of, scope, workload_interface};
use ztseg_common::shares::Usage;
use ztseg_common::value::{
    CONTROL_FAR_INTERFACES, CONTROL_WHOLE_HIERARCHY, Control, WORKLOAD_HOST, WORKLOAD_HOST_SIDE,
    Workload, generation, slot,
};

use self::control::ControlWord;
pub use self::error::DatapathError;
use self::generation::{Content, Generation, OUTER};
pub use self::guard::{Finding, Tampering};
pub use self::hosts::AddressPut;
use self::links::Link;
pub use self::lsm::PacketSockets;
use self::pin::PinnedMap;
use self::programs::RARE_PROGRAMS;
pub use self::programs::{CGROUP_PROGRAMS, TC_PROGRAMS, has_tcx};
use self::programs::{PINNED_MAPS, Pins, TcHook, kernel};
pub use self::report::{MapStatus, ProgramStatus};
use self::sweep::{Sweeper, Swept};
use self::takeover::Stand;
use self::turn::Turn;

use crate::clocks::Clocks;
use crate::image::Image;

/// The folder that the maps are pinned in, below the configured one.
pub fn map_pins(bpffs: &Path) -> PathBuf {
    Pins::new(bpffs).maps()
}

/// Ceilings for the maps, in entries; configuration key `capacity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Flows kept in the flow table.
    pub flows: u32,
    /// Verdict entries of one policy.
    pub verdicts: u32,
    /// Addresses and prefixes of one policy.
    pub peers: u32,
    /// Workloads on this host.
    pub workloads: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { flows: 131_072, verdicts: 65_536, peers: 262_144, workloads: 16_384 }
    }
}

/// What [`Datapath::open`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder for the pins, on a bpffs.
    pub bpffs: PathBuf,
    /// The cgroup that the cgroup programs attach to.
    pub cgroup_root: PathBuf,
    /// Ceilings.
    pub capacity: Capacity,
    /// Load the programs with their debug lines (aya-log).
    pub debug: bool,
}

/// Which side of an interface its workload is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceSide {
    /// Taps and veths: the workload is on the far side, what comes in is what it sends.
    Far,
    /// Network cards: the workload is this host's side, what goes out is what it sends.
    Host,
}

/// Where the programs keep their verdicts on sockets.
#[derive(Debug)]
pub struct Verdicts {
    /// The storage of sockets ([`ztseg_common::state::SocketState`]).
    pub sockets: OwnedFd,
    control: OwnedFd,
}

impl Verdicts {
    /// What a verdict that holds is stamped with now.
    pub fn stamp(&self) -> io::Result<u64> {
        let mut control = [Control::default()];
        sys::map_lookup(self.control.as_fd(), &0u32, &mut control)?;
        Ok(control[0].stamp)
    }
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The generation that is in force now.
    pub generation: u32,
}

/// The kernel programs and their maps.
pub struct Datapath {
    ebpf: Ebpf,
    events: RingBuf<MapData>,
    control: ControlWord,
    outer: HashMap<&'static str, OwnedFd>,
    /// What is pinned: the outer maps and the others.
    maps: Vec<PinnedMap>,
    /// The links that are attached, by their pins.
    links: BTreeMap<PathBuf, Link>,
    /// The kernel's ids of the programs, by name.
    program_ids: HashMap<String, u32>,
    pins: Pins,
    options: Options,
    /// The generation in force, once there was a commit by this agent.
    generation: Option<Generation>,
    /// What the generation in force knows of this host, interface flags included.
    workloads: HashMap<WorkloadKey, Workload>,
    interfaces: HashMap<u32, Interface>,
    sweeper: Sweeper,
    cgroup_attached: bool,
    packet_sockets: PacketSockets,
    /// The cgroup root as a workload; zero where it is not there (yet).
    host: WorkloadKey,
    turn: Turn,
    stand: Stand,
    // Released when the datapath is dropped.
    lock: File,
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath")
            .field("options", &self.options)
            .field("control", &self.control.written())
            .field("workloads", &self.workloads.len())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Interface {
    name: String,
    flags: u32,
    /// Which programs are where.
    hooks: [TcHook; 2],
}

/// Events that one workload may send a second on one CPU.
const EVENT_BUDGET: u32 = 512;
/// How long after the attachment a TCP segment of an unknown flow is judged in both orientations:
/// connections that are older than the attachment may be silent for long.
const ADOPTION: Duration = Duration::from_secs(3600);

impl Datapath {
    /// Loads the programs, adopting what is pinned. Attaches nothing that is not attached.
    pub fn open(options: &Options) -> Result<Self, DatapathError> {
        let lock = bpffs::prepare(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        let doing = |e| kernel("finding out which version decides", e);
        for other in versions::others(&options.bpffs, &pins).map_err(doing)? {
            Turn::share(&pins.maps(), &other).map_err(doing)?;
        }
        let mut ebpf = programs::load(options, &pins)?;
        if options.debug {
            debug::start(&mut ebpf);
        }
        let packet_sockets = programs::load_packet(&mut ebpf);
        let mut turn = Turn::open(&pins.root).map_err(doing)?;
        let stand = takeover::begin(&mut turn, &options.bpffs, &pins).map_err(doing)?;
        let mut outer = HashMap::new();
        for name in OUTER {
            outer.insert(name, open_map(&pins, name)?);
        }
        let mut control = ControlWord::open(open_map(&pins, "CONTROL")?.as_fd())
            .map_err(|e| kernel("mapping the control page", e))?;
        let hz = clock::jiffies_per_second().map_err(|e| kernel("measuring the clock", e))?;
        let cookie = sys::netns_cookie().map_err(|e| kernel("asking for the netns cookie", e))?;
        control.set_host(hz, EVENT_BUDGET, cookie);
        let sweep = programs::program_fd(&ebpf, "ztseg_sweep")
            .and_then(|fd| Ok(Sweeper::open(&pins, fd.try_clone_to_owned()?, hz)?));
        let sweeper = sweep.map_err(|e| kernel("opening the flow tables", e))?;
        let pinned = |name| {
            PinnedMap::open(&pins.maps(), name)
                .map_err(|e| kernel(&format!("opening the map {name}"), e))
        };
        let maps = OUTER.into_iter().chain(PINNED_MAPS).map(pinned).collect::<Result<_, _>>()?;
        let program_ids = programs::status(&ebpf, |_| Vec::new())
            .map_err(|e| kernel("reading program info", e))?
            .into_iter()
            .map(|program| (program.name, program.id))
            .collect();
        let events = ebpf
            .take_map("EVENTS")
            .context("no map EVENTS in the object")
            .and_then(|map| Ok(RingBuf::try_from(map)?))
            .map_err(|e| kernel("opening the ring buffer", e))?;
        Ok(Self {
            ebpf,
            events,
            control,
            outer,
            maps,
            links: BTreeMap::new(),
            program_ids,
            pins,
            options: options.clone(),
            generation: None,
            workloads: HashMap::new(),
            interfaces: HashMap::new(),
            sweeper,
            cgroup_attached: false,
            packet_sockets,
            host: cgroup_id(&options.cgroup_root).unwrap_or_default(),
            turn,
            stand,
            lock,
        })
    }

    /// Puts `image` in force as a new generation: fills the idle slot, switches, waits until no
    /// program reads the old one. On an error the old generation stays.
    ///
    /// `clocks` says when its rules end on the kernel's clock.
    pub fn commit(&mut self, image: &Image, clocks: &Clocks) -> Result<Committed, DatapathError> {
        generation::check_capacity(image, &self.options.capacity)?;
        let old = self.control.written().stamp;
        // Zero in a stamp means "no policy".
        let number = generation(old).checked_add(1).unwrap_or(1);
        let stamp = u64::from(number) << 32;
        let workloads: HashMap<_, _> =
            image.workloads.iter().map(|(key, w)| (*key, self.with_flags(*key, *w))).collect();
        self.control.add_levels(image.levels);
        let doing = |e| kernel(&format!("writing generation {number}"), e);
        let capacity = &self.options.capacity;
        let content = Content { image, workloads: &workloads, capacity, clocks };
        let before = self.generation.as_ref();
        let new = generation::fill(&self.outer, slot(stamp), content, before).map_err(doing)?;
        self.control.set_stamp(stamp);
        self.workloads = workloads;
        self.share_out();
        let waited = generation::wait_for_grace_period(&self.outer, &new);
        self.generation = Some(new);
        waited.map_err(doing)?;
        Ok(Committed { generation: number })
    }

    /// Says how much of the flow tables each workload may have.
    fn share_out(&mut self) {
        self.control.set_shares(sweep::shares(self.options.capacity.flows, self.workloads.len()));
    }

    /// Lets some of the flows that have been silent for too long give their entries back; to be
    /// called once a second.
    pub fn sweep(&mut self) -> Result<Swept, DatapathError> {
        let doing = |e| kernel("sweeping the flow tables", e);
        let swept = self.sweeper.step().map_err(doing)?;
        if self.sweeper.is_over() {
            let alive = self.workloads.keys().map(|key| scope(*key)).collect();
            self.sweeper.close_accounts(&alive).map_err(doing)?;
        }
        Ok(swept)
    }

    /// What the workload has of the flow tables.
    pub fn flows_of(&self, key: WorkloadKey) -> Result<Usage, DatapathError> {
        let usage = self.sweeper.usage().map_err(|e| kernel("reading the accounts of flows", e))?;
        Ok(usage.get(&scope(key)).copied().unwrap_or_default())
    }

    fn with_flags(&self, key: WorkloadKey, mut workload: Workload) -> Workload {
        let interface = interface_of(key).and_then(|i| self.interfaces.get(&i));
        workload.flags = interface.map_or(0, |i| i.flags);
        if key == self.host {
            workload.flags |= WORKLOAD_HOST;
        }
        workload
    }

    /// Attaches the cgroup programs to the cgroup root; does nothing when they are. True: some program
    /// was not attached before, neither by an earlier agent.
    pub fn attach_cgroup(&mut self) -> Result<bool, DatapathError> {
        let mut any_new = false;
        if !self.cgroup_attached {
            let root = &self.options.cgroup_root;
            let whole = is_whole_hierarchy(root)
                .map_err(|e| kernel(&format!("opening the cgroup {}", root.display()), e))?;
            self.control.set_flag(CONTROL_WHOLE_HIERARCHY, whole);
            // Before, for the first packets that the programs see; and what came in between.
            self.carry_flows()?;
            let root = &self.options.cgroup_root;
            let (links, new) = programs::attach_cgroup(&self.ebpf, &self.pins, root)?;
            self.links.extend(links);
            let packets = &mut self.packet_sockets;
            self.links.extend(programs::attach_packet(&self.ebpf, &self.pins, root, packets));
            any_new = new;
            self.carry_flows()?;
            self.cgroup_attached = true;
        }
        Ok(any_new)
    }

    /// What becomes of packet sockets of isolated workloads.
    pub const fn packet_sockets(&self) -> &PacketSockets {
        &self.packet_sockets
    }

    /// Copies the flows of other versions that this one does not know, where they are up to date.
    fn carry_flows(&self) -> Result<(), DatapathError> {
        if self.stand == Stand::Decides {
            return Ok(());
        }
        // Who stands back may have seen a reply first.
        let trust = self.stand == Stand::StandsBack;
        let doing = "taking over the flows of another version";
        let others = versions::others(&self.options.bpffs, &self.pins);
        for other in others.map_err(|e| kernel(doing, e))? {
            let carried =
                versions::carry_flows(&other, &self.pins, trust).map_err(|e| kernel(doing, e))?;
            self.sweeper.credit(&carried).map_err(|e| kernel(doing, e))?;
            let flows: u32 = carried.values().map(|credit| credit.v4 + credit.v6).sum();
            tracing::debug!("{flows} flows of {} were taken over", other.display());
        }
        Ok(())
    }

    /// Attaches the TC programs to an interface of the agent's network namespace.
    pub fn attach_interface(
        &mut self,
        ifindex: u32,
        name: &str,
        side: InterfaceSide,
    ) -> Result<(), DatapathError> {
        let ethernet = sys::has_ethernet_header(name)
            .map_err(|e| kernel(&format!("asking what kind of device {name} is"), e))?;
        let flags = if side == InterfaceSide::Host { WORKLOAD_HOST_SIDE } else { 0 };
        let hooks = programs::tc_hooks(side, ethernet);
        self.interfaces.insert(ifindex, Interface { name: name.to_owned(), flags, hooks });
        self.note_far_interfaces();
        // The programs read the flags with the workload, which may be in force already.
        let key = workload_interface(ifindex);
        if let Some(workload) = self.workloads.get(&key).copied() {
            self.put_workload(key, None, workload)?;
        }
        let ebpf = &mut self.ebpf;
        let (links, new) = programs::attach_interface(ebpf, &self.pins, (ifindex, name), hooks)?;
        self.links.extend(links);
        if new {
            let window = u64::try_from(ADOPTION.as_nanos()).unwrap_or(u64::MAX);
            self.control.set_adopt_until(sys::boot_time_ns() + window);
        }
        Ok(())
    }

    fn note_far_interfaces(&mut self) {
        let far = self.interfaces.values().any(|i| i.flags & WORKLOAD_HOST_SIDE == 0);
        self.control.set_flag(CONTROL_FAR_INTERFACES, far);
    }

    /// Forgets an interface that is no longer a workload, or no longer there.
    pub fn detach_interface(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        let Some(interface) = self.interfaces.remove(&ifindex) else { return Ok(()) };
        self.note_far_interfaces();
        for program in TC_PROGRAMS {
            self.links.remove(&self.pins.interface_link(ifindex, program));
        }
        programs::detach_interface(&self.pins, ifindex, &interface.name)
            .map_err(|e| kernel(&format!("detaching from {}", interface.name), e))
    }

    /// Adds a workload, or changes its classes, in the generation that is in force. `level` is the
    /// depth of a cgroup below the root of the cgroup hierarchy. Packets that come after it
    /// returns are judged by the new classes.
    pub fn put_workload(
        &mut self,
        key: WorkloadKey,
        level: Option<u32>,
        workload: Workload,
    ) -> Result<(), DatapathError> {
        let workload = self.with_flags(key, workload);
        if let Some(level) = level {
            // A deeper cgroup cannot be a workload; it belongs to its ancestor.
            if level <= MAX_CGROUP_LEVEL {
                self.control.add_levels(1 << level);
            }
        }
        if let Some(generation) = &self.generation {
            sys::map_update(generation.workloads(), &key, &workload).map_err(|e| {
                match e.raw_os_error() {
                    Some(libc::E2BIG) => DatapathError::Capacity {
                        what: "workloads",
                        needed: self.workloads.len() + 1,
                        limit: self.options.capacity.workloads,
                        option: "workloads",
                    },
                    _ => kernel("adding a workload", e),
                }
            })?;
            self.next_epoch();
        }
        self.workloads.insert(key, workload);
        self.share_out();
        Ok(())
    }

    /// Removes a workload; its cgroups belong to the next ancestor that is one.
    pub fn remove_workload(&mut self, key: WorkloadKey) -> Result<(), DatapathError> {
        if let Some(generation) = &self.generation {
            sys::map_delete(generation.workloads(), &key)
                .map_err(|e| kernel("removing a workload", e))?;
            self.next_epoch();
        }
        self.workloads.remove(&key);
        self.share_out();
        Ok(())
    }

    /// Makes every flow be judged again.
    fn next_epoch(&mut self) {
        // The epoch is the lower half: it must not carry into the generation.
        let old = self.control.written().stamp;
        let epoch = (old & u64::from(u32::MAX)).wrapping_add(1) & u64::from(u32::MAX);
        self.control.set_stamp(old & !u64::from(u32::MAX) | epoch);
    }

    /// Hands out every record in the ring buffer; does not wait. Returns how many records were of
    /// an unknown size or version.
    pub fn drain_events(&mut self, each: &mut dyn FnMut(&Event)) -> u64 {
        let mut unknown = 0;
        while let Some(record) = self.events.next() {
            match bytemuck::try_pod_read_unaligned::<Event>(&record) {
                Ok(event) if event.version == EVENT_VERSION => each(&event),
                _ => unknown += 1,
            }
        }
        unknown
    }

    /// Where the programs keep their verdicts on sockets, for who looks at them from elsewhere.
    pub fn verdicts(&self) -> Result<Verdicts, DatapathError> {
        let (sockets, control) =
            (open_map(&self.pins, "SOCKETS")?, open_map(&self.pins, "CONTROL")?);
        Ok(Verdicts { sockets, control })
    }

    /// What the programs stamp their verdicts with now, and the cookie of this network namespace.
    pub fn stamp(&self) -> (u64, u64) {
        let control = self.control.written();
        (control.stamp, control.netns)
    }

    /// A descriptor that becomes readable when the kernel asks for the ring to be drained early.
    pub fn event_fd(&self) -> Result<OwnedFd, DatapathError> {
        self.events
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| kernel("duplicating the ring buffer's descriptor", e))
    }

    /// Descriptors of a program, for test runs.
    pub fn program_fd(&self, name: &str) -> Result<OwnedFd, DatapathError> {
        programs::program_fd(&self.ebpf, name)
            .and_then(|fd| Ok(fd.try_clone_to_owned()?))
            .map_err(|e| kernel(&format!("finding the program {name}"), e))
    }

    /// Loads what is otherwise loaded when an interface needs it, to see that this kernel takes it.
    ///
    /// # Errors
    /// The kernel refuses a program.
    pub fn load_rare_programs(&mut self) -> Result<(), DatapathError> {
        RARE_PROGRAMS.iter().try_for_each(|name| programs::need(&mut self.ebpf, name))
    }

    /// Detaches everything that is pinned under the folder and removes the pins. Says what it
    /// removed, one line each. Needs no running agent.
    pub fn detach_all(options: &Options) -> Result<Vec<String>, DatapathError> {
        detach::all(&options.bpffs)
    }
}

/// Whether a cgroup is the root of the cgroup2 hierarchy: its kernfs id is one
/// (`kernfs_create_root`, fs/kernfs/dir.c).
fn is_whole_hierarchy(cgroup: &Path) -> io::Result<bool> {
    Ok(cgroup_id(cgroup)? == 1)
}

/// The id of a cgroup: the file system shows it as the inode number.
fn cgroup_id(cgroup: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(cgroup)?.ino())
}

fn open_map(pins: &Pins, name: &str) -> Result<OwnedFd, DatapathError> {
    sys::open_pinned(&pins.maps().join(name))
        .map_err(|e| kernel(&format!("opening the map {name}"), e))
}
