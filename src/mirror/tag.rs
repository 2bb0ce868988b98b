//! GET and HEAD of a manifest by tag. Fresh: serve. Else one question to upstream for all who wait, and the table of `freshness`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::freshness::{self, Answer, Freshness, Held, Said};
use super::manifest::{CHECK_TIMEOUT, ManifestAnswer, Want, plain};
use super::outcome::Outcome;
use super::{Asked, Error, Mirror, Repository};
use crate::oci::{Descriptor, Digest, Manifest, Reference, Tag};
use crate::store::{RepositoryKey, StoreError, TagRecord};
use crate::upstream::{Call, Exchange, ManifestHead, UpstreamError};

/// Tags of one digest that are remembered until its manifest comes.
const TAGS_OF_A_DIGEST_MAX: usize = 15;

/// What came of asking upstream about a tag.
#[derive(Clone)]
pub(super) struct Checked {
    /// The manifest that the tag names now, if upstream said so.
    result: Result<Found, UpstreamError>,
    exchange: Arc<Exchange>,
}

#[derive(Clone)]
enum Found {
    Same(Arc<TagRecord>),
    /// Another one than was held, or the first.
    Moved(Manifest),
}

impl Mirror {
    pub(super) async fn by_tag(self: &Arc<Mirror>, repository: &Repository, tag: &Tag, want: Want) -> Result<ManifestAnswer, Error> {
        let key = (repository.key.clone(), tag.clone());
        let record = match self.store.tag(&key).await {
            // A record whose manifest was evicted is none.
            Ok(record) => record.filter(|record| self.store.contains(&record.descriptor.digest)),
            Err(error) => {
                tracing::error!(%tag, %error, "a tag's record could not be read");
                None
            }
        };
        let now = self.clock.now();
        match (freshness::judge(record.as_deref(), now, repository.source.tag_ttl), record) {
            (Freshness::Fresh { ttl }, Some(record)) => {
                let descriptor = &record.descriptor;
                if let Some(answer) = self.held_manifest(&descriptor.digest, descriptor.media_type.clone(), Outcome::Hit).await {
                    return Ok(ManifestAnswer { ttl: Some(seconds(ttl)), ..answer });
                }
                self.revalidated(repository, tag, None).await
            }
            (_, Some(record)) => self.revalidated(repository, tag, Some(record)).await,
            (_, None) if want == Want::Head => self.head_unheld(repository, tag).await,
            (_, None) => self.revalidated(repository, tag, None).await,
        }
    }

    /// Asks upstream, and answers by the table.
    async fn revalidated(
        self: &Arc<Mirror>,
        repository: &Repository,
        tag: &Tag,
        record: Option<Arc<TagRecord>>,
    ) -> Result<ManifestAnswer, Error> {
        let asked = Asked::Manifest(Reference::Tag(tag.clone()));
        if record.is_none() {
            self.remembered(repository, &asked)?;
        }
        let key = (repository.key.clone(), tag.clone());
        let pending = self.checks.ask(key.clone(), || Arc::clone(self).check(repository.clone(), tag.clone(), record.clone()));
        let joined = pending.joined;
        let held = freshness::held(record.as_deref(), self.clock.now(), repository.source.stale_if_error);
        let checked = match held {
            // Who has nothing to serve instead waits to the end.
            Held::Nothing | Held::Beyond => pending.answer().await,
            Held::Within => match tokio::time::timeout(self.patience(repository), pending.answer()).await {
                Ok(checked) => checked,
                Err(_) => {
                    repository.source.silent.store(true, Ordering::Relaxed);
                    None
                }
            },
        };
        let (result, exchange) = match checked {
            Some(checked) => (checked.result, Some(checked.exchange)),
            None => (Err(UpstreamError::TimedOut { detail: "no word on the tag yet".into() }), None),
        };
        let said = match &result {
            Ok(Found::Same(_)) => Said::Same,
            Ok(Found::Moved(_)) => Said::Moved,
            Err(error) => Said::from(error),
        };
        match (freshness::answer(held, said), result, record) {
            (Answer::Serve(outcome), Ok(Found::Moved(manifest)), _) => {
                let outcome = if joined && outcome == Outcome::Miss { Outcome::Collapsed } else { outcome };
                let answer = plain(manifest.descriptor().clone(), Some(manifest.bytes().clone()), outcome);
                Ok(ManifestAnswer { exchange, ..answer })
            }
            (Answer::Serve(outcome), result, record) => {
                let confirmed = match result {
                    Ok(Found::Same(record)) => Some(record),
                    Ok(Found::Moved(_)) | Err(_) => None,
                };
                let can_ask = confirmed.is_some();
                match self.serve_record(repository, confirmed.or(record), outcome).await {
                    Ok(answer) => Ok(ManifestAnswer { exchange, ..answer }),
                    // What upstream has just confirmed could not be read here: it is held no longer, and upstream has it (invariant 9).
                    Err(_) if can_ask => Box::pin(self.revalidated(repository, tag, None)).await,
                    Err(error) => Err(error),
                }
            }
            (Answer::Refuse | Answer::Forget, Err(error), _) => Err(self.failed(repository, asked, &error)),
            (Answer::Refuse | Answer::Forget, Ok(_), _) => Err(self.gone(repository)),
        }
    }

