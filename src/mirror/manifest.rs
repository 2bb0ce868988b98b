//! GET and HEAD of a manifest. By digest it is immutable: once held, upstream is not asked. By tag: see `tag`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::deadline::{CHECK_TIMEOUT, report_answer, within};
use super::decide::Decision;
use super::membership::StoredManifest;
use super::{Asked, Error, Mirror, Repository, What};
use crate::labels::Outcome;
use crate::oci::{Descriptor, Digest, InvalidManifest, Manifest, MediaType, Reference};
use crate::upstream::{Call, Exchange, ManifestHead, UpstreamError};

/// A manifest as it may be served.
pub struct ManifestAnswer {
    pub descriptor: Descriptor,
    /// `None` for HEAD where the bytes are not held.
    pub bytes: Option<Bytes>,
    pub outcome: Outcome,
    /// Of a tag: seconds of freshness left, negative when it is past.
    pub ttl: Option<i64>,
    /// Of a stale tag: since upstream's last word.
    pub age: Option<Duration>,
    pub exchange: Option<Arc<Exchange>>,
}

/// Whether the client wants the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Head,
    Body,
}

/// What came of fetching a manifest by digest.
pub(super) type Fetched = Result<(Manifest, Arc<Exchange>), UpstreamError>;

/// What came of a HEAD for a tag of which nothing is held; `None` where upstream's answer does not say enough.
pub(super) type Peeked = Result<(Option<Descriptor>, Arc<Exchange>), UpstreamError>;

impl Mirror {
    /// A manifest, by tag or digest.
    ///
    /// # Errors
    /// When upstream says there is none, or cannot say and nothing is held.
    pub async fn manifest(
        self: &Arc<Mirror>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
        deadline: Instant,
    ) -> Result<ManifestAnswer, Error> {
        let answer = within(repository, deadline, self.find_manifest(repository, reference, want)).await?;
        // An index is pulled, not each of its images beside.
        let is_part = matches!(reference, Reference::Digest(digest) if self.is_listed(repository, digest));
        if want == Want::Body && !is_part {
            repository.source.metrics.pulled();
        }
        Ok(answer)
    }

