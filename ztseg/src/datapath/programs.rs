//! The kernel programs: loading, pinning, attaching.
//!
//! Cgroup and TCX links are pinned, and the pin is the one reference: an agent that ends leaves
//! them in force, and the next one swaps its programs into them without a gap. Below kernel 6.6 the
//! interface programs are classic TC filters with a fixed priority and handle.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{
    CgroupSkb, CgroupSock, CgroupSockAddr, LsmCgroup, Program, SchedClassifier, TcAttachType,
    TcHandle, tc,
};
use aya::util::KernelVersion;
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};

use super::generation::{self, OUTER};
use super::links::{Link, Target};
use super::lsm::{self, PacketSockets};
use super::sys::{self, AttachType};
use super::{DatapathError, InterfaceSide, Options, ProgramStatus, filters, layout, object};

/// The programs at the cgroup root, in the order they are attached: a socket's maker is written
/// down before its packets are judged.
pub const CGROUP_PROGRAMS: [(&str, AttachType); 7] = [
    ("ztseg_create", AttachType::SockCreate),
    ("ztseg_ingress", AttachType::CgroupIngress),
    ("ztseg_egress", AttachType::CgroupEgress),
    ("ztseg_connect4", AttachType::Connect4),
    ("ztseg_connect6", AttachType::Connect6),
    ("ztseg_sendmsg4", AttachType::Sendmsg4),
    ("ztseg_sendmsg6", AttachType::Sendmsg6),
];

/// The program at the cgroup root that refuses packet sockets, where the kernel calls it; and its hook.
pub const LSM_PROGRAM: (&str, AttachType) = ("ztseg_packet", AttachType::LsmCgroup);
const LSM_HOOK: &str = "socket_create";

/// The programs at interfaces: packets from the workload and to it, with an Ethernet header and
/// without.
pub const TC_PROGRAMS: [&str; 4] = ["ztseg_tc_from", "ztseg_tc_to", "ztseg_ip_from", "ztseg_ip_to"];

/// The programs for interfaces without an Ethernet header, which few hosts have.
pub const RARE_PROGRAMS: [&str; 2] = ["ztseg_ip_from", "ztseg_ip_to"];

/// The flow tables, for IPv4 and IPv6; `capacity.flows` is the size of each.
pub const FLOW_TABLES: [&str; 2] = ["FLOWS4", "FLOWS6"];
/// What goes beyond the shares of workloads: an eighth of that each.
pub const SPILL_TABLES: [&str; 2] = ["SPILL4", "SPILL6"];
const SPILL_SHARE: u32 = 8;
const SPILL_LEAST: u32 = 1024;

/// The maps that outlive an agent, besides [`OUTER`].
pub const PINNED_MAPS: [&str; 16] = [
    "CONTROL",
    "DECIDES",
    "PARTY",
    "FLOWS4",
    "FLOWS6",
    "SPILL4",
    "SPILL6",
    "USAGE",
    "TOTALS",
    "FRAGMENTS",
    "SENDERS",
    "EVENTS",
    "COUNTERS",
    "SOCKETS",
    "FOLDS",
    "BUDGETS",
];

/// Priority and handle of our classic TC filters: fixed, so that the next agent finds them.
const TC_PRIORITY: u16 = 0x5a74;
const TC_HANDLE: u32 = 0x5a;

/// Where things are pinned: `BPFFS/vN/{maps,links}`.
#[derive(Clone, Debug)]
pub struct Pins {
    /// The folder of this ABI version.
    pub root: PathBuf,
}

impl Pins {
    /// Below the configured folder.
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{}", ztseg_common::ABI_VERSION)) }
    }

    /// Folder of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Folder of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Folder of notes: a folder in it, with an interface's index as its name, says that the
    /// interface's clsact qdisc is ours. A bpffs has no other files.
    pub fn clsact(&self) -> PathBuf {
        self.root.join("clsact")
    }

    /// The pin of an interface's link.
    pub fn interface_link(&self, ifindex: u32, program: &str) -> PathBuf {
        self.links().join(format!("{program}@{ifindex}"))
    }
}

