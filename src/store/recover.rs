//! Start-up: from the files to what is in RAM. The index only saves reading the manifests and tells the order of use.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::evict::Item;
use super::index::Record;
use super::layout;
use super::links::Children;
use super::refs::Found;
use super::uptime::DaemonTime;
use super::{Store, disk};
use crate::clock::Timestamp;
use crate::oci::{Algorithm, Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest};

/// A use may be written down before the daemon time is, but not by more than this.
const BELIEVED: Duration = Duration::from_secs(3600);

/// When something was last used, as far as one can tell; in this order. What is not known in daemon time is taken to be
/// used now, one thing after the other: nothing is evicted because a hint was lost, and nothing kept for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LastUsed {
    Known(DaemonTime),
    /// In a daemon time that is lost: it tells the order.
    Recorded(DaemonTime),
    /// The file's own time, of a clock that may have been wrong.
    Modified(Timestamp),
}

/// Reads the directory into the store. `last_stop` is the daemon time that the last run wrote down.
pub(super) fn recover(store: &Store, records: HashMap<Digest, Record>, last_stop: Option<DaemonTime>) -> io::Result<()> {
    let mut items = find_blobs(store, &records, last_stop)?;
    items.extend(find_partials(store)?);
    store.find_quarantined()?;
    items.sort_by_key(|(last_used, ..)| *last_used);
    let news = enter(store, items);
    // What the index knew is no news to it.
    store.ledger().take_touched();
    store.index.touch(news);
    find_refs(store, &records)?;
    if !store.lock.partials_are_durable {
        // Of what was removed in order, a power cut may have undone the first and not the last.
        store.drop_lost_tags()?;
    }
    find_pins(store)?;
    for digest in records.keys().filter(|digest| !store.contains(digest)) {
        store.index.remove(*digest);
    }
    let bounds = store.bounds(true);
    let _files = super::lock(&store.files);
    store.trim(bounds);
    Ok(())
}

/// Enters what was found, and says which times of use were made up.
fn enter(store: &Store, items: Vec<FoundItem>) -> Vec<(Digest, DaemonTime)> {
    let mut news = Vec::new();
    for (last_used, item, allocated) in items {
        let (now, is_news) = match last_used {
            LastUsed::Known(then) => (then, false),
            LastUsed::Recorded(_) | LastUsed::Modified(_) => (store.uptime.now().plus(Duration::from_millis(1)), true),
        };
        // Daemon time goes on from the last use that is known.
        store.uptime.at_least(now);
        if let Item::Stored(digest) = item
            && is_news
        {
            news.push((digest, now));
        }
        store.ledger().insert(item, allocated, now);
    }
    news
}

type FoundItem = (LastUsed, Item, u64);

fn find_blobs(store: &Store, records: &HashMap<Digest, Record>, last_stop: Option<DaemonTime>) -> io::Result<Vec<FoundItem>> {
    let believed = last_stop.map(|last_stop| last_stop.plus(BELIEVED));
    let mut found = Vec::new();
    store.records.found(&store.layout.blobs());
    let algorithms = store.disk.list(&store.layout.blobs())?;
    for algorithm in Algorithm::ALL {
        let root = store.layout.blobs().join(algorithm.as_str());
        if !algorithms.iter().any(|entry| entry.name == algorithm.as_str()) {
            continue;
        }
        store.records.found(&root);
        for shelf in store.disk.list(&root)? {
            store.records.found(&root.join(&shelf.name));
            for entry in store.disk.list(&root.join(&shelf.name))? {
                let Ok(digest) = Digest::from_parts(algorithm.as_str(), &entry.name) else {
                    tracing::warn!(file = entry.name, "a file under blobs/ that larder did not write; it is left alone");
                    continue;
                };
                let stat = store.disk.stat(&store.layout.blob(&digest))?;
                let last_used = match records.get(&digest) {
                    Some(record) if believed.is_some_and(|latest| record.last_used <= latest) => LastUsed::Known(record.last_used),
                    Some(record) if believed.is_none() => LastUsed::Recorded(record.last_used),
                    _ => LastUsed::Modified(stat.modified.into()),
                };
                found.push((last_used, Item::Stored(digest), stat.allocated));
            }
        }
    }
    Ok(found)
}

