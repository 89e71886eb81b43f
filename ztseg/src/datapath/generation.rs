//! Generations: a complete set of inner maps, filled beside the one in force, then switched to by
//! one store.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use anyhow::Context as _;
use bytemuck::{NoUninit, Zeroable};
use rustc_hash::FxHashMap;
use ztseg_common::addr::Addr;
use ztseg_common::key::{
    EntryKey, PORT_CHUNKS, PORT_SLOTS, PORTS_PER_CHUNK, PrefixKey, WorkloadKey,
};
use ztseg_common::value::{Entry, Fallback, Peer, PortChunk, Rule, Subject, Workload};

use super::hosts::{Look, room};
use super::sys::{self, MapSpec, MapType};
use super::{Capacity, DatapathError};
use crate::clocks::Clocks;
use crate::image::{Hosts, Image};

const NO_PREALLOC: u32 = 1;
const INNER_MAP: u32 = 1 << 12;

/// The slot that no program reads.
const GRACE_SLOT: u32 = 2;

/// The outer maps, by the names they have in the kernel object.
pub const OUTER: [&str; 8] =
    ["WORKLOADS", "SUBJECTS", "RULES", "FALLBACKS", "PORTS", "ENTRIES", "HOSTS", "PREFIXES"];

/// One filled set of inner maps.
#[derive(Debug)]
pub struct Generation {
    /// In the order of [`OUTER`].
    inner: [Arc<Inner>; 8],
    tables: Tables,
    /// What the map of hosts has, changes since the commit included.
    pub(super) hosts: Hosts,
    /// Where the guard looks next.
    pub(super) look: Look,
    /// How many rules there are, index zero included.
    pub rule_count: usize,
}

#[derive(Debug)]
struct Inner {
    map: OwnedFd,
    id: u32,
}

impl Inner {
    fn new(map: OwnedFd) -> anyhow::Result<Arc<Self>> {
        let id = sys::map_info(map.as_fd()).context("asking for a map's id")?.id;
        Ok(Arc::new(Self { map, id }))
    }

    /// What never changes, nobody shall change.
    fn frozen(name: &str, map: OwnedFd) -> anyhow::Result<Arc<Self>> {
        sys::map_freeze(map.as_fd()).with_context(|| format!("freezing the map {name}"))?;
        Self::new(map)
    }
}

/// The large tables of an image, which most changes of a policy leave as they are.
#[derive(Debug)]
struct Tables {
    entries: Arc<FxHashMap<EntryKey, Entry>>,
    prefixes: Arc<BTreeMap<PrefixKey, Peer>>,
}

impl Tables {
    fn of(image: &Image) -> Self {
        Self { entries: image.entries.clone(), prefixes: image.prefixes.clone() }
    }
}

/// A place in the outer maps.
#[derive(Clone, Copy, Debug)]
pub struct Slots<'a> {
    /// The outer maps, by name.
    pub outer: &'a HashMap<&'static str, OwnedFd>,
    /// Which slot.
    pub slot: u32,
}

impl Generation {
    /// The inner map of workloads, which changes while the generation is in force.
    pub fn workloads(&self) -> BorrowedFd<'_> {
        self.inner[0].map.as_fd()
    }

    /// The inner map of hosts, which does, too.
    pub(super) fn hosts_map(&self) -> BorrowedFd<'_> {
        self.inner[6].map.as_fd()
    }

    /// Looks at some of the hosts; says which are not as they were put.
    pub(super) fn look_at_hosts(&mut self) -> io::Result<Vec<Addr>> {
        self.look.step(self.inner[6].map.as_fd(), &self.hosts)
    }

    /// Whether it was filled with this image, or one that shares its entries: class numbers mean the
    /// same in both.
    pub(super) fn is_of(&self, image: &Image) -> bool {
        Arc::ptr_eq(&self.tables.entries, &image.entries)
    }

    /// The inner map of rules, whose hits are counted.
    pub fn rules(&self) -> BorrowedFd<'_> {
        self.inner[2].map.as_fd()
    }

    /// Puts its maps back where others are in their place; says which.
    pub fn restore(&self, at: &Slots<'_>) -> Vec<(String, anyhow::Result<()>)> {
        let mut restored = Vec::new();
        for (name, inner) in OUTER.into_iter().zip(&self.inner) {
            let mut id = [0u32];
            let there = at.outer.get(name).map(|outer| {
                let outer = outer.as_fd();
                sys::map_lookup(outer, &at.slot, &mut id).is_ok() && id[0] == inner.id
            });
            if there != Some(true) {
                let again = store(at.outer, name, at.slot, &inner.map);
                restored.push((format!("{name}[{}]", at.slot), again));
            }
        }
        restored
    }
}

