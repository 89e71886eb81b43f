//! From a record of the ring buffer to typed values.

use std::net::IpAddr;

use ztseg_common::event::{EVENT_VERSION, Event, EventKind};
use ztseg_common::key::WorkloadKey;
use ztseg_common::verdict::{Direction, Hook, Reason};

/// A record whose every number is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it reports.
    pub kind: EventKind,
    /// Why.
    pub reason: Reason,
    /// Which hook judged.
    pub hook: Hook,
    /// Which way the flow goes, as its subject sees it.
    pub direction: Direction,
    /// IP protocol number; zero when the packet could not be read so far. At
    /// [`Hook::SocketCreate`] the address family.
    pub protocol: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// How many packets it stands for; at least one.
    pub count: u32,
    /// The generation that judged.
    pub generation: u32,
    /// Nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time: u64,
    /// The subject.
    pub workload: WorkloadKey,
    /// The peer's workload, where it is known.
    pub peer: Option<WorkloadKey>,
    /// Rank of the deciding rule.
    pub rule: Option<u32>,
    /// Process id.
    pub pid: Option<u32>,
    /// Command name.
    pub comm: Option<String>,
    /// The subject's address and port.
    pub local: (IpAddr, u16),
    /// The peer's address and port.
    pub remote: (IpAddr, u16),
    /// Subject class in that generation.
    pub subject: u32,
}

/// A record that this version cannot read; counted, never guessed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A layout of another version.
    #[error("an event record of version {0}, this agent reads version {EVENT_VERSION}")]
    Version(u8),
    /// A number without a meaning.
    #[error("an event record with the unknown {field} {value}")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u8,
    },
}

/// Reads a record.
///
/// # Errors
/// When a number in it has no meaning in this version.
pub fn decode(event: &Event) -> Result<Record, DecodeError> {
    if event.version != EVENT_VERSION {
        return Err(DecodeError::Version(event.version));
    }
    let unknown = |field, value| DecodeError::Unknown { field, value };
    let end = event.comm.iter().position(|b| *b == 0).unwrap_or(event.comm.len());
    let comm = String::from_utf8_lossy(&event.comm[..end]);
    Ok(Record {
        kind: EventKind::from_u8(event.kind).ok_or(unknown("kind", event.kind))?,
        reason: Reason::from_u8(event.reason).ok_or(unknown("reason", event.reason))?,
        hook: Hook::from_u8(event.hook).ok_or(unknown("hook", event.hook))?,
        direction: Direction::from_u8(event.direction)
            .ok_or(unknown("direction", event.direction))?,
        protocol: event.protocol,
        tcp_flags: event.tcp_flags,
        icmp_type: event.icmp_type,
        count: event.count.max(1),
        generation: event.generation,
        time: event.time,
        workload: event.workload,
        peer: (event.peer != 0).then_some(event.peer),
        rule: (event.rule != 0).then_some(event.rule),
        pid: (event.pid != 0).then_some(event.pid),
        comm: (!comm.is_empty()).then(|| comm.into_owned()),
        local: (event.local.into(), event.local_port.get()),
        remote: (event.remote.into(), event.remote_port.get()),
        subject: event.subject,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use ztseg_common::addr::{Addr, Port, proto};

    use super::*;

    /// A SYN of 192.0.2.7:40000 to 192.0.2.9:5432, denied at its sender by isolation.
    pub(crate) fn denied() -> Event {
        Event {
            version: EVENT_VERSION,
            kind: EventKind::Dropped as u8,
            reason: Reason::Isolation as u8,
            hook: Hook::Connect4 as u8,
            direction: Direction::Egress as u8,
            protocol: proto::TCP,
            tcp_flags: 2,
            count: 1,
            generation: 7,
            time: 1_000_000_000,
            workload: 42,
            pid: 4711,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            local: Addr::v4([192, 0, 2, 7]),
            remote: Addr::v4([192, 0, 2, 9]),
            local_port: Port::new(40000),
            remote_port: Port::new(5432),
            subject: 2,
            ..Event::default()
        }
    }

    #[test]
    fn every_field_is_read() {
        let r = decode(&denied()).expect("known");
        assert_eq!((r.kind, r.reason), (EventKind::Dropped, Reason::Isolation));
        assert_eq!((r.hook, r.direction), (Hook::Connect4, Direction::Egress));
        assert_eq!(r.local, ("192.0.2.7".parse().expect("an address"), 40000));
        assert_eq!(r.remote, ("192.0.2.9".parse().expect("an address"), 5432));
        assert_eq!((r.pid, r.comm.as_deref()), (Some(4711), Some("curl")));
        assert_eq!((r.peer, r.rule), (None, None));
    }

    #[test]
    fn unknown_numbers_are_refused() {
        let broken = |change: fn(&mut Event)| {
            let mut event = denied();
            change(&mut event);
            decode(&event)
        };
        assert_eq!(broken(|e| e.version = 0), Err(DecodeError::Version(0)));
        assert!(broken(|e| e.kind = 0).is_err());
        assert!(broken(|e| e.reason = 255).is_err());
        assert!(broken(|e| e.hook = 0).is_err());
        assert!(broken(|e| e.direction = 3).is_err());
        assert!(decode(&Event::default()).is_err());
    }

    #[test]
    fn a_name_without_a_zero_and_without_utf8_is_read() {
        let event = Event { comm: [0xff; 16], count: 0, ..denied() };
        let record = decode(&event).expect("known");
        assert_eq!(record.comm.map(|c| c.chars().count()), Some(16));
        assert_eq!(record.count, 1);
    }
}
