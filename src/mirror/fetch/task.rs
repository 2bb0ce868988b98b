//! The task of one download: it waits for its turn, asks the repositories that want the blob, one after another, until
//! one is given it, and finds the bytes a place; then `transfer` receives them.

use std::sync::Arc;

use super::error::FillError;
use super::fill::{Fill, Opened};
use super::job::Job;
use super::transfer::{Intake, Transfer};
use crate::labels::BypassReason;
use crate::oci::RepositoryName;
use crate::queue::Overloaded;
use crate::store::{FileReader, PartialBlob, Tail, Verifier};
use crate::upstream::{BlobStream, UpstreamError};

/// The task of one download.
pub(super) struct Task {
    pub(super) job: Job,
    /// The size that a manifest of this repository announced.
    pub(super) listed: Option<(RepositoryName, u64)>,
    pub(super) is_stored: bool,
}

/// How a download begins.
struct Begun {
    intake: Intake,
    /// What the readers read from, as far as it goes.
    file: Option<FileReader>,
    bypass: Option<BypassReason>,
}

impl Task {
    pub(super) async fn run(self) {
        let Job { means, source, .. } = &self.job;
        match means.downloads.place(source.name(), source.fills_max).await {
            Ok(_running) => self.ask().await,
            Err(Overloaded) => self.job.end(FillError::Overloaded),
        }
    }

    /// Asks for one repository after another, until one is given the blob.
    async fn ask(&self) {
        let Job { means, source, fill, entry } = &self.job;
        let mut found = match self.is_stored {
            true => means.store.resume(source.name(), &fill.digest).await,
            false => None,
        };
        loop {
            let Some(name) = fill.next() else {
                if entry.release_if(Fill::is_asked_out) {
                    return self.discard(found).await;
                }
                continue;
            };
            let received = found.as_ref().map_or(0, |(partial, _)| partial.len());
            match self.job.get(&name, received).await {
                Ok(stream) => match self.size(&name, &stream) {
                    Ok(size) => return self.receive(name, stream, size, found).await,
                    Err(error) => self.refuse(name, error),
                },
                // What the partial holds is not where upstream's blob goes on (it may even be all of it): from the
                // start, then.
                Err(UpstreamError::Corrupt { .. }) if received > 0 => {
                    self.discard(found.take()).await;
                    fill.ask_again(name);
                }
                Err(error @ (UpstreamError::NotFound | UpstreamError::Denied { .. } | UpstreamError::CredentialRefused { .. })) => {
                    self.refuse(name, error);
                }
                Err(error) => {
                    // First: who asks from now on shall find it.
                    drop(found);
                    return self.job.end(FillError::Upstream(error));
                }
            }
        }
    }

    /// This repository gets nothing; others may.
    fn refuse(&self, name: RepositoryName, error: UpstreamError) {
        let Job { source, fill, .. } = &self.job;
        tracing::info!(upstream = %source.name(), repository = %name, digest = %fill.digest, %error, "a download was refused");
        fill.refuse(name, error);
    }

    /// The blob's size: upstream's word, else the manifest's. Where they differ, the repository of that manifest gets
    /// nothing.
    fn size(&self, name: &RepositoryName, stream: &BlobStream) -> Result<Option<u64>, UpstreamError> {
        let listed = self.listed.as_ref().filter(|(lister, _)| lister == name).map(|(_, size)| *size);
        match (stream.size, listed) {
            (Some(said), Some(listed)) if said != listed => {
                Err(UpstreamError::Corrupt { detail: format!("upstream says {said} bytes, a manifest says {listed}") })
            }
            (said, listed) => Ok(said.or(listed)),
        }
    }

    async fn receive(&self, name: RepositoryName, stream: BlobStream, size: Option<u64>, found: Option<(PartialBlob, Verifier)>) {
        let Begun { intake, file, bypass } = self.begin(found, size).await;
        let tail = Arc::new(Tail::new(file, intake.verifier.len(), size));
        if bypass.is_some() {
            tail.divert();
            self.job.entry.release();
        }
        if let Some(reason) = bypass.filter(|_| !self.job.fill.has_readers()) {
            return self.job.end(FillError::Unstored(reason));
        }
        let opened = Opened { tail: Arc::clone(&tail), repository: name.clone(), bypass, begin: intake.verifier.len() };
        self.job.fill.open(opened);
        let mut transfer = Transfer { job: &self.job, name, tail, size, intake: Some(intake), breaks: 0 };
        let received = transfer.receive_all(stream).await;
        transfer.conclude(received).await;
    }

    /// The place for the bytes: a partial that goes on, a new one, or none.
    async fn begin(&self, found: Option<(PartialBlob, Verifier)>, size: Option<u64>) -> Begun {
        let Job { means, source, fill, .. } = &self.job;
        let Some((mut partial, verifier)) = found else {
            let verifier = Verifier::new(&fill.digest);
            if !self.is_stored {
                let intake = Intake { verifier, partial: None };
                return Begun { intake, file: None, bypass: Some(BypassReason::DiskError) };
            }
            return match means.store.begin(source.name(), &fill.digest, size).await {
                Ok(partial) => Begun { file: Some(partial.reader()), intake: Intake { verifier, partial: Some(partial) }, bypass: None },
                Err(error) => Begun { intake: Intake { verifier, partial: None }, file: None, bypass: Some(self.job.bypass(&error)) },
            };
        };
        // Also where it cannot grow: upstream was asked for the rest only, so that readers need what it holds.
        let file = Some(partial.reader());
        let grown = means.gate.run(move || {
            let room = partial.expect_size(size.unwrap_or_default());
            room.map(|()| partial)
        });
        match grown.await {
            Ok(partial) => Begun { intake: Intake { verifier, partial: Some(partial) }, file, bypass: None },
            Err(error) => Begun { intake: Intake { verifier, partial: None }, file, bypass: Some(self.job.bypass(&error)) },
        }
    }

    /// Removes a partial that nobody can go on with.
    async fn discard(&self, found: Option<(PartialBlob, Verifier)>) {
        if let Some((partial, _)) = found {
            self.job.means.gate.run(move || partial.discard()).await;
        }
    }
}
