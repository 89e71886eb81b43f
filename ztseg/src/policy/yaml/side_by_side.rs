//! Many sources on several processors: of a load, reading YAML takes most of the time.

use std::num::NonZero;
use std::thread;

use super::{Documents, read};
use crate::policy::diagnostic::Diagnostic;
use crate::policy::source::Source;

/// Less text than this, in bytes, is read sooner than threads are started.
const WORTH_IT: usize = 256 << 10;
/// How many sources a thread reads before the next ones begin: trees take several times the memory
/// of their text, so not all of them should be there at once.
const EACH: usize = 4;

/// What one source comes to.
type One<'s> = (&'s Source, Documents, Vec<Diagnostic>);

/// Reads all sources, each as [`read`] does; what comes out is in their order.
pub fn read_all(sources: &[Source]) -> impl Iterator<Item = One<'_>> {
    let length: usize = sources.iter().map(|source| source.text.len()).sum();
    let threads =
        if length < WORTH_IT { 1 } else { thread::available_parallelism().map_or(1, NonZero::get) };
    let numbered: Vec<(u32, &Source)> = (0..).zip(sources).collect();
    let mut rest = numbered.into_iter();
    let batches = std::iter::from_fn(move || {
        let batch: Vec<_> = rest.by_ref().take(threads * EACH).collect();
        (!batch.is_empty()).then(|| together(&batch, threads))
    });
    batches.flatten()
}

/// Reads some sources, each thread every so many of them.
fn together<'s>(batch: &[(u32, &'s Source)], threads: usize) -> Vec<One<'s>> {
    let one = |(file, source): (u32, &'s Source)| {
        let mut found = Vec::new();
        let documents = read(source, file, &mut found);
        (source, documents, found)
    };
    if threads.min(batch.len()) <= 1 {
        return batch.iter().copied().map(one).collect();
    }
    let share = |thread: usize| batch.iter().copied().skip(thread).step_by(threads);
    let mut shares: Vec<_> = thread::scope(|scope| {
        let start = |thread| {
            let share = move || share(thread).map(one).collect::<Vec<_>>();
            thread::Builder::new().spawn_scoped(scope, share)
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        // A thread that cannot be started leaves its share to this one.
        let ended = running.into_iter().enumerate().map(|(thread, handle)| {
            let ended = handle.ok().and_then(|handle| handle.join().ok());
            ended.unwrap_or_else(|| share(thread).map(one).collect())
        });
        ended.map(Vec::into_iter).collect()
    });
    (0..batch.len()).filter_map(|place| shares[place % threads].next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_out_in_their_order_with_their_own_errors() {
        // Enough text for threads, and more sources than a batch has.
        let text = |n: usize| match n % 3 {
            0 => format!("n: {n}\nb: [1, 2, 3]\n"),
            1 => format!("n: {n}\n---\nm: 0\n#{}\n", "x".repeat(20_000)),
            _ => format!("n: {n}\nn: {n}\n#{}\n", "x".repeat(20_000)),
        };
        let sources: Vec<_> =
            (0..100).map(|n| Source { name: n.to_string().into(), text: text(n).into() }).collect();
        let all: Vec<_> = read_all(&sources).collect();
        assert_eq!(all.len(), 100);
        for (n, (source, documents, found)) in all.into_iter().enumerate() {
            let mut expected = Vec::new();
            let file = u32::try_from(n).expect("small");
            assert_eq!(documents, read(&sources[n], file, &mut expected));
            assert_eq!((source, found), (&sources[n], expected));
        }
    }
}
