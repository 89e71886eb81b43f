//! All rows in one world: once without an agent, once with the policy in force.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_tests::agent::Agent;
use ztseg_tests::process::Place as Where;
use ztseg_tests::traffic::{Listen, Outcome, Report, Server};
use ztseg_tests::world::{Link, Namespace, World};

use super::policy::policy;
use super::row::{Case, Direction, Kind, Place, Row, rows};

/// How many clients ask at the same time; most of them wait.
const CLIENTS: usize = 8;
/// A port that no row uses and nothing allows: when its event is there, all earlier ones are.
const LAST_PORT: u16 = 1999;

/// What came of all rows.
#[derive(Debug)]
pub(super) struct Results {
    /// What the clients saw, in the order of [`rows`].
    pub(super) reports: Vec<Report>,
    /// All events.
    pub(super) events: Vec<Value>,
    /// The agent's status.
    pub(super) status: Value,
}

/// The addresses in the matrix's world.
#[derive(Debug)]
pub(super) struct Addresses {
    uplink: Link,
    tap: Link,
    trial_tap: Link,
}

impl Addresses {
    /// The peer's address, as the subject sees it.
    pub(super) fn peer(&self, row: &Row) -> IpAddr {
        let n = row.host_number();
        match (row.place, row.kind, row.v6) {
            // The kernel answers at each of these, and its answer is nobody's.
            (Place::Loopback, Kind::Icmp, false) => Ipv4Addr::new(127, 0, 0, n).into(),
            (Place::Loopback, Kind::Icmp, true) => on_loopback(n).into(),
            (Place::Loopback, _, false) => Ipv4Addr::LOCALHOST.into(),
            (Place::Loopback, _, true) => Ipv6Addr::LOCALHOST.into(),
            (_, _, v6) => self.uplink.addresses(n)[usize::from(v6)],
        }
    }

    /// The subject's address.
    fn subject(&self, row: &Row) -> IpAddr {
        match (row.place, row.v6) {
            (Place::Loopback, false) => Ipv4Addr::LOCALHOST.into(),
            (Place::Loopback, true) if row.kind == Kind::Icmp => on_loopback(1).into(),
            (Place::Loopback, true) => Ipv6Addr::LOCALHOST.into(),
            (Place::Host, v6) => self.uplink.near(v6),
            (Place::Interface, v6) if row.case == Case::AuditIsolation => self.trial_tap.far(v6),
            (Place::Interface, v6) => self.tap.far(v6),
        }
    }
}

/// Addresses beside `::1`, which stands alone.
fn on_loopback(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, n.into())
}

struct Stage {
    // The processes of the second guest end before the world.
    trial_guest: Namespace,
    world: World,
    addresses: Addresses,
    rows: Vec<Row>,
}

/// Runs everything.
pub(super) fn run() -> Result<Results> {
    let world = World::new()?;
    let (trial_guest, trial_tap) = world.add_host("trial", 3, "zt-tap1")?;
    let addresses = Addresses { uplink: world.uplink.clone(), tap: world.tap.clone(), trial_tap };
    let stage = Stage { trial_guest, world, addresses, rows: rows() };
    stage.add_addresses()?;

    // A dead listener must not be read as a denial.
    let servers = stage.servers()?;
    let control = stage.ask_all()?;
    for (row, report) in stage.rows.iter().zip(&control) {
        ensure!(report.outcome == Outcome::Ok, "{row} fails without a policy: {report:?}");
    }
    drop(servers);

    let policy = policy(&stage.rows, &stage.addresses)?;
    let agent = Agent::start(&stage.world, &policy)?;
    let _servers = stage.servers()?;
    let reports = stage.ask_all()?;
    let last = stage.rows[0].probe(None, stage.world.uplink.far(false));
    last.to_port(LAST_PORT).run(&stage.world.workload("/app")?)?;
    agent.wait_for_event(|event| event["peer"]["port"] == LAST_PORT)?;
    Ok(Results { reports, events: agent.events()?, status: agent.status()? })
}

impl Stage {
    fn add_addresses(&self) -> Result<()> {
        let last = self.rows.iter().map(Row::host_number).max().unwrap_or_default();
        for n in 3..=last {
            let [v4, v6] = self.addresses.uplink.addresses(n);
            self.world.peer.add_address("up0", v4, 28)?;
            self.world.peer.add_address("up0", v6, 64)?;
        }
        for n in 1..=last {
            self.world.host.add_address("lo", on_loopback(n).into(), 128)?;
        }
        Ok(())
    }

    /// Where the subject of a row is.
    fn subject(&self, row: &Row) -> Result<Where> {
        match row.segment() {
            "app" => self.world.workload("/app"),
            "trial-app" => self.world.workload("/trial"),
            "guest" => Ok(self.world.guest.place()),
            _ => Ok(self.trial_guest.place()),
        }
    }

    fn peer(&self, row: &Row) -> Result<Where> {
        match row.place {
            Place::Loopback => self.world.workload("/plain"),
            Place::Host | Place::Interface => Ok(self.world.peer.place()),
        }
    }

    /// A server for each row, at the end that is asked; one process for each place.
    fn servers(&self) -> Result<Vec<Server>> {
        let mut groups: Vec<(Where, Vec<Listen>)> = Vec::new();
        for row in self.rows.iter().filter(|row| row.kind != Kind::Icmp) {
            let (place, address) = match row.direction {
                Direction::Egress => (self.peer(row)?, self.addresses.peer(row)),
                Direction::Ingress => (self.subject(row)?, self.addresses.subject(row)),
            };
            let address = (address, row.port()).into();
            let listen =
                if row.kind == Kind::Tcp { Listen::Tcp(address) } else { Listen::Udp(address) };
            match groups.iter_mut().find(|group| group.0 == place) {
                Some((_, group)) => group.push(listen),
                None => groups.push((place, vec![listen])),
            }
        }
        groups.iter().map(|(place, listen)| Server::start(place, listen)).collect()
    }

    fn ask(&self, row: &Row) -> Result<Report> {
        let (subject, peer) = (self.addresses.subject(row), self.addresses.peer(row));
        let (place, from, to) = match row.direction {
            Direction::Egress => (self.subject(row)?, subject, peer),
            Direction::Ingress => (self.peer(row)?, peer, subject),
        };
        // On loopback, the address of which the row speaks is the one that is pinged.
        let (from, to) =
            if row.is_unseen() && row.place == Place::Loopback { (to, from) } else { (from, to) };
        row.probe(Some(from), to).run(&place)
    }

    fn ask_all(&self) -> Result<Vec<Report>> {
        let next = AtomicUsize::new(0);
        let mut reports = vec![None; self.rows.len()];
        thread::scope(|scope| {
            let work = || {
                let mut done = Vec::new();
                while let Some((at, row)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    self.rows.get(at).map(|row| (at, row))
                } {
                    let report = self.ask(row).with_context(|| row.to_string());
                    done.push(report.map(|report| (at, report)));
                }
                done
            };
            let workers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                for report in worker.join().map_err(|_| anyhow::anyhow!("a client panicked"))? {
                    let (at, report) = report?;
                    reports[at] = Some(report);
                }
            }
            anyhow::Ok(())
        })?;
        reports.into_iter().collect::<Option<_>>().context("a row was not asked")
    }
}