/// Partials of the same boot or of a clean stop are continued by whoever asks for them; others may hold anything.
fn find_partials(store: &Store) -> io::Result<Vec<FoundItem>> {
    let mut found = Vec::new();
    store.records.found(&store.layout.partials());
    for upstream in store.disk.list(&store.layout.partials())? {
        let directory = store.layout.partials().join(&upstream.name);
        store.records.found(&directory);
        let name: Arc<str> = upstream.name.into();
        for entry in store.disk.list(&directory)? {
            let path = directory.join(&entry.name);
            match layout::digest_of(&entry.name) {
                Some(digest) if store.lock.partials_are_durable => {
                    let stat = store.disk.stat(&path)?;
                    found.push((LastUsed::Modified(stat.modified.into()), Item::Partial(Arc::clone(&name), digest), stat.allocated));
                }
                _ => disk::remove_if_there(&*store.disk, &path)?,
            }
        }
    }
    Ok(found)
}

fn find_refs(store: &Store, records: &HashMap<Digest, Record>) -> io::Result<()> {
    let (mut lost, mut unfounded) = (Vec::new(), Vec::new());
    store.records.found(&store.layout.refs());
    store.refs.walk(&mut |found| match found {
        // It is written just before the blob is stored.
        Found::Confirmation { upstream, digest } if !store.contains(&digest) => unfounded.push((upstream, digest)),
        Found::Confirmation { upstream, digest } => store.links_mut().confirm(&upstream, digest),
        Found::Manifest { repository, descriptor } => {
            let known = store.links().children(&descriptor.digest).cloned();
            match known.or_else(|| children(store, records, &descriptor)) {
                None => lost.push((repository, descriptor.digest)),
                Some(children) => {
                    let mut links = store.links_mut();
                    links.list(descriptor.digest, children);
                    links.hold(repository, descriptor.digest, descriptor.media_type);
                }
            }
        }
    })?;
    // A crash between unlinking a manifest and its record, or a file that somebody removed.
    for (repository, digest) in lost {
        store.refs.drop_manifest(&repository, &digest)?;
    }
    unfounded.iter().try_for_each(|(upstream, digest)| store.refs.drop_confirmation(upstream, digest))
}

/// What the pinned tags name.
fn find_pins(store: &Store) -> io::Result<()> {
    let repositories = super::lock(&store.pins).repositories();
    for repository in repositories {
        for tag in store.refs.tags(&repository)? {
            let key = (repository.clone(), tag);
            if let Some(record) = store.refs.tag(&key)? {
                super::lock(&store.pins).name(&key, record.descriptor.digest);
            }
        }
    }
    store.repin();
    Ok(())
}

/// What a manifest lists: from the index, else from its bytes, which are then checked.
fn children(store: &Store, records: &HashMap<Digest, Record>, descriptor: &Descriptor) -> Option<Children> {
    if !store.contains(&descriptor.digest) {
        return None;
    }
    if let Some(children) = records.get(&descriptor.digest).and_then(|record| record.children.clone()) {
        return Some(children);
    }
    let bytes = disk::read_small(&*store.disk, &store.layout.blob(&descriptor.digest), MANIFEST_BYTES_MAX).ok()??;
    match Manifest::verified(Bytes::from(bytes), Some(descriptor.media_type.as_str()), &descriptor.digest) {
        Ok(manifest) => {
            let children: Children = manifest.children().iter().map(|child| (child.digest, child.size)).collect();
            let last_used = store.ledger().last_used(&Item::Stored(descriptor.digest)).unwrap_or_default();
            store.index.put(descriptor.digest, Record { last_used, children: Some(Arc::clone(&children)) });
            Some(children)
        }
        Err(error) => {
            tracing::error!(digest = %descriptor.digest, %error, "a stored manifest is damaged");
            store.quarantine(&descriptor.digest);
            None
        }
    }
}
