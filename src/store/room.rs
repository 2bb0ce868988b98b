//! Room: what fills are promised, what has to leave for it, and in which order it leaves. All of it blocks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::evict::plan::{Demand, Plan, Victim};
use super::evict::{GRACE, Item, Ledger};
use super::health::Trouble;
use super::uptime::DaemonTime;
use super::{Store, StoreError, disk, io_error};
use crate::oci::Digest;

/// A file system may be slow to tell its free space; it is asked that often, and before large promises.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);
const LARGE: u64 = 16 << 20;
/// What a record takes: its old file, its new one, and directories.
pub(super) const RECORD_ROOM: u64 = 4 * 4096;
/// Background work lets fills at the files in between, and ends in time for the next round.
const BATCH: usize = 64;
const BATCHES_MAX: usize = 256;
/// Headroom that is kept free in the background, so that a miss need not wait for others' files to go: from beyond the
/// high mark down to the low one, as parts of the bound, though not more than so many bytes.
const HIGH_PART: u64 = 64;
const LOW_PART: u64 = 32;
const HEADROOM_MAX: u64 = 16 << 30;

/// Sizes the cache must not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    max_size: u64,
    /// At which `cache.min_free` of the disk is left.
    disk: u64,
}

impl Bounds {
    fn excess(self, size: u64) -> Demand {
        Demand { size: size.saturating_sub(self.max_size), min_free: size.saturating_sub(self.disk), unused_before: DaemonTime(0) }
    }

    pub(super) fn hold(self, size: u64) -> bool {
        self.excess(size) == Demand::default()
    }

    fn less(self, part: u64) -> Bounds {
        let mark = |bound: u64| bound - (bound / part).min(HEADROOM_MAX);
        Bounds { max_size: mark(self.max_size), disk: if self.disk == u64::MAX { u64::MAX } else { mark(self.disk) } }
    }
}