    /// Serves what a record names, marked as `outcome`.
    async fn serve_record(
        &self,
        repository: &Repository,
        record: Option<Arc<TagRecord>>,
        outcome: Outcome,
    ) -> Result<ManifestAnswer, Error> {
        let record = record.ok_or_else(|| self.gone(repository))?;
        let descriptor = &record.descriptor;
        let answer = self.held_manifest(&descriptor.digest, descriptor.media_type.clone(), outcome).await;
        let answer = answer.ok_or_else(|| self.gone(repository))?;
        if !matches!(outcome, Outcome::Stale(_)) {
            return Ok(answer);
        }
        let age = freshness::distance(&record, self.clock.now());
        // A record from the future may be nearer than its ttl; it is past all the same.
        let ttl = (seconds(repository.source.tag_ttl) - seconds(age)).min(0);
        Ok(ManifestAnswer { ttl: Some(ttl), age: Some(age), ..answer })
    }

    /// How long a held tag waits for upstream's word.
    fn patience(&self, repository: &Repository) -> Duration {
        if repository.source.silent.load(Ordering::Relaxed) { Duration::ZERO } else { self.revalidate_wait }
    }

    /// A HEAD for a tag of which nothing is held costs upstream a HEAD, which no registry counts; the GET that follows asks
    /// for the digest it named.
    async fn head_unheld(self: &Arc<Mirror>, repository: &Repository, tag: &Tag) -> Result<ManifestAnswer, Error> {
        let reference = Reference::Tag(tag.clone());
        if let Some((head, ttl)) = self.remembered_head(repository, tag) {
            return Ok(ManifestAnswer { ttl: Some(seconds(ttl)), ..plain(head.descriptor.clone(), None, Outcome::Hit) });
        }
        self.remembered(repository, &Asked::Manifest(reference.clone()))?;
        let (descriptor, exchange) =
            self.peek(repository, &reference).await.map_err(|error| self.failed(repository, Asked::Manifest(reference.clone()), &error))?;
        match descriptor {
            None => self.revalidated(repository, tag, None).await,
            Some(descriptor) => {
                let head = TagRecord { descriptor: descriptor.clone(), checked_at: self.clock.now() };
                self.named((repository.key.clone(), tag.clone()), head).await;
                Ok(ManifestAnswer { exchange: Some(exchange), ..plain(descriptor, None, Outcome::Miss) })
            }
        }
    }

    /// What a HEAD said, while it is fresh, and for how long yet.
    fn remembered_head(&self, repository: &Repository, tag: &Tag) -> Option<(Arc<TagRecord>, Duration)> {
        let head = self.heads.get(&(repository.key.clone(), tag.clone()))?;
        match freshness::judge(Some(&head), self.clock.now(), repository.source.tag_ttl) {
            Freshness::Fresh { ttl } => Some((head, ttl)),
            Freshness::Expired | Freshness::Absent => None,
        }
    }

    /// Upstream has said what a tag names, by HEAD. dockerd and containerd go on by digest, so the tag's record is written
    /// when that manifest is stored, which may be now.
    async fn named(&self, key: (RepositoryKey, Tag), head: TagRecord) {
        let digest = head.descriptor.digest;
        self.heads.insert(key.clone(), Arc::new(head.clone()));
        if self.store.media_type(&key.0, &digest).is_some() && self.store.contains(&digest) {
            return self.note(self.store.put_tag(&key, head).await);
        }
        let (repository, tag) = key;
        let names = self.names.get(&(repository.clone(), digest)).unwrap_or_default();
        let others = names.iter().filter(|other| **other != tag).take(TAGS_OF_A_DIGEST_MAX).cloned();
        let names = others.chain([tag.clone()]).collect();
        self.names.insert((repository, digest), names);
    }

