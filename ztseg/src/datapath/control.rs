//! The control word, and what the agent has written there: whatever else it says, somebody else
//! wrote.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use ztseg_common::shares::Shares;
use ztseg_common::value::Control;

use super::sys::ControlPage;

/// A number that nobody can guess, never zero.
pub fn random() -> u32 {
    // The keys of the standard library's hashers come from the kernel's random numbers.
    let number = RandomState::new().build_hasher().finish();
    u32::try_from(number >> 32).unwrap_or(1).max(1)
}

/// The control word of the programs. Every change goes through here.
#[derive(Debug)]
pub struct ControlWord {
    page: ControlPage,
    written: Control,
}

impl ControlWord {
    /// Maps it. What an earlier agent wrote is taken over.
    pub fn open(map: BorrowedFd<'_>) -> io::Result<Self> {
        let page = ControlPage::map(map)?;
        let written = page.read();
        Ok(Self { page, written })
    }

    /// What this agent has written.
    pub const fn written(&self) -> &Control {
        &self.written
    }

    /// [`Control::stamp`]
    pub fn set_stamp(&mut self, stamp: u64) {
        self.written.stamp = stamp;
        self.page.stamp().store(stamp, Ordering::Release);
    }

    /// Adds to [`Control::levels`].
    pub fn add_levels(&mut self, levels: u32) {
        self.written.levels |= levels;
        self.page.levels().store(self.written.levels, Ordering::Relaxed);
    }

    /// Sets or clears a flag of [`Control::flags`].
    pub fn set_flag(&mut self, flag: u32, on: bool) {
        let flags = self.written.flags;
        self.written.flags = if on { flags | flag } else { flags & !flag };
        self.page.flags().store(self.written.flags, Ordering::Relaxed);
    }

    /// [`Control::shares`]
    pub fn set_shares(&mut self, shares: Shares) {
        self.written.shares = shares;
        let Shares { guaranteed, limit, free_until, zero: _ } = shares;
        for (word, value) in self.page.shares().into_iter().zip([guaranteed, limit, free_until]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// [`Control::adopt_until`]
    pub fn set_adopt_until(&mut self, time: u64) {
        self.written.adopt_until = time;
        self.page.adopt_until().store(time, Ordering::Relaxed);
    }

    /// What does not change while an agent runs.
    pub fn set_host(&mut self, hz: u32, event_budget: u32, netns: u64) {
        // Answers of an earlier agent's time may be on their way.
        if self.written.answer_mark == 0 {
            self.written.answer_mark = random();
            self.page.answer_mark().store(self.written.answer_mark, Ordering::Relaxed);
        }
        (self.written.hz, self.written.event_budget) = (hz, event_budget);
        self.written.netns = netns;
        self.page.hz().store(hz, Ordering::Relaxed);
        self.page.event_budget().store(event_budget, Ordering::Relaxed);
        self.page.netns().store(netns, Ordering::Relaxed);
    }

    /// Puts right what somebody else has changed; gives the names of those fields.
    pub fn restore(&self) -> Vec<&'static str> {
        let (is, page) = (self.page.read(), &self.page);
        let Control {
            stamp,
            levels,
            flags,
            netns,
            adopt_until,
            hz,
            event_budget,
            answer_mark,
            zero: _,
            shares,
        } = self.written;
        let [guaranteed, limit, free_until] = page.shares();
        let mut altered = Vec::new();
        let words = [
            ("netns", is.netns, netns, page.netns()),
            ("adopt_until", is.adopt_until, adopt_until, page.adopt_until()),
            // Last: a decision begins with the stamp.
            ("stamp", is.stamp, stamp, page.stamp()),
        ];
        let halves = [
            ("levels", is.levels, levels, page.levels()),
            ("flags", is.flags, flags, page.flags()),
            ("hz", is.hz, hz, page.hz()),
            ("event_budget", is.event_budget, event_budget, page.event_budget()),
            ("answer_mark", is.answer_mark, answer_mark, page.answer_mark()),
            ("shares", is.shares.guaranteed, shares.guaranteed, guaranteed),
            ("shares", is.shares.limit, shares.limit, limit),
            ("shares", is.shares.free_until, shares.free_until, free_until),
        ];
        for (name, is, written, word) in halves {
            if is != written {
                word.store(written, Ordering::Relaxed);
                altered.push(name);
            }
        }
        for (name, is, written, word) in words {
            if is != written {
                word.store(written, Ordering::Release);
                altered.push(name);
            }
        }
        altered
    }
}
