//! Pinned images are made complete, and kept so: those of exact tags are fetched from nothing; of those under a pattern,
//! what clients have pulled. Asking is cheap (a HEAD a tag), and in an outage it becomes rare.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::warm::{Image, Platforms, WarmCount, Warmed};
use super::{Mirror, Repository};
use crate::metrics::Metrics;
use crate::oci::{Glob, Platform, Reference, RepositoryName, Tag, index_entries};
use crate::rng::Rng;

/// Several larders that start at once shall not ask at once.
const START_DELAY: Duration = Duration::from_secs(10);
/// From the end of a round to the next.
const ROUND_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The same after a round that left something incomplete; doubles up to the other.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is looked, without asking anybody, whether something has gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// What could not be stored is not asked for again until there is room, and not before this; doubles.
const UNSTORED_PAUSE: Duration = Duration::from_secs(10 * 60);
const UNSTORED_PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// Platforms that are remembered of an image: no index has more that anybody pulls.
const PLATFORMS_MAX: usize = 64;

/// An entry of `cache.pinned_images`.
#[derive(Clone, Debug)]
pub struct PinnedImages {
    /// A configured upstream.
    pub upstream: String,
    pub repository: RepositoryName,
    pub tags: Glob,
    /// If it is not a pattern.
    pub tag: Option<Tag>,
}

/// What keeps the pinned images complete.
pub struct Pinned {
    mirror: Arc<Mirror>,
    pins: Vec<PinnedImages>,
    /// `cache.pinned_platforms`.
    platforms: Vec<Platform>,
    metrics: Arc<Metrics>,
    rng: Arc<Rng>,
    /// The platforms of an image that were here before its tag moved.
    known: HashMap<String, Vec<Platform>>,
    unstored: HashMap<String, Unstored>,
    /// What was incomplete when somebody last looked, and why as far as that is known.
    missing: BTreeMap<String, String>,
    /// The names that the log has told.
    told: Option<Vec<String>>,
}

/// An image that there was no room for, or that the disk refused.
struct Unstored {
    needs_bytes: u64,
    tries: u32,
    not_before: Instant,
}

impl Pinned {
    pub fn new(mirror: Arc<Mirror>, pins: Vec<PinnedImages>, platforms: Vec<Platform>, metrics: Arc<Metrics>, rng: Arc<Rng>) -> Pinned {
        let (known, unstored) = (HashMap::new(), HashMap::new());
        Pinned { mirror, pins, platforms, metrics, rng, known, unstored, missing: BTreeMap::new(), told: None }
    }

    /// Works for as long as it is awaited; without pins there is nothing to do.
    pub async fn run(mut self) {
        if self.pins.is_empty() {
            return;
        }
        // What is not known to be here would be fetched.
        self.mirror.store.loaded().await;
        self.look().await;
        tokio::time::sleep(self.rng.jitter(START_DELAY)).await;
        let mut failures = 0_u32;
        loop {
            self.round().await;
            failures = if self.missing.is_empty() { 0 } else { failures.saturating_add(1) };
            let pause = if failures == 0 { ROUND_INTERVAL } else { doubled(RETRY_INTERVAL, failures - 1, ROUND_INTERVAL) };
            let until = Instant::now() + self.rng.jitter(pause);
            while Instant::now() < until {
                tokio::time::sleep(LOOK_INTERVAL.min(until.saturating_duration_since(Instant::now()))).await;
                // Evicted by hand, or damaged: not a thing to wait with.
                if self.look().await {
                    break;
                }
            }
        }
    }

    /// Makes all of them complete, as far as that can be done.
    pub async fn round(&mut self) {
        let images = self.images().await;
        let names: HashSet<String> = images.iter().map(ToString::to_string).collect();
        self.known.retain(|name, _| names.contains(name));
        self.unstored.retain(|name, _| names.contains(name));
        let (mut due, mut missing) = (Vec::new(), BTreeMap::new());
        for image in images {
            let name = image.to_string();
            match self.waits(&name).await {
                true => drop(missing.insert(name.clone(), self.missing.get(&name).cloned().unwrap_or_default())),
                false => due.push(image),
            }
        }
        for image in due {
            // One after another: nobody waits for it.
            let (name, platforms) = (image.to_string(), self.wanted(&image).await);
            let Some(warmed) = self.mirror.warm(vec![image], &platforms, &Arc::new(WarmCount::default())).await.pop() else { continue };
            self.note_room(&name, &warmed);
            if !warmed.complete {
                let why: Vec<&str> = warmed.reasons().into_iter().map(|(why, ..)| why).collect();
                missing.insert(name, why.join(", "));
            }
        }
        self.missing = missing;
        self.tell();
    }

