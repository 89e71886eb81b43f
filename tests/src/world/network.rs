//! Network namespaces and the veth pairs between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::patient;
use crate::process::Place;

/// Where ip(8) keeps namespaces with names.
pub(super) const NAMESPACES: &str = "/run/netns";
/// How long a setting may take.
const SETTING: Duration = Duration::from_secs(10);
/// How long the kernel may take to notice a carrier.
const CARRIER: Duration = Duration::from_secs(10);

/// A network namespace with a name; removed when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(super) fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.batch("link set lo up\n")?;
        namespace.set(&[
            // Addresses are there at once: nobody else can have them.
            ("ipv6/conf/default/accept_dad", "0"),
            // Everybody may have a ping socket.
            ("ipv4/ping_group_range", "0 2147483647"),
        ])?;
        Ok(namespace)
    }

    /// Its name, as ip(8) knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// In this namespace, in no cgroup of the world.
    pub fn place(&self) -> Place {
        Place { cgroup: None, namespace: Some(self.path()) }
    }

    /// Does something in here, by a thread of its own: a thread's namespace is not its process's.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.path()).context("cannot open the namespace")?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                work()
            });
            inside.join().unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
        })
    }

    /// Runs commands of ip(8) in here, one a line.
    pub fn batch(&self, commands: &str) -> Result<()> {
        batch(Some(&self.name), commands)
    }

    /// Adds an address to an interface.
    pub fn add_address(&self, interface: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let nodad = if address.is_ipv6() { " nodad" } else { "" };
        self.batch(&format!("addr add {address}/{prefix_len} dev {interface}{nodad}\n"))
    }

    /// The link-layer address of an interface.
    pub fn link_address(&self, interface: &str) -> Result<[u8; 6]> {
        let shown = self.place().spawn("ip", &["-o", "link", "show", interface])?;
        let shown = shown.output(patient(Duration::from_secs(10)))?;
        let text = shown.split(" link/ether ").nth(1).context("no link-layer address")?;
        let mut address = [0; 6];
        for (byte, text) in address.iter_mut().zip(text.split([':', ' '])) {
            *byte = u8::from_str_radix(text, 16)?;
        }
        Ok(address)
    }

    /// Writes a setting below `/proc/sys/net` of this namespace.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        for (name, value) in settings {
            // /proc/sys/net shows the reader's namespace.
            let process = self.place().tool(&["sysctl", name, value])?;
            process.output(patient(SETTING))?;
        }
        Ok(())
    }

    /// Makes the kernel write the checksums of what leaves by an interface, as for a device that
    /// does not.
    pub fn without_checksums(&self, interface: &str) -> Result<()> {
        let process = self.place().tool(&["without-checksums", interface])?;
        process.output(patient(SETTING)).map(drop)
    }

    /// Waits until an interface takes part in neighbour discovery: the kernel joins the multicast
    /// groups when it has noticed the carrier, up to a second later (`linkwatch`).
    fn wait_for_ipv6(&self, interface: &str) -> Result<()> {
        let deadline = Instant::now() + CARRIER;
        let args = ["-n", &self.name, "-6", "route", "show", "table", "local", "dev", interface];
        while !ip(&args)?.contains("ff00::/8") {
            ensure!(Instant::now() < deadline, "{interface} of {} has no carrier", self.name);
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(super) fn allow_forwarding(&self) -> Result<()> {
        self.set(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// A veth pair from `host` to another namespace, with addresses.
#[derive(Clone, Debug)]
pub struct Link {
    /// The interface in `host`.
    pub interface: String,
    /// The interface at the far end.
    pub far_interface: String,
    number: u8,
}

impl Link {
    /// Number one is the uplink in 192.0.2.0/24; the others share 198.51.100.0/24 (RFC 5737).
    pub(super) fn new(number: u8, interface: &str, far_interface: &str) -> Self {
        Self { interface: interface.to_owned(), far_interface: far_interface.to_owned(), number }
    }

    /// The addresses of host `n` on this link, of sixteen; 1 is the near end, 2 the far one.
    pub fn addresses(&self, n: u8) -> [IpAddr; 2] {
        let v4 = match self.number {
            1 => Ipv4Addr::new(192, 0, 2, n),
            number => Ipv4Addr::new(198, 51, 100, 16 * (number - 2) + n),
        };
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, n.into());
        [v4.into(), v6.into()]
    }

    /// The near end's address, IPv4 or IPv6.
    pub fn near(&self, v6: bool) -> IpAddr {
        self.addresses(1)[usize::from(v6)]
    }

    /// The far end's address, IPv4 or IPv6.
    pub fn far(&self, v6: bool) -> IpAddr {
        self.addresses(2)[usize::from(v6)]
    }

    /// Makes the pair; the far end's other traffic goes through the near end.
    pub(super) fn join(&self, host: &Namespace, far: &Namespace) -> Result<()> {
        let (near_name, far_name) = (&self.interface, &self.far_interface);
        host.batch(&format!(
            "link add {near_name} type veth peer name {far_name} netns {}\n{}",
            far.name,
            self.address_commands(near_name, 1)
        ))?;
        let [v4, v6] = self.addresses(1);
        far.batch(&format!(
            "{}route add default via {v4}\nroute add default via {v6}\n",
            self.address_commands(far_name, 2)
        ))?;
        host.wait_for_ipv6(near_name)?;
        far.wait_for_ipv6(far_name)
    }

    fn address_commands(&self, interface: &str, n: u8) -> String {
        let [v4, v6] = self.addresses(n);
        format!(
            "addr add {v4}/28 dev {interface}\naddr add {v6}/64 dev {interface} nodad\n\
             link set {interface} up\n"
        )
    }
}

/// What a pod has for a gateway where it has its address alone: every interface of the host that leads
/// to one has this address, as in container networks that route.
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

/// Makes a veth pair from `host` to a namespace with one address, which may be any.
pub(super) fn join_routed(
    host: &Namespace,
    interface: &str,
    far: &Namespace,
    address: IpAddr,
) -> Result<()> {
    const FAR: &str = "eth0";
    let [v4, v6] = GATEWAYS;
    let (gateway, length) = if address.is_ipv6() { (v6, 128) } else { (v4, 32) };
    host.batch(&format!(
        "link add {interface} type veth peer name {FAR} netns {}\naddr add {v4}/32 dev {interface}\n\
         addr add {v6}/64 dev {interface} nodad\nlink set {interface} up\n\
         route add {address}/{length} dev {interface}\n",
        far.name,
    ))?;
    far.batch(&format!("link set {FAR} up\n"))?;
    far.add_address(FAR, address, length)?;
    far.batch(&format!("route add default via {gateway} dev {FAR} onlink\n"))?;
    host.wait_for_ipv6(interface)?;
    far.wait_for_ipv6(FAR)
}

/// ip(8), out of reach of a Ctrl-C: half of what it does is harder to remove than all of it.
fn command() -> Command {
    let mut ip = Command::new("ip");
    ip.process_group(0);
    ip
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = command().args(arguments).output().context("cannot start ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes a namespace by its name, as far as it is there.
pub(super) fn remove(name: &str) {
    if ip(&["netns", "delete", name]).is_err() {
        let _ = fs::remove_file(Path::new(NAMESPACES).join(name));
    }
}

fn batch(namespace: Option<&str>, commands: &str) -> Result<()> {
    let mut ip = command();
    if let Some(namespace) = namespace {
        ip.args(["-n", namespace]);
    }
    ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ip.spawn().context("cannot start ip")?;
    child
        .stdin
        .take()
        .context("ip has no standard input")?
        .write_all(commands.as_bytes())
        .context("ip does not read")?;
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        bail!("ip {commands}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