    /// Stores a manifest, and then the tags that upstream has said to name it, as far as that is its last word on them.
    pub(super) async fn keep(&self, repository: &Repository, manifest: &Manifest) -> Result<(), StoreError> {
        self.store.put_manifest(&repository.key, manifest).await?;
        let digest = manifest.descriptor().digest;
        let names = self.names.remove(&(repository.key.clone(), digest)).unwrap_or_default();
        for tag in names.iter() {
            let key = (repository.key.clone(), tag.clone());
            let Some(head) = self.heads.get(&key).filter(|head| head.descriptor.digest == digest) else { continue };
            let newer = self.store.tag(&key).await?.is_some_and(|record| record.checked_at >= head.checked_at);
            if !newer {
                self.store.put_tag(&key, (*head).clone()).await?;
            }
        }
        Ok(())
    }

    /// The whole of one question about a tag, in a task of its own: ask, fetch what is new, store it, and only then the record.
    async fn check(self: Arc<Mirror>, repository: Repository, tag: Tag, record: Option<Arc<TagRecord>>) -> Checked {
        let call = Call::until(Instant::now() + CHECK_TIMEOUT);
        let exchange = Arc::clone(&call.exchange);
        let result = self.find(&repository, &tag, record.clone(), &call).await;
        let key = (repository.key.clone(), tag);
        match &result {
            Ok(Found::Moved(manifest)) if record.is_some() => self.moved(&repository, &key.1, record.as_deref(), manifest),
            Err(UpstreamError::NotFound) if record.is_some() => {
                tracing::info!(upstream = %repository.upstream_name(), repository = %repository.name(), tag = %key.1, "a tag was deleted upstream");
                self.note(self.store.drop_tag(&key).await);
            }
            Err(error) => {
                tracing::warn!(upstream = %repository.upstream_name(), repository = %repository.name(), tag = %key.1, %error, "upstream did not confirm a tag");
            }
            Ok(_) => {}
        }
        Checked { result, exchange }
    }

    async fn find(&self, repository: &Repository, tag: &Tag, record: Option<Arc<TagRecord>>, call: &Call) -> Result<Found, UpstreamError> {
        let key = (repository.key.clone(), tag.clone());
        let reference = Reference::Tag(tag.clone());
        let remembered = record.is_none().then(|| self.remembered_head(repository, tag)).flatten().map(|(head, _)| head);
        let head = match &remembered {
            Some(head) => {
                let Descriptor { media_type, digest, size } = &head.descriptor;
                Some(ManifestHead { digest: Some(*digest), content_type: Some(media_type.to_string()), size: Some(*size) })
            }
            None => self.head(repository, &reference, call).await?,
        };
        let digest = head.as_ref().and_then(|head| head.digest);
        if let Some(record) = record.filter(|record| Some(record.descriptor.digest) == digest) {
            let record = TagRecord { checked_at: self.clock.now(), ..(*record).clone() };
            self.note(self.store.put_tag(&key, record.clone()).await);
            return Ok(Found::Same(Arc::new(record)));
        }
        let manifest = match digest {
            Some(digest) => match self.obtain(repository, digest, head.and_then(|head| head.content_type), call).await {
                // Some CDNs don't know the digest yet of the tag they have just answered for.
                Err(UpstreamError::NotFound) => self.get(repository, &reference, call).await?,
                obtained => obtained?,
            },
            None => self.get(repository, &reference, call).await?,
        };
        let descriptor = manifest.descriptor().clone();
        // Upstream's last word on the tag may have been the answer to the HEAD.
        let said = remembered.filter(|head| head.descriptor.digest == descriptor.digest);
        let checked_at = said.map_or_else(|| self.clock.now(), |head| head.checked_at);
        let record = TagRecord { descriptor, checked_at };
        let stored = self.keep(repository, &manifest).await;
        if stored.is_ok() {
            self.note(self.store.put_tag(&key, record).await);
        }
        self.note(stored);
        Ok(Found::Moved(manifest))
    }

    /// A manifest by digest: bytes that are here for another repository need not come again, now that upstream has named
    /// them for this one.
    pub(super) async fn obtain(
        &self,
        repository: &Repository,
        digest: Digest,
        content_type: Option<String>,
        call: &Call,
    ) -> Result<Manifest, UpstreamError> {
        if let Ok(Some(bytes)) = self.store.manifest(&digest).await
            && let Ok(manifest) = Manifest::verified(bytes, content_type.as_deref(), &digest)
        {
            return Ok(manifest);
        }
        self.get(repository, &Reference::Digest(digest), call).await
    }

    fn moved(&self, repository: &Repository, tag: &Tag, record: Option<&TagRecord>, manifest: &Manifest) {
        repository.source.metrics.tag_moves.inc();
        let from = record.map(|record| record.descriptor.digest);
        tracing::info!(
            upstream = %repository.upstream_name(),
            repository = %repository.name(),
            %tag,
            ?from,
            to = %manifest.descriptor().digest,
            "a tag moved"
        );
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