    /// Sees what is complete, and asks nobody. Whether something is missing that was there.
    pub async fn look(&mut self) -> bool {
        let mut missing = BTreeMap::new();
        for image in self.images().await {
            let platforms = self.wanted(&image).await;
            if !self.mirror.is_complete(&image, &platforms).await {
                let name = image.to_string();
                let why = self.missing.get(&name).cloned();
                missing.insert(name, why.unwrap_or_default());
            }
        }
        let has_gone = missing.keys().any(|name| !self.missing.contains_key(name));
        self.missing = missing;
        self.metrics.pinned_images_missing.set(i64::try_from(self.missing.len()).unwrap_or(i64::MAX));
        has_gone
    }

    /// What is pinned by name, and what of the patterns has a record.
    async fn images(&self) -> Vec<Image> {
        let mut images = BTreeMap::new();
        for pin in &self.pins {
            let Some(repository) = self.mirror.repositories.named(&pin.upstream, &pin.repository) else { continue };
            let image = |tag: Tag| Image { repository: Repository::clone(&repository), reference: Reference::Tag(tag) };
            let tags = match &pin.tag {
                Some(tag) => vec![tag.clone()],
                None => self.mirror.store.tags(&repository.key).await.into_iter().filter(|tag| pin.tags.matches(tag.as_str())).collect(),
            };
            images.extend(tags.into_iter().map(image).map(|image| (image.to_string(), image)));
        }
        images.into_values().collect()
    }

    /// The platforms of an image: those that are configured, else those that were pulled, also before its tag moved.
    async fn wanted(&mut self, image: &Image) -> Platforms {
        if !self.platforms.is_empty() {
            return Platforms::These(self.platforms.clone());
        }
        let known = self.known.entry(image.to_string()).or_default();
        if let Some(index) = self.mirror.held(image).await.filter(|manifest| manifest.descriptor().media_type.is_index()) {
            for platform in self.mirror.held_platforms(&index_entries(&index)) {
                if !known.contains(&platform) && known.len() < PLATFORMS_MAX {
                    known.push(platform);
                }
            }
        }
        Platforms::Kept(known.clone())
    }

    /// Whether it is better not to ask for an image yet, since it could not be stored.
    async fn waits(&self, name: &str) -> bool {
        let Some(unstored) = self.unstored.get(name) else { return false };
        Instant::now() < unstored.not_before || !self.mirror.store.has_room_beside(unstored.needs_bytes, Vec::new()).await
    }

    fn note_room(&mut self, name: &str, warmed: &Warmed) {
        if warmed.needs_bytes == 0 {
            self.unstored.remove(name);
            return;
        }
        let tries = self.unstored.get(name).map_or(0, |unstored| unstored.tries.saturating_add(1));
        let not_before = Instant::now() + doubled(UNSTORED_PAUSE, tries, UNSTORED_PAUSE_MAX);
        self.unstored.insert(name.to_owned(), Unstored { needs_bytes: warmed.needs_bytes, tries, not_before });
    }

    /// Sets the gauge, and logs what has changed.
    fn tell(&mut self) {
        let count = self.missing.len();
        self.metrics.pinned_images_missing.set(i64::try_from(count).unwrap_or(i64::MAX));
        let names: Vec<String> = self.missing.keys().cloned().collect();
        if self.told.as_ref() == Some(&names) {
            return;
        }
        let images = || self.missing.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ");
        let has_no_room = names.iter().any(|name| self.unstored.contains_key(name));
        match count {
            0 => tracing::info!("all pinned images are complete"),
            _ if has_no_room => tracing::error!(missing = count, images = images(), "pinned images do not fit into the cache"),
            _ => tracing::warn!(missing = count, images = images(), "pinned images are not complete"),
        }
        self.told = Some(names);
    }
}

/// `pause`, doubled so many times, though not beyond `most`.
fn doubled(pause: Duration, times: u32, most: Duration) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(times.min(16))).min(most)
}
