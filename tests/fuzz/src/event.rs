//! A record as it comes out of the ring buffer.

use jiff::Timestamp;
use ztseg::api::types::{EventLine, EventRecord};
use ztseg::clocks::Clocks;
use ztseg::events::decode::decode;
use ztseg::events::enrich::enrich;
use ztseg::events::names::{Names, WorkloadName};
use ztseg::present::compact;
use ztseg_common::event::Event;

const SIZE: usize = size_of::<Event>();

/// Decodes it, gives it names, and shows it in both ways. Missing bytes are zeros.
pub fn check(bytes: &[u8]) {
    let mut record = [0; SIZE];
    let n = bytes.len().min(SIZE);
    record[..n].copy_from_slice(&bytes[..n]);
    let event: Event = bytemuck::pod_read_unaligned(&record);
    let Ok(decoded) = decode(&event) else { return };
    assert!(decoded.count > 0);
    let mut names = Names::default();
    names.put(1, WorkloadName { name: "/web\u{1b}[2J".into(), segments: vec!["web".into()] });
    let clocks = Clocks { wall: Timestamp::UNIX_EPOCH, boot: event.time ^ u64::from(event.rule) };
    let shown = enrich(&decoded, &names, &clocks);

    let line = compact::line(&shown);
    assert!(!line.chars().any(char::is_control), "{line:?}");
    let json = serde_json::to_string(&shown).expect("serialises");
    assert!(!json.contains('\n'));
    let read: EventRecord = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(read, shown);
    // As `ztseg events` reads it, beside the other kind of line.
    let line: EventLine = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(line, EventLine::Event(Box::new(shown)));
}