/// Loads the object: maps that are pinned are adopted, the others made and pinned. The programs pass
/// the verifier before anything is attached; [`RARE_PROGRAMS`] when the first interface needs them, and
/// [`LSM_PROGRAM`] by [`load_packet`].
pub fn load(options: &Options, pins: &Pins) -> Result<Ebpf, DatapathError> {
    let bytes = object::bytes();
    if bytes.is_empty() {
        return Err(DatapathError::NoObject);
    }
    generation::create_outer(&pins.maps()).map_err(|e| kernel("making the maps of maps", e))?;
    let flows = options.capacity.flows;
    let (debug, beside) = (u8::from(options.debug), u8::from(has_tcx()));
    let mut loader = EbpfLoader::new();
    for name in FLOW_TABLES {
        loader.map_max_entries(name, flows);
    }
    for name in SPILL_TABLES {
        loader.map_max_entries(name, (flows / SPILL_SHARE).max(SPILL_LEAST));
    }
    loader.map_max_entries("USAGE", options.capacity.workloads);
    loader.override_global("DEBUG", &debug, true);
    loader.override_global("BESIDE", &beside, true);
    let kernel_layout = layout::kernel();
    for (name, offset) in [
        ("NFCT", &kernel_layout.nfct),
        ("SOCK_NET", &kernel_layout.sock_net),
        ("NET_HOOKS4", &kernel_layout.net_hooks4),
        ("NET_HOOKS6", &kernel_layout.net_hooks6),
    ] {
        loader.override_global(name, offset, true);
    }
    loader.override_global("HARMLESS", &kernel_layout.harmless, true);
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for name in OUTER.into_iter().chain(PINNED_MAPS) {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    warn_of_other_size(&pins.maps().join(FLOW_TABLES[0]), flows);
    let mut ebpf = loader.load(bytes).map_err(|e| kernel("loading the kernel object", e))?;
    for (name, program) in ebpf.programs_mut() {
        if !RARE_PROGRAMS.contains(&name) && name != LSM_PROGRAM.0 {
            load_program(program).map_err(|e| kernel(&format!("loading the program {name}"), e))?;
        }
    }
    Ok(ebpf)
}

/// Loads the program that refuses packet sockets, where the kernel would call it. All else works
/// without, so what the kernel says against it is no error.
pub fn load_packet(ebpf: &mut Ebpf) -> PacketSockets {
    let active = lsm::activity();
    if active != PacketSockets::Refused {
        return active;
    }
    let mut load = || {
        let program = ebpf.program_mut(LSM_PROGRAM.0).context("not in the object")?;
        let program: &mut LsmCgroup = program.try_into()?;
        let types = Btf::from_sys_fs().context("reading the kernel's types")?;
        anyhow::Ok(program.load(LSM_HOOK, &types)?)
    };
    load().map_or_else(|e| not_supported("loading", &e), |()| PacketSockets::Refused)
}

fn not_supported(doing: &str, error: &anyhow::Error) -> PacketSockets {
    tracing::warn!("packet sockets are not refused: {doing} {}: {error:#}", LSM_PROGRAM.0);
    // What the verifier has to say is long, and in the log.
    let error = format!("{error:#}");
    let first = error.lines().next().unwrap_or_default();
    PacketSockets::NotSupported(format!("{doing} the program failed: {first}"))
}

/// Loads a program that was not needed so far; nothing where it is loaded.
pub fn need(ebpf: &mut Ebpf, name: &str) -> Result<(), DatapathError> {
    let Some(program) = ebpf.program_mut(name) else { return Ok(()) };
    if program.fd().is_ok() {
        return Ok(());
    }
    load_program(program).map_err(|e| kernel(&format!("loading the program {name}"), e))
}

/// A pinned map keeps its size, and with it its flows.
fn warn_of_other_size(pin: &Path, wanted: u32) {
    let size = sys::open_pinned(pin).and_then(|map| Ok(sys::map_info(map.as_fd())?.max_entries));
    if let Ok(size) = size
        && size != wanted
    {
        tracing::warn!(
            "the flow tables that are in force have {size} entries, capacity.flows is {wanted}; it \
             takes effect after `ztseg detach` (flows that are open then are judged anew)"
        );
    }
}

fn load_program(program: &mut Program) -> anyhow::Result<()> {
    match program {
        Program::CgroupSkb(p) => p.load()?,
        Program::CgroupSock(p) => p.load()?,
        Program::CgroupSockAddr(p) => p.load()?,
        Program::SchedClassifier(p) => p.load()?,
        other => anyhow::bail!("unexpected program type {:?}", other.prog_type()),
    }
    Ok(())
}

/// An error of the kernel, or of aya on the way to it.
pub fn kernel(doing: &str, source: impl Into<anyhow::Error>) -> DatapathError {
    let source = source.into();
    let denied = source.chain().any(|e| {
        e.downcast_ref::<io::Error>()
            .is_some_and(|e| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
    });
    // The verifier's refusal is EACCES, too, but root gets that one.
    if denied && !nix::unistd::geteuid().is_root() {
        return DatapathError::NoPermission(format!("{doing}: {source:#}"));
    }
    DatapathError::Kernel { doing: doing.to_owned(), source }
}

/// The descriptor of a loaded program.
pub fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<BorrowedFd<'a>> {
    let program = ebpf.program(name).with_context(|| format!("no program {name} in the object"))?;
    Ok(match program {
        Program::CgroupSkb(p) => fd_of_skb(p)?,
        Program::CgroupSock(p) => fd_of_sock(p)?,
        Program::CgroupSockAddr(p) => fd_of_sock_addr(p)?,
        Program::LsmCgroup(p) => p.fd()?.as_fd(),
        Program::SchedClassifier(p) => p.fd()?.as_fd(),
        other => anyhow::bail!("unexpected program type {:?}", other.prog_type()),
    })
}

fn fd_of_skb(p: &CgroupSkb) -> anyhow::Result<BorrowedFd<'_>> {
    Ok(p.fd()?.as_fd())
}

