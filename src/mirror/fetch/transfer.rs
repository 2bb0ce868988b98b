//! The body of a fill: receive, hash, write, publish. A transfer that breaks is taken up where it stopped; one that
//! cannot be stored passes through.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::error::FillError;
use super::job::Job;
use crate::labels::FillResult;
use crate::oci::{MIB, RepositoryName};
use crate::store::{PartialBlob, Phase, StoreError, Tail, Verifier};
use crate::upstream::{BlobStream, UnavailableReason, UpstreamError};

/// Received bytes that may wait to be hashed and written.
const INTAKE_BYTES_MAX: u64 = MIB;
/// Breaks in a row, without a byte between them, after which a transfer is given up.
const BREAKS_MAX: u32 = 5;
/// Doubles with each break.
const BREAK_PAUSE: Duration = Duration::from_millis(100);

/// A download whose headers have come, until its last byte.
pub(super) struct Transfer<'a> {
    pub(super) job: &'a Job,
    pub(super) name: RepositoryName,
    pub(super) tail: Arc<Tail>,
    pub(super) size: Option<u64>,
    /// `None` while a batch is being absorbed.
    pub(super) intake: Option<Intake>,
    pub(super) breaks: u32,
}

/// What has been received, and where it goes.
pub(super) struct Intake {
    pub(super) verifier: Verifier,
    pub(super) partial: Option<PartialBlob>,
}

/// A batch that was hashed, and written if it could be.
struct Absorbed {
    intake: Intake,
    /// What went to no file.
    unstored: Vec<Bytes>,
    error: Option<StoreError>,
}

type Absorbing = Pin<Box<dyn Future<Output = Absorbed> + Send>>;

