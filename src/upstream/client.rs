//! The four questions about content that a mirror asks a registry; those for lists are in `listing`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE};
use http::{Method, StatusCode};

use super::UpstreamError;
use super::account::{Account, Scope};
use super::auth::credentials::{Environment, Source};
use super::call::Call;
use super::connect::Network;
use super::connect::tls::SetupError;
use super::endpoint::Endpoint;
use super::http::body::{BlobStream, check_encoding, content_length, content_range};
use super::http::exchange::{Answer, Wire};
use super::http::meaning::Failure;
use super::http::url::{Origin, Url};
use super::limits::questions::Questions;
use super::request::{Asker, Question};
use crate::config::{BaseUrl, UpstreamConfig, Visibility};
use crate::labels::UpstreamKind;
use crate::metrics::Metrics;
use crate::oci::{Digest, MANIFEST_BYTES_MAX, Reference, RepositoryName};
use crate::rng::Rng;

/// Every type by its name, as Distribution and Quay match no wildcard and convert, or deny, what is not listed.
pub(super) const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

/// One remote registry.
pub struct Upstream {
    name: Arc<str>,
    visibility: Visibility,
    pub(super) asker: Asker,
    pub(super) token_hosts: Vec<String>,
}

/// What a registry says about a manifest without sending it. A registry that does not do HEAD says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestHead {
    pub digest: Option<Digest>,
    pub content_type: Option<String>,
    pub size: Option<u64>,
}

/// A manifest's bytes, not yet believed.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub bytes: Bytes,
    pub content_type: Option<String>,
    /// From `Docker-Content-Digest`, where that holds one.
    pub digest: Option<Digest>,
}

impl Upstream {
    /// Sets up the pools; asks nobody. `questions` are those of all upstreams.
    ///
    /// # Errors
    /// When `ca_file` cannot be used, or the URL is none.
    pub fn new(
        config: &UpstreamConfig,
        network: &Arc<Network>,
        questions: Arc<Questions>,
        metrics: &Arc<Metrics>,
        rng: Arc<Rng>,
    ) -> Result<Upstream, SetupError> {
        let environment = Environment::of_process();
        let source = |credential| Arc::new(Source::new(credential, &config.name, &environment, &metrics.task_panics));
        let sources: Vec<Arc<Source>> = config.credentials.iter().map(source).collect();
        let endpoint = |url: &BaseUrl| {
            let base = Url::new(Origin::from(url), format!("{}/v2/", url.path));
            base.uri().map_err(|_| SetupError::Url)?;
            let wire = Arc::new(Wire::new(config, url, network, metrics, Arc::clone(&rng))?);
            let account = |source| Account::new(config, source, &wire, &base, &rng, &metrics.task_panics);
            let accounts = sources.iter().map(|source| account(Some(Arc::clone(source)))).collect();
            let anonymous = account(None);
            Ok(Endpoint { path: url.path.clone(), accounts, anonymous, wire })
        };
        let endpoints: Vec<Endpoint> = config.urls.iter().map(endpoint).collect::<Result<_, SetupError>>()?;
        let scopes = config.credentials.iter().map(|credential| Scope::new(&credential.repositories)).collect();
        let own = Arc::clone(metrics.upstream(&config.name));
        let name: Arc<str> = config.name.as_str().into();
        let asker = Asker { upstream: Arc::clone(&name), questions, endpoints, scopes, metrics: own, rng };
        Ok(Upstream { name, visibility: config.visibility, asker, token_hosts: config.token_hosts.clone() })
    }

    /// Whether larder's credentials there only raise the limit: a client reads what upstream shows to anybody.
    pub fn shows_public_only(&self) -> bool {
        self.visibility == Visibility::Public && !self.asker.scopes.is_empty()
    }

    /// Whether what it has is everybody's.
    pub fn visibility(&self) -> Visibility {
        self.visibility
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What a reference means now. Costs nothing of Docker Hub's pull limit.
    ///
    /// # Errors
    /// When upstream does not say.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        call: &Call,
    ) -> Result<ManifestHead, UpstreamError> {
        let question = self.manifest(Method::HEAD, repository, reference);
        match self.asker.ask(&question, call).await {
            Ok(answer) => Ok(ManifestHead { digest: digest(&answer), content_type: content_type(&answer), size: size(&answer) }),
            Err(Failure::Head(_)) => Ok(ManifestHead::default()),
            Err(failure) => Err(self.asker.failed(failure.into_error())),
        }
    }

