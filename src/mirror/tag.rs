//! GET and HEAD of a manifest by tag. Fresh: serve. Else one question to upstream for all who wait, and the table of `freshness`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deadline::{CHECK_TIMEOUT, in_time};
use super::decide::{Decision, Why};
use super::freshness::{self, Answer, Held, Said};
use super::manifest::{ManifestAnswer, Want, plain};
use super::membership::Mode;
use super::{Asked, Error, Mirror, Repository};
use crate::labels::Outcome;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Tag};
use crate::single_flight::{NoAnswer, Pending};
use crate::store::{StoreError, TagRecord};
use crate::upstream::{Call, Exchange, ManifestHead, UpstreamError};

/// Tags of one digest that are remembered until its manifest comes.
const TAGS_OF_A_DIGEST_MAX: usize = 15;

/// What came of asking upstream about a tag.
#[derive(Clone)]
pub(super) struct Checked {
    /// The manifest that the tag names now, if upstream said so.
    result: Result<Found, UpstreamError>,
    exchange: Option<Arc<Exchange>>,
}

impl Checked {
    fn said(&self) -> Said {
        match &self.result {
            Ok(Found::Same(_)) => Said::Same,
            Ok(Found::Moved(_)) => Said::Moved,
            Err(error) => Said::from(error),
        }
    }

    /// In place of an answer that has not come yet.
    fn missing() -> Checked {
        Checked::failed(UpstreamError::TimedOut { detail: "no word on the tag yet".into() })
    }

    fn failed(error: UpstreamError) -> Checked {
        Checked { result: Err(error), exchange: None }
    }
}

#[derive(Clone)]
enum Found {
    Same(Arc<TagRecord>),
    /// Another one than was held, or the first.
    Moved(Manifest),
}