/// Makes and pins the outer maps that are not there yet.
///
/// Kernel 6.1 takes an inner map only if it has BTF where the first one had, and not if the first one
/// had none (`timer_off` in `bpf_map_meta_equal`). So they are made here, without, before the object
/// is loaded, which then adopts them.
pub fn create_outer(maps: &Path) -> anyhow::Result<()> {
    type Create = fn(&str) -> anyhow::Result<OwnedFd>;
    let first: [(&str, Create); 8] = [
        ("WORKLOADS", |name| hash::<WorkloadKey, Workload>(name, 1, NO_PREALLOC)),
        ("SUBJECTS", |name| create::<u32, Subject>(name, MapType::Array, 1, INNER_MAP)),
        ("RULES", |name| create::<u32, Rule>(name, MapType::Array, 1, INNER_MAP)),
        ("FALLBACKS", |name| create::<u32, Fallback>(name, MapType::Array, 1, INNER_MAP)),
        ("PORTS", |name| create::<u32, PortChunk>(name, MapType::Array, 1, INNER_MAP)),
        ("ENTRIES", |name| hash::<EntryKey, Entry>(name, 1, 0)),
        ("HOSTS", |name| hash::<Addr, Peer>(name, 1, 0)),
        ("PREFIXES", |name| create::<PrefixKey, Peer>(name, MapType::LpmTrie, 1, NO_PREALLOC)),
    ];
    for (name, inner) in first {
        let pin = maps.join(name);
        if pin.exists() {
            continue;
        }
        let spec = MapSpec {
            map_type: MapType::ArrayOfMaps,
            key_size: size_of::<u32>(),
            value_size: size_of::<u32>(),
            max_entries: GRACE_SLOT + 1,
            flags: 0,
        };
        let inner = inner(name)?;
        let outer = sys::map_create(name, &spec, Some(inner.as_fd()))
            .with_context(|| format!("creating the map of maps {name}"))?;
        sys::pin(outer.as_fd(), &pin).with_context(|| format!("pinning {}", pin.display()))?;
    }
    Ok(())
}

/// Refuses an image that does not fit, naming what and the option that raises it.
pub fn check_capacity(image: &Image, capacity: &Capacity) -> Result<(), DatapathError> {
    let rows = [
        ("verdict entries", image.entries.len(), capacity.verdicts, "verdicts"),
        ("peer addresses", image.hosts.len() + image.prefixes.len(), capacity.peers, "peers"),
        ("workloads", image.workloads.len(), capacity.workloads, "workloads"),
    ];
    for (what, needed, limit, option) in rows {
        if needed > limit as usize {
            return Err(DatapathError::Capacity { what, needed, limit, option });
        }
    }
    Ok(())
}

/// What a generation is filled with.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The policy.
    pub image: &'a Image,
    /// The workloads of this host, with the flags of their interfaces.
    pub workloads: &'a HashMap<WorkloadKey, Workload>,
    /// How many workloads there may be.
    pub capacity: &'a Capacity,
    /// When rules end.
    pub clocks: &'a Clocks,
}

/// Makes and fills the inner maps, and puts them into `slot` of the outer maps.
///
/// The slot must be idle: no program reads it any more. Large maps that would be as those of `before`
/// are taken from it, so two generations may have them: nobody writes into them but into the hosts,
/// and there for the generation in force, while no program reads the other slot.
pub fn fill(
    outer: &HashMap<&'static str, OwnedFd>,
    slot: u32,
    content: Content<'_>,
    before: Option<&Generation>,
) -> anyhow::Result<Generation> {
    let tables = Tables::of(content.image);
    let inner = inner_maps(content, &tables, before)?;
    // Each store waits for a grace period; side by side they wait for the same one.
    side_by_side(OUTER.iter().zip(&inner), |(name, inner)| store(outer, name, slot, &inner.map))?;
    let (hosts, look) = (content.image.hosts.clone(), Look::default());
    Ok(Generation { inner, tables, hosts, look, rule_count: content.image.rules.len() })
}

/// The inner maps, in the order of [`OUTER`].
fn inner_maps(
    content: Content<'_>,
    tables: &Tables,
    before: Option<&Generation>,
) -> anyhow::Result<[Arc<Inner>; 8]> {
    let Content { image, workloads, capacity, clocks } = content;
    let again = |name: &str, same: fn(&Generation, &Tables, &Image) -> bool| {
        let before = before.filter(|before| same(before, tables, image))?;
        let (_, inner) = OUTER.iter().zip(&before.inner).find(|(outer, _)| **outer == name)?;
        Some(inner.clone())
    };
    thread::scope(|scope| {
        let entries = scope.spawn(|| {
            again("ENTRIES", |a, b, _| a.tables.entries == b.entries).map_or_else(
                || large("ENTRIES", MapType::Hash, 0, tables.entries.iter().map(copied)),
                Ok,
            )
        });
        let hosts = scope.spawn(|| {
            again("HOSTS", |a, _, image| a.hosts == image.hosts).map_or_else(
                || {
                    let ceiling = (capacity.peers as usize).saturating_sub(image.prefixes.len());
                    let room = size(room(image.hosts.len(), ceiling));
                    let map = hash::<Addr, Peer>("HOSTS", room, 0)?;
                    fill_map(&map, "HOSTS", image.hosts.iter())?;
                    // Addresses change while the generation is in force.
                    Inner::new(map)
                },
                Ok,
            )
        });
        let prefixes = scope.spawn(|| {
            let prefixes = tables.prefixes.iter().map(copied);
            again("PREFIXES", |a, b, _| a.tables.prefixes == b.prefixes)
                .map_or_else(|| large("PREFIXES", MapType::LpmTrie, NO_PREALLOC, prefixes), Ok)
        });

        let workload_map =
            hash::<WorkloadKey, Workload>("WORKLOADS", capacity.workloads, NO_PREALLOC)?;
        fill_map(&workload_map, "WORKLOADS", workloads.iter().map(copied))?;
        let end = |rule: &Rule| if rule.expires == 0 { 0 } else { clocks.boot_at(rule.expires) };
        let on_boot_time = |rule: &Rule| Rule { expires: end(rule), ..*rule };
        let rules = image.rules.iter().map(on_boot_time).collect::<Vec<_>>();
        Ok([
            // The workloads change while the generation is in force.
            Inner::new(workload_map)?,
            Inner::frozen("SUBJECTS", array::<Subject>("SUBJECTS", &image.subjects)?)?,
            Inner::frozen("RULES", array::<Rule>("RULES", &rules)?)?,
            Inner::frozen("FALLBACKS", array::<Fallback>("FALLBACKS", &image.fallbacks)?)?,
            Inner::frozen("PORTS", array::<PortChunk>("PORTS", &port_chunks(&image.ports))?)?,
            joined(entries)?,
            joined(hosts)?,
            joined(prefixes)?,
        ])
    })
}

