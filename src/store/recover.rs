//! Start-up: from the files to what is in RAM. The index only saves reading the manifests and tells the order of use.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::evict::Item;
use super::index::Record;
use super::layout;
use super::links::Children;
use super::refs::Found;
use super::{Store, disk};
use crate::clock::Timestamp;
use crate::oci::{Algorithm, Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest};

/// Reads the directory into the store.
pub(super) fn recover(store: &Store, records: HashMap<Digest, Record>) -> io::Result<()> {
    let mut items = find_blobs(store, &records)?;
    items.extend(find_partials(store)?);
    store.find_quarantined()?;
    items.sort_by_key(|(last_used, ..)| *last_used);
    for (last_used, item, allocated) in items {
        store.ledger().insert(item, allocated, last_used);
    }
    // What was just entered is no news to the index.
    store.ledger().take_touched();
    find_refs(store, &records)?;
    for digest in records.keys().filter(|digest| !store.contains(digest)) {
        store.index.remove(*digest);
    }
    let _files = super::lock(&store.files);
    store.trim();
    Ok(())
}

type FoundItem = (Timestamp, Item, u64);

fn find_blobs(store: &Store, records: &HashMap<Digest, Record>) -> io::Result<Vec<FoundItem>> {
    let mut found = Vec::new();
    for algorithm in Algorithm::ALL {
        let root = store.layout.blobs().join(algorithm.as_str());
        for shelf in store.disk.list(&root)? {
            for entry in store.disk.list(&root.join(&shelf.name))? {
                let Ok(digest) = Digest::from_parts(algorithm.as_str(), &entry.name) else {
                    tracing::warn!(file = entry.name, "a file under blobs/ that larder did not write; it is left alone");
                    continue;
                };
                let stat = store.disk.stat(&store.layout.blob(&digest))?;
                let last_used = records.get(&digest).map_or_else(|| stat.modified.into(), |record| record.last_used);
                found.push((last_used, Item::Stored(digest), stat.allocated));
            }
        }
    }
    Ok(found)
}

/// Partials of the same boot or of a clean stop are continued by whoever asks for them; others may hold anything.
fn find_partials(store: &Store) -> io::Result<Vec<FoundItem>> {
    let mut found = Vec::new();
    for upstream in store.disk.list(&store.layout.partials())? {
        let directory = store.layout.partials().join(&upstream.name);
        let name: Arc<str> = upstream.name.into();
        for entry in store.disk.list(&directory)? {
            let path = directory.join(&entry.name);
            match layout::digest_of(&entry.name) {
                Some(digest) if store.lock.partials_are_durable => {
                    let stat = store.disk.stat(&path)?;
                    found.push((stat.modified.into(), Item::Partial(Arc::clone(&name), digest), stat.allocated));
                }
                _ => disk::remove_if_there(&*store.disk, &path)?,
            }
        }
    }
    Ok(found)
}

fn find_refs(store: &Store, records: &HashMap<Digest, Record>) -> io::Result<()> {
    let mut lost = Vec::new();
    store.refs.walk(&mut |found| match found {
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