impl Transfer<'_> {
    /// Receives to the end, over as many connections as it takes.
    pub(super) async fn receive_all(&mut self, mut stream: BlobStream) -> Result<(), UpstreamError> {
        loop {
            let before = self.tail.progress().received;
            let error = match self.pump(&mut stream).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.tail.progress().received > before && !stream.was_slow() {
                self.breaks = 0;
            }
            stream = self.resume(error).await?;
        }
    }

    /// A new connection to go on with, also when the URL that upstream redirected to has expired: it is asked for a new
    /// one.
    async fn resume(&mut self, mut error: UpstreamError) -> Result<BlobStream, UpstreamError> {
        let job = self.job;
        loop {
            self.breaks += 1;
            let asked = if let UpstreamError::Busy { retry_after, .. } = error { retry_after } else { Duration::ZERO };
            let may_go_on = error.is_transient() || !asked.is_zero();
            if !may_go_on || self.breaks > BREAKS_MAX {
                return Err(error);
            }
            job.source.metrics.retried(error.reason());
            let received = self.tail.progress().received;
            tracing::info!(upstream = %job.source.name(), digest = %job.fill.digest, received, %error, "a download broke; it goes on");
            tokio::time::sleep(job.means.rng.jitter(BREAK_PAUSE * 2_u32.pow(self.breaks)).max(asked)).await;
            match job.get(&self.name, received).await {
                Ok(stream) if stream.size.is_some() && self.size.is_some() && stream.size != self.size => {
                    return Err(UpstreamError::Corrupt { detail: "the blob's size changed while it was downloaded".into() });
                }
                Ok(stream) => return Ok(stream),
                Err(next) => error = next,
            }
        }
    }

    /// Receives from one connection, while the batch before is hashed and written.
    async fn pump(&mut self, stream: &mut BlobStream) -> Result<(), UpstreamError> {
        let mut received = self.tail.progress().received;
        // An upstream that ignores Range begins again; what is here already is passed over.
        let mut skip = received.saturating_sub(stream.offset);
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut absorbing: Option<Absorbing> = None;
        let mut ended: Option<Result<(), UpstreamError>> = None;
        loop {
            if absorbing.is_none() && !batch.is_empty() {
                if self.tail.is_diverted() && !(self.job.fill.has_readers() && self.tail.room().await) {
                    return Err(UpstreamError::Corrupt { detail: "nobody reads this blob, and it cannot be stored".into() });
                }
                absorbing = self.absorb(std::mem::take(&mut batch));
                batch_bytes = 0;
            }
            let busy = absorbing.is_some();
            if let (false, Some(ended)) = (busy, ended.take_if(|_| !busy)) {
                return ended;
            }
            tokio::select! {
                absorbed = async { match &mut absorbing { Some(absorbing) => absorbing.await, None => std::future::pending().await } } => {
                    absorbing = None;
                    self.publish(absorbed);
                }
                chunk = stream.next(), if ended.is_none() && batch_bytes < INTAKE_BYTES_MAX => match chunk {
                    Ok(Some(mut chunk)) => {
                        let skipped = skip.min(chunk.len() as u64);
                        skip -= skipped;
                        let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
                        received += chunk.len() as u64;
                        batch_bytes += chunk.len() as u64;
                        if self.size.is_some_and(|size| received > size) {
                            ended = Some(Err(UpstreamError::Corrupt { detail: "the body is longer than the blob".into() }));
                        } else if !chunk.is_empty() {
                            batch.push(chunk);
                        }
                    }
                    Ok(None) if self.size.is_some_and(|size| received < size) => ended = Some(Err(broken("the body ended early"))),
                    Ok(None) => ended = Some(Ok(())),
                    Err(error) => ended = Some(Err(error)),
                },
            }
        }
    }

    /// Hashes a batch, each chunk while it is hot in cache, then writes it; both off the async workers.
    fn absorb(&mut self, batch: Vec<Bytes>) -> Option<Absorbing> {
        let mut intake = self.intake.take()?;
        let gate = self.job.means.gate.clone();
        let work = move || {
            let mut unstored = Vec::new();
            let mut error = None;
            for chunk in batch {
                intake.verifier.update(&chunk);
                match intake.partial.as_mut().map(|partial| partial.append(&chunk)) {
                    Some(Ok(())) => {}
                    Some(Err(failed)) => {
                        // Readers go on with what the file holds. What only has no room yet is kept, to be gone on with.
                        if let Some(partial) = intake.partial.take().filter(|_| !matches!(failed, StoreError::Loading)) {
                            partial.discard();
                        }
                        error = Some(failed);
                        unstored.push(chunk);
                    }
                    None => unstored.push(chunk),
                }
            }
            Absorbed { intake, unstored, error }
        };
        Some(Box::pin(async move { gate.run(work).await }))
    }

    fn publish(&mut self, absorbed: Absorbed) {
        let Absorbed { intake, unstored, error } = absorbed;
        let stored = intake.verifier.len() - unstored.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        self.intake = Some(intake);
        if !self.tail.is_diverted() {
            self.tail.advance(stored);
        }
        if let Some(error) = error {
            let reason = self.job.bypass(&error);
            self.tail.divert();
            // Who comes now would find the beginning gone.
            self.job.entry.release();
            self.job.fill.passes_by(reason);
        }
        self.tail.pass(unstored);
    }

    /// Verifies and commits, or lets everybody's connection break.
    pub(super) async fn conclude(&mut self, received: Result<(), UpstreamError>) {
        let job = self.job;
        let Some(intake) = self.intake.take() else {
            return self.fail(broken("a batch was lost"));
        };
        let verified = match received {
            Ok(()) => intake.verifier.finish(&job.fill.digest).map_err(|mismatch| {
                job.source.metrics.mismatched("blob");
                tracing::error!(upstream = %job.source.name(), digest = %job.fill.digest, %mismatch, "upstream sent wrong bytes");
                UpstreamError::Corrupt { detail: mismatch.to_string() }
            }),
            Err(error) => Err(error),
        };
        match (verified, intake.partial) {
            (Ok(_), Some(partial)) if self.tail.is_unreadable() => {
                self.tail.finish(Phase::Verified);
                job.means.gate.run(move || partial.discard()).await;
                job.source.metrics.filled(FillResult::Bypassed);
            }
            (Ok(verified), Some(partial)) => {
                self.tail.finish(Phase::Verified);
                let (store, upstream, digest) = (Arc::clone(&job.means.store), Arc::clone(job.source.name()), job.fill.digest);
                let commit = move || {
                    store.confirm(&upstream, &digest);
                    partial.commit(verified)
                };
                let stored = job.means.gate.run(commit).await;
                if let Err(error) = &stored {
                    tracing::error!(digest = %job.fill.digest, %error, "a verified blob could not be stored");
                }
                job.source.metrics.filled(if stored.is_ok() { FillResult::Stored } else { FillResult::Bypassed });
            }
            (Ok(_), None) => {
                self.tail.finish(Phase::Verified);
                job.source.metrics.filled(FillResult::Bypassed);
            }
            (Err(error), partial) => {
                // What broke may go on later; what is wrong must not.
                if let Some(partial) = partial
                    && matches!(error, UpstreamError::Corrupt { .. })
                {
                    job.means.gate.run(move || partial.discard()).await;
                }
                self.fail(error);
            }
        }
    }

    fn fail(&self, error: UpstreamError) {
        self.job.end(FillError::Upstream(error));
        self.tail.finish(Phase::Failed);
    }
}

fn broken(detail: &str) -> UpstreamError {
    UpstreamError::Unavailable { reason: UnavailableReason::Broken, detail: detail.into() }
}