    /// The same, which is no client's pull.
    pub(super) async fn find_manifest(
        self: &Arc<Mirror>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<ManifestAnswer, Error> {
        let digest = if let Reference::Digest(digest) = reference { Some(digest) } else { None };
        self.store.look(&repository.key, digest).await;
        self.admit(repository, || Asked::Manifest(reference.clone())).await?;
        match reference {
            Reference::Digest(digest) => self.by_digest(repository, digest, want).await,
            Reference::Tag(tag) => self.by_tag(repository, tag, want).await,
        }
    }

    async fn by_digest(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, want: Want) -> Result<ManifestAnswer, Error> {
        let asked = Asked::Manifest(Reference::Digest(*digest));
        let (decision, held) = self.manifest_decision(repository, digest);
        match (decision, &held) {
            (Decision::Serve { .. }, Some(StoredManifest::Own(media_type))) => {
                if let Some(answer) = self.held_manifest(digest, media_type.clone(), Outcome::Hit).await {
                    return Ok(answer);
                }
            }
            (Decision::Serve { .. }, Some(StoredManifest::Others(media_type))) => {
                if let Some(answer) = self.adopt(repository, digest, media_type).await {
                    return Ok(answer);
                }
            }
            (Decision::Refuse { .. }, _) => return Err(self.absent(repository, &asked)),
            (Decision::Serve { .. } | Decision::Ask { .. }, _) => {}
        }
        let is_others = matches!(held, Some(StoredManifest::Others(_)));
        if want == Want::Head
            && let Some(descriptor) = self.described.get(&(repository.key.clone(), *digest))
        {
            return Ok(plain(descriptor, None, Outcome::Hit));
        }
        if want == Want::Head || is_others {
            let head = self.peek(repository, &Reference::Digest(*digest)).await;
            let (descriptor, exchange) = head.map_err(|error| self.failed(repository, asked, &error))?;
            if let Some(descriptor) = descriptor.filter(|descriptor| descriptor.digest == *digest) {
                let adopted = match is_others {
                    true => self.adopt(repository, digest, &descriptor.media_type).await,
                    false => None,
                };
                if adopted.is_some() || want == Want::Head {
                    let answer = adopted.unwrap_or_else(|| plain(descriptor, None, Outcome::Miss));
                    return Ok(ManifestAnswer { exchange: Some(exchange), ..answer });
                }
            }
        }
        let (fetched, joined) = self.fetch(repository, *digest).await;
        let (manifest, exchange) = fetched.map_err(|error| self.failed(repository, Asked::Manifest(Reference::Digest(*digest)), &error))?;
        let outcome = if joined { Outcome::Collapsed } else { Outcome::Miss };
        let answer = plain(manifest.descriptor().clone(), Some(manifest.bytes().clone()), outcome);
        Ok(ManifestAnswer { exchange: Some(exchange), ..answer })
    }

    /// A manifest that is here for another repository, and that this one may have: from now on it is this one's, too.
    async fn adopt(&self, repository: &Repository, digest: &Digest, media_type: &MediaType) -> Option<ManifestAnswer> {
        let bytes = self.store.manifest(digest).await.ok()??;
        let manifest = Manifest::verified(bytes, Some(media_type.as_str()), digest).ok()?;
        self.note(self.keep(repository, &manifest).await);
        Some(plain(manifest.descriptor().clone(), Some(manifest.bytes().clone()), Outcome::Hit))
    }

    pub(super) async fn peek(self: &Arc<Mirror>, repository: &Repository, reference: &Reference) -> Peeked {
        let (mirror, asked_of, asked) = (Arc::clone(self), repository.clone(), reference.clone());
        let pending = self.peeks.ask((repository.key.clone(), reference.clone()), || async move {
            let call = Call::until(Instant::now() + CHECK_TIMEOUT);
            let head = mirror.head(&asked_of, &asked, &call).await;
            // Before anybody can ask anew.
            if let Err(UpstreamError::NotFound) = head {
                mirror.missing(&asked_of, Asked::Manifest(asked.clone()));
            }
            let descriptor = head?.as_ref().and_then(described);
            if let (Reference::Digest(digest), Some(descriptor)) = (&asked, &descriptor)
                && descriptor.digest == *digest
            {
                mirror.described.insert((asked_of.key.clone(), *digest), descriptor.clone());
            }
            Ok((descriptor, call.exchange))
        });
        pending.answer().await?
    }

    /// HEAD; `None` from an upstream that has no HEAD.
    pub(super) async fn head(
        &self,
        repository: &Repository,
        reference: &Reference,
        call: &Call,
    ) -> Result<Option<ManifestHead>, UpstreamError> {
        let since = repository.source.patience.begin();
        let head = repository.source.upstream.head_manifest(repository.name(), reference, call).await;
        // One that tells nothing may be a registry without HEAD, or one that is down: the GET will tell.
        if head.as_ref().ok() != Some(&ManifestHead::default()) {
            report_answer(repository, since, head.as_ref().err());
        }
        match head {
            Ok(head) => Ok(Some(head)),
            Err(UpstreamError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn get(&self, repository: &Repository, reference: &Reference, call: &Call) -> Result<Manifest, UpstreamError> {
        let since = repository.source.patience.begin();
        repository.source.metrics.counted_get();
        let fetched = repository.source.upstream.get_manifest(repository.name(), reference, call).await;
        report_answer(repository, since, fetched.as_ref().err());
        let fetched = fetched?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => fetched.digest,
        };
        let content_type = fetched.content_type.as_deref();
        let manifest = match expected {
            Some(digest) => Manifest::verified(fetched.bytes, content_type, &digest),
            None => Manifest::unnamed(fetched.bytes, content_type),
        };
        manifest.map_err(|error| {
            if matches!(error, InvalidManifest::WrongDigest { .. }) {
                repository.source.metrics.mismatched("manifest");
            }
            tracing::error!(upstream = %repository.upstream_name(), repository = %repository.name(), %reference, %error, "upstream sent no manifest that can be served");
            match error {
                InvalidManifest::SchemaOne => UpstreamError::SchemaOne,
                error => UpstreamError::Corrupt { detail: error.to_string() },
            }
        })
    }

    /// A manifest by digest, once for all who ask; stored for this repository. The flag is whether it was under way.
    async fn fetch(self: &Arc<Mirror>, repository: &Repository, digest: Digest) -> (Fetched, bool) {
        let (mirror, asked_of) = (Arc::clone(self), repository.clone());
        let pending = self.fetches.ask((repository.key.clone(), digest), || async move {
            let call = Call::until(Instant::now() + CHECK_TIMEOUT);
            let manifest = mirror.get(&asked_of, &Reference::Digest(digest), &call).await?;
            mirror.note(mirror.keep(&asked_of, &manifest).await);
            Ok((manifest, call.exchange))
        });
        let joined = pending.joined;
        (pending.answer().await.unwrap_or_else(|error| Err(error.into())), joined)
    }

    /// A stored manifest as an answer; `None` when its bytes are not held, or cannot be read (invariant 9).
    pub(super) async fn held_manifest(&self, digest: &Digest, media_type: MediaType, outcome: Outcome) -> Option<ManifestAnswer> {
        match self.store.manifest(digest).await {
            Ok(bytes) => {
                let bytes = bytes?;
                self.store.touch_image(digest);
                let descriptor = Descriptor { media_type, digest: *digest, size: bytes.len() as u64 };
                Some(plain(descriptor, Some(bytes), outcome))
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a stored manifest could not be read");
                None
            }
        }
    }

    pub(super) fn failed(&self, repository: &Repository, asked: Asked, error: &UpstreamError) -> Error {
        self.told(repository, asked, Error::from_upstream(repository.upstream_name(), What::Manifest, error))
    }

    pub(super) fn gone(&self, repository: &Repository) -> Error {
        let detail = "the manifest was evicted while it was read".into();
        Error::Unavailable { upstream: Arc::clone(repository.upstream_name()), detail }
    }
}

pub(super) fn plain(descriptor: Descriptor, bytes: Option<Bytes>, outcome: Outcome) -> ManifestAnswer {
    ManifestAnswer { descriptor, bytes, outcome, ttl: None, age: None, exchange: None }
}

/// What a HEAD says, if it says all that a client needs. A type that the body would correct, or that is refused, is none.
fn described(head: &ManifestHead) -> Option<Descriptor> {
    let media_type: MediaType = head.content_type.as_deref()?.parse().ok()?;
    let told = !media_type.says_nothing() && !media_type.is_schema_one();
    told.then_some(Descriptor { media_type, digest: head.digest?, size: head.size? })
}
