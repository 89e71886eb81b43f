//! The policy that says of each row what its case is.

use std::fmt::Write as _;

use anyhow::Result;

use super::row::{Case, Direction, Kind, Place, Row};
use super::run::Addresses;

const HEAD: &str = "
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: matrix }
spec:
  segments:
    app: { match: [ { cgroup: /app } ] }
    guest: { match: [ { interface: zt-tap0 } ] }
    trial-app: { mode: audit, match: [ { cgroup: /trial } ] }
    trial-guest: { mode: audit, match: [ { interface: zt-tap1 } ] }
    plain: { isolation: [], match: [ { cgroup: /plain } ] }
";
const TRIAL: &str = "---
apiVersion: ztseg.io/v1
kind: SegmentPolicy
metadata: { name: trial }
spec:
  mode: audit
  deny:
";

/// Writes it. A row in which a rule denies has a rule that allows, too: else the denial would be
/// the default's.
pub(super) fn policy(rows: &[Row], addresses: &Addresses) -> Result<String> {
    let (mut allow, mut deny, mut audit) = (String::new(), String::new(), String::new());
    for row in rows {
        // What matches by identity, and what by address. A deny that named the peer's segment
        // would meet the flow at the peer's own end, where this matrix does not look.
        let by_address = addresses.peer(row).to_string();
        let by_identity = if row.place == Place::Loopback && row.kind != Kind::Icmp {
            "plain"
        } else {
            by_address.as_str()
        };
        if matches!(row.case, Case::AllowRule | Case::DenyRule | Case::AuditRule) {
            writeln!(allow, "{}", rule(row, "yes", by_identity))?;
        }
        match row.case {
            Case::DenyRule => writeln!(deny, "{}", rule(row, "no", &by_address))?,
            Case::AuditRule => writeln!(audit, "{}", rule(row, "no", &by_address))?,
            _ => {}
        }
    }
    Ok(format!("{HEAD}  allow:\n{allow}  deny:\n{deny}{TRIAL}{audit}"))
}

fn rule(row: &Row, word: &str, peer: &str) -> String {
    let port = match row.kind {
        Kind::Icmp => "echo-request".to_owned(),
        _ => row.port().to_string(),
    };
    let subject = row.segment();
    let (from, to) = match row.direction {
        Direction::Egress => (subject, peer),
        Direction::Ingress => (peer, subject),
    };
    let protocol = row.protocol();
    format!(
        "    - {{ name: {word}-{row}, from: \"{from}\", to: \"{to}\", ports: [{protocol}/{port}] }}"
    )
}