fn fd_of_sock(p: &CgroupSock) -> anyhow::Result<BorrowedFd<'_>> {
    Ok(p.fd()?.as_fd())
}

fn fd_of_sock_addr(p: &CgroupSockAddr) -> anyhow::Result<BorrowedFd<'_>> {
    Ok(p.fd()?.as_fd())
}

/// Attaches the cgroup programs; gives the links by their pins. True: some program was not attached
/// before.
pub fn attach_cgroup(
    ebpf: &Ebpf,
    pins: &Pins,
    root: &Path,
) -> Result<(Vec<(PathBuf, Link)>, bool), DatapathError> {
    let mut any_new = false;
    let doing = |name: &str| format!("attaching {name} to the cgroup {}", root.display());
    let mut attach = |(name, attach_type): (&'static str, AttachType)| {
        let program = program_fd(ebpf, name).map_err(|e| kernel(&doing(name), e))?;
        let (pin, target) = (pins.links().join(name), Target::Cgroup(root.to_owned()));
        let (link, new) = Link::attach((name, program), &target, attach_type, &pin)
            .map_err(|e| kernel(&doing(name), e))?;
        any_new |= new;
        Ok((pin, link))
    };
    let links = CGROUP_PROGRAMS.into_iter().map(&mut attach).collect::<Result<_, _>>()?;
    Ok((links, any_new))
}

/// Attaches the program that refuses packet sockets, where it is loaded; a failure goes into
/// `packets`. Where it is not loaded, what an earlier agent attached goes: nobody looks after it.
pub fn attach_packet(
    ebpf: &Ebpf,
    pins: &Pins,
    root: &Path,
    packets: &mut PacketSockets,
) -> Option<(PathBuf, Link)> {
    let (name, attach_type) = LSM_PROGRAM;
    let (pin, target) = (pins.links().join(name), Target::Cgroup(root.to_owned()));
    if *packets != PacketSockets::Refused {
        if let Err(e) = remove_link(&pin) {
            tracing::warn!("detaching {name}: {e}");
        }
        return None;
    }
    let attached = program_fd(ebpf, name)
        .and_then(|fd| Ok(Link::attach((name, fd), &target, attach_type, &pin)?));
    match attached {
        Ok((link, _)) => Some((pin, link)),
        Err(e) => {
            *packets = not_supported("attaching", &e);
            None
        }
    }
}

