//! The attempts to connect, and the table of them.

use std::io::{Write as _, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ztseg::api::types::{EventRecord, EventVerdict};
use ztseg_tests::traffic::{Ask, Outcome, Probe};

use crate::expected::By::{Isolation, Rule};
use crate::expected::Expected::{self, Allowed, Audited, Denied};
use crate::expected::{said, seen};
use crate::interrupt::Interrupt;
use crate::scene::{Scene, Who};

/// How long a client waits. An answer takes less than a millisecond here.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long a record may take from the kernel to a reader of `ztseg events`.
const EVENT: Duration = Duration::from_secs(3);

/// Somebody asks somebody, over IPv4 and over IPv6.
struct Attempt(Who, Who, Ask, u16, Expected);

/// Each shows something that the others do not.
const ATTEMPTS: [Attempt; 16] = [
    Attempt(Who::Web, Who::Api, Ask::Tcp, 8080, Allowed("web-to-api")),
    Attempt(Who::Api, Who::Db, Ask::Tcp, 5432, Allowed("api-to-db")),
    Attempt(Who::Web, Who::Db, Ask::Tcp, 5432, Denied("egress", Isolation("web"))),
    Attempt(Who::Api, Who::Db, Ask::Tcp, 5433, Denied("egress", Rule("no-admin-port"))),
    Attempt(Who::Batch, Who::Db, Ask::Tcp, 5432, Denied("ingress", Isolation("db"))),
    Attempt(Who::Batch, Who::Office, Ask::Tcp, 80, Audited(Isolation("batch"))),
    Attempt(Who::Api, Who::Office, Ask::Udp, 53, Allowed("names")),
    Attempt(Who::Db, Who::Office, Ask::Tcp, 22, Denied("egress", Isolation("db"))),
    Attempt(Who::Web, Who::Metadata, Ask::Tcp, 80, Denied("egress", Rule("no-metadata"))),
    Attempt(Who::Office, Who::Web, Ask::Tcp, 443, Allowed("front")),
    Attempt(Who::Office, Who::Db, Ask::Tcp, 5432, Denied("ingress", Isolation("db"))),
    Attempt(Who::Printer, Who::Web, Ask::Tcp, 443, Denied("ingress", Isolation("web"))),
    Attempt(Who::Vm, Who::Web, Ask::Tcp, 443, Allowed("front")),
    Attempt(Who::Vm, Who::Api, Ask::Tcp, 8080, Denied("egress", Isolation("vm"))),
    Attempt(Who::Vm, Who::Office, Ask::Ping, 0, Allowed("vm-ping")),
    Attempt(Who::Vm, Who::Office, Ask::Tcp, 22, Denied("egress", Isolation("vm"))),
];

impl Attempt {
    fn probe(&self, scene: &Scene, v6: bool) -> Result<Outcome> {
        let Self(from, to, ask, port, _) = *self;
        let address = scene.address(from, to, v6);
        let mut probe = Probe::new(ask, (address, port).into()).patience(PATIENCE);
        if let Some(source) = scene.source(from, v6) {
            probe = probe.from(source);
        }
        Ok(probe.run(&scene.place(from)?)?.outcome)
    }

    /// The protocol as policies and events name it.
    fn protocol(&self, v6: bool) -> &'static str {
        match self.2 {
            Ask::Tcp => "tcp",
            Ask::Udp | Ask::UdpConnected => "udp",
            Ask::Sctp => "sctp",
            Ask::Ping if v6 => "icmpv6",
            Ask::Ping => "icmp",
        }
    }

    /// Whether an event is about this attempt.
    fn is_in(&self, event: &EventRecord, v6: bool) -> bool {
        let to = if event.direction == "egress" { event.peer.port } else { event.local.port };
        let port = matches!(self.2, Ask::Ping) || to == self.3;
        event.proto == self.protocol(v6) && event.peer.ip.is_ipv6() == v6 && port
    }

    fn what(&self) -> String {
        match self.2 {
            Ask::Ping => "ping".to_owned(),
            _ => format!("{}/{}", self.protocol(false), self.3),
        }
    }

    fn describe(&self, v6: bool) -> String {
        let family = if v6 { "IPv6" } else { "IPv4" };
        format!("{} to {} {} over {family}", self.0.name(), self.1.name(), self.what())
    }
}

/// That each attempt gets through where nothing is enforced: else a denial would show nothing.
/// Gives how many there are.
pub(crate) fn without_agent(scene: &Scene, interrupt: &Interrupt) -> Result<usize> {
    for attempt in &ATTEMPTS {
        for v6 in [false, true] {
            interrupt.check()?;
            let outcome = attempt.probe(scene, v6)?;
            ensure!(
                outcome == Outcome::Ok,
                "{} got no answer without ztseg: {}",
                attempt.describe(v6),
                seen(outcome)
            );
        }
    }
    Ok(2 * ATTEMPTS.len())
}

/// Each attempt, what its client saw and what the agent says about it.
pub(crate) fn with_agent(scene: &Scene, interrupt: &Interrupt) -> Result<()> {
    row("FROM", "TO", "", "IP", "THE CLIENT SAW", "THE AGENT SAYS")?;
    let mut wrong = Vec::new();
    for attempt in &ATTEMPTS {
        let mut lines = Vec::new();
        for v6 in [false, true] {
            interrupt.check()?;
            let (line, is_right) = one(scene, attempt, v6)?;
            if !is_right {
                wrong.push(format!("{}: {}", attempt.describe(v6), attempt.4.describe()));
            }
            lines.push(line);
        }
        let (from, to, what) = (attempt.0.name(), attempt.1.name(), attempt.what());
        let same = lines[0] == lines[1];
        for (family, (seen, said)) in ["4", "6"].into_iter().zip(lines) {
            let family = if same { "4 6" } else { family };
            row(from, to, &what, family, seen, &said)?;
            if same {
                break;
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("not as expected, which is a bug of ztseg or of this demo:\n  {}", wrong.join("\n  "))
}

/// What the client saw and what the agent says, and whether both is right.
fn one(scene: &Scene, attempt: &Attempt, v6: bool) -> Result<((&'static str, String), bool)> {
    let agent = scene.agent()?;
    let before = agent.events()?.len();
    let outcome = attempt.probe(scene, v6)?;
    let deadline = Instant::now() + EVENT;
    loop {
        let mut events = Vec::new();
        for event in agent.events()?.into_iter().skip(before) {
            let event: EventRecord =
                serde_json::from_value(event).context("the agent's event is not as documented")?;
            if attempt.is_in(&event, v6) {
                events.push(event);
            }
        }
        let expected = events.iter().find(|event| attempt.4.fits_event(event));
        if let Some(event) = expected {
            let is_allowed = !matches!(attempt.4, Denied(..));
            let surprise = events.iter().find(|e| is_allowed && e.verdict == EventVerdict::Dropped);
            let is_right = attempt.4.fits_outcome(outcome) && surprise.is_none();
            return Ok(((seen(outcome), said(surprise.unwrap_or(event))), is_right));
        }
        if Instant::now() > deadline {
            let words: Vec<String> = events.iter().map(said).collect();
            let words = if words.is_empty() { "nothing".to_owned() } else { words.join("; ") };
            return Ok(((seen(outcome), words), false));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn row(from: &str, to: &str, what: &str, family: &str, seen: &str, said: &str) -> Result<()> {
    let mut out = stdout();
    let to = format!("{to} {what}");
    writeln!(out, "  {from:<8} {to:<16} {family:<4} {seen:<17} {said}")?;
    Ok(out.flush()?)
}