impl Store {
    /// Promises bytes that are about to be written, and makes room for them: no more than they need.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let bounds = self.bounds(bytes >= LARGE);
        let _files = self.files.lock();
        if self.loading.is_under_way() {
            return self.reserve_while_loading(bytes, bounds);
        }
        let full = || {
            self.metrics.write_failed("full");
            // What is too much for the cache's own bound is no trouble with its disk.
            if bounds.excess(self.ledger().size()).min_free > 0 {
                self.is_in_trouble(Trouble::Full);
            }
            StoreError::Full
        };
        loop {
            let size = self.ledger().size();
            let plan = self.plan(bounds.excess(size.saturating_add(bytes)));
            if plan.missing > 0 {
                return Err(full());
            }
            if plan.victims.is_empty() {
                self.ledger().reserve(bytes);
                return Ok(());
            }
            if self.evict(&plan.victims) == 0 {
                return Err(full());
            }
        }
    }

    /// Nothing leaves while it is not known what was used last: there is room, or there is none yet.
    fn reserve_while_loading(&self, bytes: u64, bounds: Bounds) -> Result<(), StoreError> {
        let mut ledger = self.ledger();
        if !bounds.hold(ledger.size().saturating_add(bytes)) {
            return Err(StoreError::Loading);
        }
        ledger.reserve(bytes);
        Ok(())
    }

    /// Whether a blob of this size is stored at all.
    ///
    /// # Errors
    /// When it is larger than `cache.max_blob_size`.
    pub fn takes(&self, size: u64) -> Result<(), StoreError> {
        if size > self.max_blob_size { Err(StoreError::TooLarge) } else { Ok(()) }
    }

    /// Whether so many bytes could be stored beside these objects: there is room, or others may leave for it. Nothing leaves yet.
    pub async fn has_room_beside(self: &Arc<Store>, bytes: u64, beside: Vec<Digest>) -> bool {
        let store = Arc::clone(self);
        let look = move || {
            let item = |digest: &Digest| Item::Stored(*digest);
            // What is pinned could not leave anyhow.
            let (size, stays) = {
                let ledger = store.ledger();
                let stays = beside.iter().map(item).filter(|item| !ledger.is_pinned(item)).filter_map(|item| ledger.allocated(&item));
                (ledger.size(), stays.sum::<u64>())
            };
            let demand = store.bounds(bytes >= LARGE).excess(size.saturating_add(bytes).saturating_add(stays));
            store.plan(demand).missing == 0
        };
        self.gate.run(look).await
    }

    pub(super) fn unreserve(&self, bytes: u64) {
        self.ledger().unreserve(bytes);
    }

    /// Writes a record, which needs room like everything else.
    pub(super) fn with_record_room<T>(&self, write: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.trouble().is_some_and(Trouble::forbids_writing) {
            return Err(io_error("write a record in", self.layout.root(), std::io::ErrorKind::NotFound.into()));
        }
        self.reserve(RECORD_ROOM)?;
        let written = write();
        self.unreserve(RECORD_ROOM);
        written
    }

    /// Lets go of the least recently used until the bounds hold, as far as they can. The file lock is held.
    pub(super) fn trim(&self, bounds: Bounds) {
        if self.loading.is_under_way() {
            return;
        }
        let size = self.ledger().size();
        let plan = self.plan(bounds.excess(size));
        self.evict(&plan.victims);
    }

    /// Brings what was found at the start under the bounds, as far as that can be.
    pub(super) fn trim_all(&self) {
        let bounds = self.bounds(true);
        loop {
            let size = self.ledger().size();
            if !self.evict_some(bounds.excess(size)) {
                break;
            }
        }
    }

    /// Keeps headroom, and lets go of what nobody has used for long.
    pub(super) fn tidy(&self) {
        if self.loading.is_under_way() {
            return;
        }
        let bounds = self.bounds(true);
        for _ in 0..BATCHES_MAX {
            let size = self.ledger().size();
            let is_high = bounds.less(HIGH_PART).excess(size) != Demand::default();
            let demand = if is_high { bounds.less(LOW_PART).excess(size) } else { Demand::default() };
            if !self.evict_some(Demand { unused_before: self.unused_before(), ..demand }) {
                break;
            }
        }
    }

    /// Lets go of the first of what a demand asks for; `false` when that freed nothing.
    fn evict_some(&self, demand: Demand) -> bool {
        let _files = self.files.lock();
        let victims = self.plan_some(demand, BATCH).victims;
        self.evict(&victims) > 0
    }

    fn unused_before(&self) -> DaemonTime {
        match self.evict_unused_after {
            Duration::ZERO => DaemonTime(0),
            after => self.uptime.now().before(after),
        }
    }

    /// Whether less than `cache.min_free` of the disk is left, with what may leave gone.
    pub(super) fn is_beyond_disk(&self) -> bool {
        !self.loading.is_under_way() && self.bounds(true).excess(self.ledger().size()).min_free > 0
    }

    /// Asks for the free space if that is due.
    pub(super) fn bounds(&self, is_due: bool) -> Bounds {
        let mut space = self.space.lock();
        let now = self.clock.steady();
        if is_due || space.is_none_or(|(asked, _)| now.saturating_sub(asked) >= SPACE_INTERVAL) {
            let disk = self.disk_bound().unwrap_or(space.map_or(u64::MAX, |(_, disk)| disk));
            *space = Some((now, disk));
        }
        let disk = space.map_or(u64::MAX, |(_, disk)| disk);
        Bounds { max_size: self.ledger().max_size(), disk }
    }

    /// The size at which `min_free` of the disk is left, whoever else writes to it.
    fn disk_bound(&self) -> Option<u64> {
        let free = self.disk.free_space(self.layout.root()).ok()?;
        self.metrics.cache_disk_free.set(i64::try_from(free).unwrap_or(i64::MAX));
        if self.min_free == 0 {
            return Some(u64::MAX);
        }
        let on_disk = self.ledger().at_rest() + self.written.load(std::sync::atomic::Ordering::Relaxed);
        Some(on_disk.saturating_add(free).saturating_sub(self.min_free))
    }

    fn plan(&self, demand: Demand) -> Plan {
        self.plan_some(demand, usize::MAX)
    }

    fn plan_some(&self, demand: Demand, most: usize) -> Plan {
        if demand == Demand::default() {
            return Plan::default();
        }
        let now = self.uptime.now();
        let is_half_pulled = |ledger: &Ledger, digest: &Digest| {
            let item = |digest: &Digest| Item::Stored(*digest);
            let is_recent = |digest: &Digest| ledger.last_used(&item(digest)).is_some_and(|used| now.since(used) < GRACE);
            self.links().is_half_pulled(digest, is_recent, |digest| ledger.contains(&item(digest)))
        };
        self.ledger().plan(demand, most, now, &is_half_pulled)
    }

    /// Removes victims; says how many bytes that freed. The file lock is held.
    fn evict(&self, victims: &[Victim]) -> u64 {
        let mut sum = 0;
        for victim in victims {
            let item = &victim.item;
            let age = self.ledger().last_used(item).map(|used| self.uptime.now().since(used)).unwrap_or_default();
            if !self.ledger().condemn(item) {
                continue;
            }
            if let Err((path, error)) = self.remove_files(item) {
                self.metrics.write_failed("io");
                tracing::error!(path = %path.display(), %error, "an evicted file could not be removed; it is kept");
                self.ledger().spare(item, self.uptime.now());
                continue;
            }
            let freed = self.ledger().remove(item).unwrap_or_default();
            self.metrics.evicted(victim.reason.as_str(), freed, age);
            sum += freed.max(1);
        }
        sum
    }

    /// First what names it, tags before manifests, then its bytes: a crash in between leaves bytes that nobody names, or a
    /// manifest that no tag names, and both are found again.
    fn remove_files(&self, item: &Item) -> Result<(), (PathBuf, std::io::Error)> {
        let path = match item {
            Item::Stored(digest) => self.layout.blob(digest),
            Item::Partial(upstream, digest) => self.layout.partial(upstream, digest),
        };
        if let Item::Stored(digest) = item {
            if let Err(error) = self.drop_records(digest) {
                return Err((path, error));
            }
            self.forget(digest);
        }
        disk::remove_if_there(&*self.disk, &path).map_err(|error| (path, error))
    }

    /// Removes every record that names a digest.
    pub(super) fn drop_records(&self, digest: &Digest) -> std::io::Result<()> {
        let (holders, upstreams) = {
            let links = self.links();
            (links.holders(digest).cloned().collect::<Vec<_>>(), links.confirmed(digest).to_vec())
        };
        holders.iter().try_for_each(|holder| self.refs.drop_manifest(holder, digest))?;
        upstreams.iter().try_for_each(|upstream| self.refs.drop_confirmation(upstream, digest))
    }

    /// Forgets what is known of a digest whose records are gone.
    pub(super) fn forget(&self, digest: &Digest) {
        self.links_mut().forget(digest);
        self.memory.invalidate(digest);
        self.trust.forget(digest);
        self.index.remove(*digest);
        if self.pins.lock().forget(digest) {
            self.repin();
        }
    }

    /// Says anew what is pinned, since a tag moved or a manifest came.
    pub(super) fn repin(&self) {
        let pins = self.pins.lock();
        let pinned = pins.closure(&self.links());
        self.ledger().pin(pinned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_below_the_bounds_and_no_bound_has_none() {
        let bounds = Bounds { max_size: 6400, disk: u64::MAX };
        assert_eq!(bounds.less(HIGH_PART), Bounds { max_size: 6300, disk: u64::MAX });
        assert_eq!(bounds.less(LOW_PART), Bounds { max_size: 6200, disk: u64::MAX });
        let large = Bounds { max_size: 100 << 40, disk: 10 };
        assert_eq!(large.less(LOW_PART), Bounds { max_size: (100 << 40) - HEADROOM_MAX, disk: 10 });
        assert_eq!(large.excess(25), Demand { size: 0, min_free: 15, unused_before: DaemonTime(0) });
    }
}