/// A TC program and where it goes.
pub type TcHook = (&'static str, TcAttachType);

/// Which program goes where, by the side that the workload is on.
pub fn tc_hooks(side: InterfaceSide, ethernet: bool) -> [TcHook; 2] {
    let [tc_from, tc_to, ip_from, ip_to] = TC_PROGRAMS;
    let (from, to) = if ethernet { (tc_from, tc_to) } else { (ip_from, ip_to) };
    match side {
        InterfaceSide::Far => [(from, TcAttachType::Ingress), (to, TcAttachType::Egress)],
        InterfaceSide::Host => [(to, TcAttachType::Ingress), (from, TcAttachType::Egress)],
    }
}

/// Attaches the TC programs to an interface; gives the links by their pins (none below kernel
/// 6.6). True: some program was not attached before.
pub fn attach_interface(
    ebpf: &mut Ebpf,
    pins: &Pins,
    (ifindex, interface): (u32, &str),
    hooks: [TcHook; 2],
) -> Result<(Vec<(PathBuf, Link)>, bool), DatapathError> {
    let doing = |name: &str| format!("attaching {name} to the interface {interface}");
    let (mut links, mut any_new) = (Vec::new(), false);
    for (name, hook) in hooks {
        need(ebpf, name)?;
        any_new |= if has_tcx() {
            let program = program_fd(ebpf, name).map_err(|e| kernel(&doing(name), e))?;
            let tcx = match hook {
                TcAttachType::Ingress => AttachType::TcxIngress,
                _ => AttachType::TcxEgress,
            };
            let pin = pins.interface_link(ifindex, name);
            let target = Target::Interface { ifindex, name: interface.to_owned() };
            let (link, new) = Link::attach((name, program), &target, tcx, &pin)
                .map_err(|e| kernel(&doing(name), e))?;
            links.push((pin, link));
            new
        } else {
            attach_filter(ebpf, pins, name, (ifindex, interface), hook)
                .map_err(|e| kernel(&doing(name), e))?
        };
    }
    Ok((links, any_new))
}

/// TCX links came with kernel 6.6.
pub fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// The id of the program in our filter, where there is one.
pub fn filter_program(ifindex: u32, hook: TcAttachType) -> io::Result<Option<u32>> {
    filters::program_of(ifindex, hook, TC_PRIORITY, TC_HANDLE)
}

/// Attaches a classic filter, or swaps the program into the one that is there. True: a new one.
pub fn attach_filter(
    ebpf: &mut Ebpf,
    pins: &Pins,
    name: &str,
    (ifindex, interface): (u32, &str),
    hook: TcAttachType,
) -> anyhow::Result<bool> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).context("not in the object")?.try_into()?;
    // There already is one where somebody else uses it, or we did before.
    if tc::qdisc_add_clsact(interface).is_ok() {
        std::fs::create_dir_all(pins.clsact().join(ifindex.to_string()))
            .context("noting that the clsact qdisc is ours")?;
    }
    let handle = TcHandle::from(TC_HANDLE);
    let ours = SchedClassifierLink::attached(interface, hook, TC_PRIORITY, handle, None)?;
    let (link, new) = if let Ok(link) = program.attach_to_link(ours) {
        (link, false)
    } else {
        let options = NlOptions { priority: TC_PRIORITY, handle, classid: None };
        let options = TcAttachOptions::Netlink(options);
        (program.attach_with_options(interface, hook, options)?, true)
    };
    // The filter stays when this process ends.
    std::mem::forget(program.take_link(link)?);
    Ok(new)
}

/// Detaches the TC programs from an interface; one that is gone is fine.
pub fn detach_interface(pins: &Pins, ifindex: u32, interface: &str) -> io::Result<()> {
    for name in TC_PROGRAMS {
        remove_link(&pins.interface_link(ifindex, name))?;
        if !has_tcx() {
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                // An interface without our filter answers with an error; so does one that is gone.
                let _ = tc::qdisc_detach_program(interface, hook, name);
            }
        }
    }
    remove_clsact(&pins.clsact(), ifindex);
    Ok(())
}

/// Removes the clsact qdisc that we made, unless somebody else uses it by now.
pub fn remove_clsact(notes: &Path, ifindex: u32) {
    if std::fs::remove_dir(notes.join(ifindex.to_string())).is_ok()
        && filters::has_none(ifindex).unwrap_or(false)
    {
        // It goes with the interface, too.
        let _ = filters::remove_qdisc(ifindex);
    }
}

/// Detaches a pinned link and removes its pin. False: there was none.
pub fn remove_link(pin: &Path) -> io::Result<bool> {
    let link = match sys::open_pinned(pin) {
        Ok(link) => link,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    match sys::link_detach(link.as_fd()) {
        // Detached before: its interface or cgroup is gone.
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {
            return Err(e);
        }
        _ => {}
    }
    std::fs::remove_file(pin)?;
    Ok(true)
}

/// The programs and what the verifier saw of them.
pub fn status(
    ebpf: &Ebpf,
    attached: impl Fn(&str) -> Vec<String>,
) -> anyhow::Result<Vec<ProgramStatus>> {
    ebpf.programs()
        .filter(|(_, program)| program.fd().is_ok())
        .map(|(name, program)| {
            let info = program.info()?;
            Ok(ProgramStatus {
                name: name.to_owned(),
                id: info.id(),
                attached: attached(name),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
            })
        })
        .collect()
}
