//! The time of day, which people write and set, and the boot-time clock, which the kernel programs
//! read: it goes on while the machine sleeps, and nobody sets it.

use jiff::{SignedDuration, Timestamp};

use crate::datapath::sys::boot_time_ns;

/// Both clocks at one moment, to turn one into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The time of day.
    pub wall: Timestamp,
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub boot: u64,
}

impl Clocks {
    /// Now.
    pub fn now() -> Self {
        Self { wall: Timestamp::now(), boot: boot_time_ns() }
    }

    /// The time of day at a boot time; the epoch where it is out of all bounds.
    pub fn wall_at(&self, boot: u64) -> Timestamp {
        let ago = i128::from(self.boot) - i128::from(boot);
        let ago = i64::try_from(ago).map(SignedDuration::from_nanos);
        ago.ok().and_then(|ago| self.wall.checked_sub(ago).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The boot time at a time of day, in nanoseconds since 1970; at least one, which is long ago.
    pub fn boot_at(&self, wall: u64) -> u64 {
        let boot = i128::from(wall) - self.difference();
        u64::try_from(boot).unwrap_or(if boot < 0 { 0 } else { u64::MAX }).max(1)
    }

    /// By how much the time of day was set since `earlier`; zero while both clocks go on alike.
    pub fn set_since(&self, earlier: &Self) -> SignedDuration {
        let by = self.difference() - earlier.difference();
        i64::try_from(by).map_or(SignedDuration::MAX, SignedDuration::from_nanos)
    }

    fn difference(&self) -> i128 {
        self.wall.as_nanosecond() - i128::from(self.boot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::nanoseconds;

    fn clocks() -> Clocks {
        Clocks { wall: "2026-01-02T03:04:05Z".parse().expect("a time"), boot: 5_000_000_000 }
    }

    #[test]
    fn there_and_back() {
        for boot in [1, 4_999_999_999, 5_000_000_000, 5_000_000_001, 1 << 60] {
            assert_eq!(clocks().boot_at(nanoseconds(clocks().wall_at(boot))), boot);
        }
    }

    #[test]
    fn what_was_before_the_boot_is_long_ago_and_never_zero() {
        assert_eq!(clocks().boot_at(1), 1);
        assert_eq!(
            clocks().boot_at(u64::MAX),
            u64::MAX - u64::try_from(clocks().difference()).unwrap()
        );
    }

    #[test]
    fn a_step_is_what_the_boot_time_does_not_explain() {
        let later =
            Clocks { wall: clocks().wall + SignedDuration::from_secs(9), boot: 14_000_000_000 };
        assert_eq!(later.set_since(&clocks()), SignedDuration::ZERO);
        let set = Clocks { wall: later.wall - SignedDuration::from_hours(1), ..later };
        assert_eq!(set.set_since(&clocks()), SignedDuration::from_hours(-1));
    }
}