/// A map that is filled and never changes.
fn large<K: NoUninit + Send + Sync, V: NoUninit + Send + Sync>(
    name: &str,
    map_type: MapType,
    flags: u32,
    pairs: impl ExactSizeIterator<Item = (K, V)>,
) -> anyhow::Result<Arc<Inner>> {
    let map = create::<K, V>(name, map_type, size(pairs.len()), flags)?;
    fill_map(&map, name, pairs)?;
    Inner::frozen(name, map)
}

/// Does something for each of a few things at the same time.
fn side_by_side<T: Send>(
    things: impl Iterator<Item = T>,
    work: impl Fn(T) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = things.map(|thing| scope.spawn(move || work(thing))).collect();
        running.into_iter().try_for_each(joined)
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
}

fn copied<K: Copy, V: Copy>((key, value): (&K, &V)) -> (K, V) {
    (*key, *value)
}

/// Returns when no program runs any more that began before the call.
///
/// An update of a map of maps waits for running programs before it returns
/// (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c).
pub fn wait_for_grace_period(
    outer: &HashMap<&'static str, OwnedFd>,
    any: &Generation,
) -> anyhow::Result<()> {
    store(outer, "WORKLOADS", GRACE_SLOT, &any.inner[0].map)
}

fn store(
    outer: &HashMap<&'static str, OwnedFd>,
    name: &str,
    slot: u32,
    inner: &OwnedFd,
) -> anyhow::Result<()> {
    let outer = outer.get(name).with_context(|| format!("no outer map {name}"))?;
    sys::map_update(outer.as_fd(), &slot, &inner.as_raw_fd())
        .with_context(|| format!("storing the map {name} in slot {slot}"))
}

fn size(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

fn create<K, V>(
    name: &str,
    map_type: MapType,
    max_entries: u32,
    flags: u32,
) -> anyhow::Result<OwnedFd> {
    let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
    sys::map_create(name, &MapSpec { map_type, key_size, value_size, max_entries, flags }, None)
        .with_context(|| format!("creating the map {name} with {max_entries} entries"))
}

fn hash<K, V>(name: &str, max_entries: u32, flags: u32) -> anyhow::Result<OwnedFd> {
    create::<K, V>(name, MapType::Hash, max_entries, flags)
}

/// Elements from which on several processors fill a map.
const SHARED_WORK: usize = 1 << 14;
/// Processors that are taken for it at most: the host has other work.
const MAX_WORKERS: usize = 4;

fn fill_map<K: NoUninit + Send + Sync, V: NoUninit + Send + Sync>(
    map: &OwnedFd,
    name: &str,
    pairs: impl Iterator<Item = (K, V)>,
) -> anyhow::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = pairs.unzip();
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    let part = keys.len().div_ceil(workers).max(SHARED_WORK);
    side_by_side(keys.chunks(part).zip(values.chunks(part)), |(keys, values)| {
        sys::map_update_batch(map.as_fd(), keys, values)
            .with_context(|| format!("filling the map {name} with {} entries", keys.len()))
    })
}

fn array<V: NoUninit + Send + Sync>(name: &str, values: &[V]) -> anyhow::Result<OwnedFd> {
    let map = create::<u32, V>(name, MapType::Array, size(values.len()), INNER_MAP)?;
    fill_map(&map, name, (0..).zip(values.iter().copied()))?;
    Ok(map)
}

fn port_chunks(ports: &[u16]) -> Vec<PortChunk> {
    debug_assert_eq!(ports.len(), PORT_SLOTS);
    let mut chunks = vec![PortChunk::zeroed(); PORT_CHUNKS];
    for (chunk, ports) in chunks.iter_mut().zip(ports.chunks(PORTS_PER_CHUNK)) {
        chunk.classes[..ports.len()].copy_from_slice(ports);
    }
    chunks
}