    /// A manifest, whole.
    ///
    /// # Errors
    /// When upstream does not give it, or gives more than a manifest may have.
    pub async fn get_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        call: &Call,
    ) -> Result<FetchedManifest, UpstreamError> {
        let question = self.manifest(Method::GET, repository, reference);
        let mut tries = self.asker.tries(call);
        loop {
            let fetched = match self.asker.attempt(&question, call).await {
                Ok(answer) => self.whole(answer).await.map_err(Failure::from),
                Err(failure) => Err(failure),
            };
            match fetched {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => tries.after(failure).await.map_err(|failure| self.asker.failed(failure.into_error()))?,
            }
        }
    }

    /// The size of a blob that upstream has: `None` when it has it and does not say the size.
    ///
    /// # Errors
    /// When upstream does not have it, or does not say.
    pub async fn head_blob(&self, repository: &RepositoryName, digest: &Digest, call: &Call) -> Result<Option<u64>, UpstreamError> {
        let question = self.blob(Method::HEAD, repository, digest, None);
        match self.asker.ask(&question, call).await {
            Ok(answer) => Ok(size(&answer)),
            Err(Failure::Head(_)) => self.probe_blob(repository, digest, call).await,
            Err(failure) => Err(self.asker.failed(failure.into_error())),
        }
    }

    /// A blob's bytes from `offset` on, or from 0 where upstream does not do ranges.
    ///
    /// # Errors
    /// When upstream does not begin to send it.
    pub async fn get_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        call: &Call,
    ) -> Result<BlobStream, UpstreamError> {
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        let question = Question { is_download: true, ..self.blob(Method::GET, repository, digest, range) };
        let answer = self.asker.ask(&question, call).await.map_err(|failure| self.asker.failed(failure.into_error()))?;
        BlobStream::new(answer, offset, Arc::clone(&self.asker.metrics)).map_err(|error| self.asker.failed(error))
    }

    /// Asks for one byte, to read the size beside it.
    async fn probe_blob(&self, repository: &RepositoryName, digest: &Digest, call: &Call) -> Result<Option<u64>, UpstreamError> {
        let question = self.blob(Method::GET, repository, digest, Some("bytes=0-0".into()));
        let answer = self.asker.ask(&question, call).await.map_err(|failure| self.asker.failed(failure.into_error()))?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => Ok(answer.header(CONTENT_RANGE).and_then(content_range).and_then(|(_, size)| size)),
            _ => Ok(size(&answer)),
        }
    }

    async fn whole(&self, answer: Answer) -> Result<FetchedManifest, UpstreamError> {
        check_encoding(&answer)?;
        if answer.status() != StatusCode::OK {
            return Err(UpstreamError::Corrupt { detail: format!("{} sent a part of a manifest", answer.url) });
        }
        if content_length(&answer).is_some_and(|length| length > MANIFEST_BYTES_MAX) {
            return Err(UpstreamError::Corrupt { detail: format!("{} announced a manifest of more than 4 MiB", answer.url) });
        }
        let (content_type, digest) = (content_type(&answer), digest(&answer));
        let limit = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = answer.body(limit).await?;
        self.asker.metrics.received_bytes.inc_by(bytes.len() as u64);
        Ok(FetchedManifest { bytes, content_type, digest })
    }

    fn manifest<'a>(&self, method: Method, repository: &'a RepositoryName, reference: &Reference) -> Question<'a> {
        let path = format!("{repository}/manifests/{reference}");
        Question { kind: UpstreamKind::Manifest, method, repository, path, accept: Some(MANIFEST_ACCEPT), range: None, is_download: false }
    }

    fn blob<'a>(&self, method: Method, repository: &'a RepositoryName, digest: &Digest, range: Option<String>) -> Question<'a> {
        let path = format!("{repository}/blobs/{digest}");
        Question { kind: UpstreamKind::Blob, method, repository, path, accept: None, range, is_download: false }
    }
}

/// The length of coded bytes is not the content's.
fn size(answer: &Answer) -> Option<u64> {
    if answer.headers().contains_key(CONTENT_ENCODING) { None } else { content_length(answer) }
}

/// Never from an ETag: Nexus's is a SHA-1.
fn digest(answer: &Answer) -> Option<Digest> {
    answer.header(DOCKER_CONTENT_DIGEST)?.trim().parse().ok()
}

fn content_type(answer: &Answer) -> Option<String> {
    answer.header(CONTENT_TYPE).map(str::to_owned)
}
