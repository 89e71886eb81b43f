//! The programs' control word, in this process' memory.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ztseg_common::shares::Shares;
use ztseg_common::value::Control;

/// The control word of the programs, mapped: its fields are stored word by word, so that no program
/// ever reads half of one.
#[derive(Debug)]
pub struct ControlPage {
    page: NonNull<Control>,
}

// SAFETY: the page is shared memory; every access goes through atomics.
unsafe impl Send for ControlPage {}
// SAFETY: as above.
unsafe impl Sync for ControlPage {}

const PAGE: usize = 4096;

impl ControlPage {
    /// Maps an array map that was made with `BPF_F_MMAPABLE`.
    pub fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping of the map's only page.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(|page| Self { page }).ok_or_else(io::Error::last_os_error)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset < size_of::<Control>());
        // SAFETY: inside the mapped page, aligned, and only ever accessed atomically here.
        unsafe { AtomicU64::from_ptr(self.page.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        debug_assert!(offset.is_multiple_of(4) && offset < size_of::<Control>());
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.page.as_ptr().cast::<u8>().add(offset).cast()) }
    }

    /// [`Control::stamp`]
    pub fn stamp(&self) -> &AtomicU64 {
        self.word(std::mem::offset_of!(Control, stamp))
    }

    /// [`Control::netns`]
    pub fn netns(&self) -> &AtomicU64 {
        self.word(std::mem::offset_of!(Control, netns))
    }

    /// [`Control::adopt_until`]
    pub fn adopt_until(&self) -> &AtomicU64 {
        self.word(std::mem::offset_of!(Control, adopt_until))
    }

    /// [`Control::levels`]
    pub fn levels(&self) -> &AtomicU32 {
        self.half(std::mem::offset_of!(Control, levels))
    }

    /// [`Control::flags`]
    pub fn flags(&self) -> &AtomicU32 {
        self.half(std::mem::offset_of!(Control, flags))
    }

    /// [`Control::hz`]
    pub fn hz(&self) -> &AtomicU32 {
        self.half(std::mem::offset_of!(Control, hz))
    }

    /// [`Control::event_budget`]
    pub fn event_budget(&self) -> &AtomicU32 {
        self.half(std::mem::offset_of!(Control, event_budget))
    }

    /// [`Control::answer_mark`]
    pub fn answer_mark(&self) -> &AtomicU32 {
        self.half(std::mem::offset_of!(Control, answer_mark))
    }

    /// [`Control::shares`]: guaranteed, limit, free until.
    pub fn shares(&self) -> [&AtomicU32; 3] {
        let at = std::mem::offset_of!(Control, shares);
        [
            self.half(at + std::mem::offset_of!(Shares, guaranteed)),
            self.half(at + std::mem::offset_of!(Shares, limit)),
            self.half(at + std::mem::offset_of!(Shares, free_until)),
        ]
    }

    /// A copy of everything.
    pub fn read(&self) -> Control {
        Control {
            stamp: self.stamp().load(Ordering::Acquire),
            levels: self.levels().load(Ordering::Relaxed),
            flags: self.flags().load(Ordering::Relaxed),
            netns: self.netns().load(Ordering::Relaxed),
            adopt_until: self.adopt_until().load(Ordering::Relaxed),
            hz: self.hz().load(Ordering::Relaxed),
            event_budget: self.event_budget().load(Ordering::Relaxed),
            answer_mark: self.answer_mark().load(Ordering::Relaxed),
            shares: {
                let [guaranteed, limit, free_until] =
                    self.shares().map(|word| word.load(Ordering::Relaxed));
                Shares { guaranteed, limit, free_until, zero: 0 }
            },
            ..Control::default()
        }
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; nothing refers to it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
