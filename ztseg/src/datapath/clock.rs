//! How many jiffies a second this kernel counts.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::measure::{self, ProgramType};
use super::sys;

/// The values that `CONFIG_HZ` can have on x86 and arm64.
const KNOWN: [u32; 4] = [100, 250, 300, 1000];

/// `call bpf_jiffies64; exit`
const READ_JIFFIES: [u64; 2] = [0x0000_0076_0000_0085, 0x95];

/// Measures it: no file says it, and the programs count time in jiffies because that costs nothing.
pub fn jiffies_per_second() -> io::Result<u32> {
    let program = measure::load(ProgramType::Classifier, None, &READ_JIFFIES)?;
    let read = || sys::test_run(program.as_fd(), &[0; 64], &[], 1).map(|run| run.value);
    let start = Instant::now();
    let first = read()?;
    std::thread::sleep(Duration::from_millis(50));
    let ticks = f64::from(read()?.wrapping_sub(first));
    Ok(nearest(ticks / start.elapsed().as_secs_f64()))
}

fn nearest(measured: f64) -> u32 {
    let distance = |hz: u32| (f64::from(hz).ln() - measured.max(1.0).ln()).abs();
    KNOWN.into_iter().min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(KNOWN[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rough_measurement_finds_the_setting() {
        for (measured, hz) in [(0.0, 100), (95.0, 100), (240.0, 250), (300.0, 300), (980.0, 1000)] {
            assert_eq!(nearest(measured), hz, "{measured}");
        }
    }
}