impl Mirror {
    pub(super) async fn by_tag(self: &Arc<Mirror>, repository: &Repository, tag: &Tag, want: Want) -> Result<ManifestAnswer, Error> {
        let record = self.record(repository, tag, Mode::Use).await;
        match (self.tag_decision(repository, tag, record.as_deref()), record) {
            (Decision::Serve { why: Why::AbsenceRemembered, outcome, .. }, record) => {
                self.serve_record(repository, tag, record, outcome).await
            }
            (Decision::Serve { left, .. }, Some(record)) => {
                let descriptor = &record.descriptor;
                if let Some(answer) = self.held_manifest(&descriptor.digest, descriptor.media_type.clone(), Outcome::Hit).await {
                    return Ok(ManifestAnswer { ttl: left.map(seconds), ..answer });
                }
                self.revalidated(repository, tag, None).await
            }
            (Decision::Refuse { .. }, _) => Err(self.absent(repository, &Asked::Manifest(Reference::Tag(tag.clone())))),
            (_, None) if want == Want::Head => self.head_unheld(repository, tag).await,
            (_, record) => self.revalidated(repository, tag, record).await,
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
        let rules = &repository.source.tags;
        let held = freshness::held(record.as_deref(), self.clock.now(), rules.stale_if_error);
        let key = (repository.key.clone(), tag.clone());
        let pending = self.checks.ask(key, || Arc::clone(self).check(repository.clone(), tag.clone(), record.clone()));
        // A cached tag is confirmed also for whoever asks next.
        let pending = if record.is_some() { pending.goes_on() } else { pending };
        let (held, checked) = self.word(repository, record.as_deref(), held, &pending).await;
        let said = checked.said();
        let Checked { result, exchange } = checked;
        match (freshness::answer(held, said, rules.keep_deleted), result, record) {
            (Answer::Serve(outcome), Ok(Found::Moved(manifest)), _) => {
                let outcome = if pending.joined && outcome == Outcome::Miss { Outcome::Collapsed } else { outcome };
                let answer = plain(manifest.descriptor().clone(), Some(manifest.bytes().clone()), outcome);
                Ok(ManifestAnswer { exchange, ..answer })
            }
            (Answer::Serve(outcome), result, record) => {
                let confirmed = match result {
                    Ok(Found::Same(record)) => Some(record),
                    Ok(Found::Moved(_)) | Err(_) => None,
                };
                if said == Said::NotFound {
                    self.missing(repository, asked);
                }
                let can_ask = confirmed.is_some();
                match self.serve_record(repository, tag, confirmed.or(record), outcome).await {
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

    /// Upstream's word, and what is held in the light of it. Who has something whole to serve instead does not wait to the
    /// end; who has not, does.
    async fn word(&self, repository: &Repository, record: Option<&TagRecord>, held: Held, pending: &Pending<Checked>) -> (Held, Checked) {
        let no_answer = |error: NoAnswer| Checked::failed(error.into());
        let to_the_end = async || pending.answer().await.unwrap_or_else(no_answer);
        let (Held::Within, Some(record)) = (held, record) else { return (held, to_the_end().await) };
        let early = in_time(repository, pending, self.revalidate_wait).await;
        let is_early = early.is_none();
        let checked = early.map_or_else(Checked::missing, |early| early.unwrap_or_else(no_answer));
        if checked.result.is_ok() {
            return (held, checked);
        }
        let content = self.content(repository, &record.descriptor).await;
        let stands = freshness::stands_in(held, checked.said(), content);
        if stands == held || !is_early {
            return (stands, checked);
        }
        let checked = to_the_end().await;
        (freshness::stands_in(held, checked.said(), content), checked)
    }

    /// Serves what a record names, marked as `outcome`.
    async fn serve_record(
        &self,
        repository: &Repository,
        tag: &Tag,
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
        let ttl = (seconds(repository.source.tags.ttl(tag)) - seconds(age)).min(0);
        Ok(ManifestAnswer { ttl: Some(ttl), age: Some(age), ..answer })
    }

    /// A HEAD for a tag of which nothing is held costs upstream a HEAD, which no registry counts; the GET that follows asks
    /// for the digest it named.
    async fn head_unheld(self: &Arc<Mirror>, repository: &Repository, tag: &Tag) -> Result<ManifestAnswer, Error> {
        let reference = Reference::Tag(tag.clone());
        if let Some((head, ttl)) = self.remembered_head(repository, tag) {
            return Ok(ManifestAnswer { ttl: Some(seconds(ttl)), ..plain(head.descriptor.clone(), None, Outcome::Hit) });
        }
        let (descriptor, exchange) =
            self.peek(repository, &reference).await.map_err(|error| self.failed(repository, Asked::Manifest(reference.clone()), &error))?;
        match descriptor {
            None => self.revalidated(repository, tag, None).await,
            Some(descriptor) => {
                self.named(repository, tag, TagRecord::new(descriptor.clone(), self.clock.now())).await;
                Ok(ManifestAnswer { exchange: Some(exchange), ..plain(descriptor, None, Outcome::Miss) })
            }
        }
    }

    /// What a HEAD said, while it is fresh, and for how long yet.
    pub(super) fn remembered_head(&self, repository: &Repository, tag: &Tag) -> Option<(Arc<TagRecord>, Duration)> {
        let head = self.heads.get(&(repository.key.clone(), tag.clone()))?;
        let age = self.clock.now().since(head.checked_at)?;
        let ttl = repository.source.tags.ttl(tag).checked_sub(age).filter(|ttl| !ttl.is_zero())?;
        Some((head, ttl))
    }

    /// Upstream has said what a tag names, by HEAD. dockerd and containerd go on by digest, so the tag's record is written
    /// when that manifest is stored, which may be now.
    async fn named(&self, repository: &Repository, tag: &Tag, head: TagRecord) {
        let digest = head.descriptor.digest;
        self.heads.insert((repository.key.clone(), tag.clone()), Arc::new(head.clone()));
        if self.is_own_manifest(repository, &digest) {
            return self.note(self.write_record(repository, tag, head).await);
        }
        let key = (repository.key.clone(), digest);
        let names = self.names.get(&key).unwrap_or_default();
        let others = names.iter().filter(|other| *other != tag).take(TAGS_OF_A_DIGEST_MAX).cloned();
        let names = others.chain([tag.clone()]).collect();
        self.names.insert(key, names);
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
                self.write_record(repository, tag, (*head).clone()).await?;
            }
        }
        Ok(())
    }

    /// Writes upstream's word on a tag in place of the one before.
    async fn write_record(&self, repository: &Repository, tag: &Tag, mut record: TagRecord) -> Result<(), StoreError> {
        let key = (repository.key.clone(), tag.clone());
        match self.store.tag(&key).await {
            Ok(Some(before)) if before.descriptor.digest == record.descriptor.digest => record.first_seen = before.first_seen,
            Ok(Some(before)) => self.moved(repository, tag, &before, &record.descriptor.digest),
            Ok(None) => {}
            // It is about to be replaced.
            Err(error) => tracing::error!(%tag, %error, "a tag's record could not be read"),
        }
        self.store.put_tag(&key, record).await
    }

    /// The whole of one question about a tag, in a task of its own: ask, fetch what is new, store it, and only then the record.
    async fn check(self: Arc<Mirror>, repository: Repository, tag: Tag, record: Option<Arc<TagRecord>>) -> Checked {
        let call = Call::until(Instant::now() + CHECK_TIMEOUT);
        let exchange = Arc::clone(&call.exchange);
        let result = self.find(&repository, &tag, record.clone(), &call).await;
        let (upstream, name) = (repository.upstream_name(), repository.name());
        match &result {
            Err(UpstreamError::NotFound) if record.is_some() && repository.source.tags.keep_deleted => {
                tracing::info!(%upstream, repository = %name, %tag, "a tag was deleted upstream; it is kept");
            }
            Err(UpstreamError::NotFound) if record.is_some() => {
                tracing::info!(%upstream, repository = %name, %tag, "a tag was deleted upstream");
                self.note(self.store.drop_tag(&(repository.key.clone(), tag)).await);
            }
            Err(error) => tracing::warn!(%upstream, repository = %name, %tag, %error, "upstream did not confirm a tag"),
            Ok(_) => {}
        }
        Checked { result, exchange: Some(exchange) }
    }

    async fn find(&self, repository: &Repository, tag: &Tag, record: Option<Arc<TagRecord>>, call: &Call) -> Result<Found, UpstreamError> {
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
        if let Some(record) = record.as_ref().filter(|record| Some(record.descriptor.digest) == digest) {
            return Ok(Found::Same(self.confirmed_tag(repository, tag, record).await));
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
        // A HEAD that named no digest could not tell.
        if let Some(record) = record.as_ref().filter(|record| record.descriptor.digest == descriptor.digest) {
            self.note(self.keep(repository, &manifest).await);
            return Ok(Found::Same(self.confirmed_tag(repository, tag, record).await));
        }
        // Upstream's last word on the tag may have been the answer to the HEAD.
        let said = remembered.filter(|head| head.descriptor.digest == descriptor.digest);
        let checked_at = said.map_or_else(|| self.clock.now(), |head| head.checked_at);
        match self.keep(repository, &manifest).await {
            Ok(()) => self.note(self.write_record(repository, tag, TagRecord::new(descriptor, checked_at)).await),
            Err(error) => {
                if let Some(before) = &record {
                    self.moved(repository, tag, before, &descriptor.digest);
                }
                self.note(Err(error));
            }
        }
        Ok(Found::Moved(manifest))
    }

    /// Upstream has said again what it had said before.
    async fn confirmed_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord) -> Arc<TagRecord> {
        let record = TagRecord { checked_at: self.clock.now(), ..record.clone() };
        self.note(self.store.put_tag(&(repository.key.clone(), tag.clone()), record.clone()).await);
        Arc::new(record)
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

    fn moved(&self, repository: &Repository, tag: &Tag, before: &TagRecord, to: &Digest) {
        repository.source.metrics.tag_moves.inc();
        tracing::info!(
            upstream = %repository.upstream_name(),
            repository = %repository.name(),
            %tag,
            from = %before.descriptor.digest,
            %to,
            first_seen = %before.first_seen.rfc3339(),
            "a tag moved"
        );
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
