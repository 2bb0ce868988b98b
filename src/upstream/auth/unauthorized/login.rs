//! Whether a login may be shown for a repository, and what its refusal there means: this repository's answer, or everybody's.
//! Steps of one [`Attempt`]; what is sent is the parent's business.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::Attempt;
use crate::upstream::UpstreamError;
use crate::upstream::auth::credentials::Held;
use crate::upstream::auth::lockout::{SignedIn, Turn};
use crate::upstream::auth::sign_in::{REMEMBERED, Scheme};
use crate::upstream::http::url::Url;
use crate::upstream::limits::too_many_requests::Limited;

/// How long a question waits for the one that tries the login before the sign-in is asked: longer than a registry takes that is well, as
/// each sign-in shows the login once more.
const SIGN_IN_AFTER: Duration = Duration::from_secs(2);
/// A token server that limits the rate now may have let larder sign in a minute ago.
const LIMIT_REMEMBERED: Duration = Duration::from_secs(10);

impl<'a> Attempt<'a> {
    /// Makes sure that the login may be shown for this repository now. One that nobody has accepted yet is tried by one question
    /// at a time; one that was locked out is tried again by the sign-in.
    pub(super) async fn prove(&mut self, scheme: &Scheme) -> Result<(), UpstreamError> {
        let auth = self.auth;
        loop {
            self.turn = Turn::Free;
            auth.signer.check(&self.login, self.repository)?;
            if !self.is_scoped || auth.signer.is_accepted(&self.login) {
                return Ok(());
            }
            let Some(turn) = self.turn_or_sign_in(scheme).await? else { continue };
            // Whoever had the turn before may have found out.
            auth.signer.check(&self.login, self.repository)?;
            if auth.signer.is_accepted(&self.login) {
                return Ok(());
            }
            let was_locked_out = auth.signer.was_locked_out(&self.login)?;
            let said = if was_locked_out { auth.sign_in.verdict(&self.login, scheme, REMEMBERED).await } else { Ok(SignedIn::Unknown) };
            match said {
                Ok(SignedIn::Accepted) => return Ok(()),
                Ok(SignedIn::Unknown) => {
                    self.turn = turn;
                    return Ok(());
                }
                Err(why) => self.replace(why).await?,
            }
        }
    }

    /// The turn to try the login. Where whoever has it takes long, as one scope may be slow and others are not, the sign-in decides
    /// meanwhile for all: `None`, when it has.
    async fn turn_or_sign_in(&mut self, scheme: &Scheme) -> Result<Option<Turn<'a>>, UpstreamError> {
        let auth = self.auth;
        let mut turn = pin!(auth.signer.turn(self.deadline));
        if let Ok(turn) = tokio::time::timeout(SIGN_IN_AFTER, &mut turn).await {
            return turn.map(Some);
        }
        let said = tokio::select! {
            biased;
            turn = &mut turn => return turn.map(Some),
            said = auth.sign_in.verdict(&self.login, scheme, REMEMBERED) => said,
        };
        match said {
            Ok(SignedIn::Accepted) => Ok(None),
            Err(why @ UpstreamError::CredentialRefused { .. }) => self.replace(why).await.map(|()| None),
            Ok(SignedIn::Unknown) | Err(_) => turn.await.map(Some),
        }
    }

    /// The registry refused the login itself.
    pub(super) async fn login_refused(&mut self, from: &Url) -> Result<(), UpstreamError> {
        let detail = format!("{from} answered 401 to credential {}", self.auth.credential());
        self.judge(UpstreamError::CredentialRefused { detail }, &Scheme::Login).await?;
        self.log_in().await
    }

    /// The login was refused here: for this repository alone, or for all? Returns when there is another login to try.
    ///
    /// # Errors
    /// `Denied`, when the sign-in takes the login, so that the refusal is about the repository; else with `why`.
    pub(super) async fn judge(&mut self, why: UpstreamError, scheme: &Scheme) -> Result<(), UpstreamError> {
        let auth = self.auth;
        if !self.is_scoped {
            auth.signer.lock_out(&self.login, &why);
            return self.replace(why).await;
        }
        if let Some(other) = auth.signer.other(&self.login, self.repository).await.filter(|_| !self.renewed) {
            self.take(other);
            return Ok(());
        }
        let is_accepted = auth.signer.is_accepted(&self.login);
        let other = match auth.sign_in.verdict(&self.login, scheme, REMEMBERED).await {
            Ok(SignedIn::Accepted) => {
                let denied = UpstreamError::Denied { detail: format!("{why}; the login itself is good") };
                auth.signer.denied(&self.login, self.repository, &denied);
                return Err(denied);
            }
            Err(why @ UpstreamError::CredentialRefused { .. }) => return self.replace(why).await,
            Ok(SignedIn::Unknown) | Err(_) if is_accepted => auth.signer.renewed(&self.login, self.repository).await,
            Ok(SignedIn::Unknown) | Err(_) => auth.signer.replaced(&self.login, self.repository).await,
        };
        match other.filter(|_| !self.renewed) {
            Some(other) => {
                self.take(other);
                Ok(())
            }
            None => {
                auth.signer.doubt(&self.login, self.repository, &why);
                Err(why)
            }
        }
    }

    /// The token server limits the rate: of these scopes, if it lets the login in without one, else of the login.
    pub(super) async fn limited(&mut self, limited: &Limited, scheme: &Scheme) -> UpstreamError {
        let (auth, begun) = (self.auth, Instant::now());
        let here = |this: &Self| UpstreamError::RateLimited {
            retry_after: Some(auth.signer.limited(&this.login, this.repository, limited.retry_after)),
        };
        match auth.sign_in.verdict(&self.login, scheme, LIMIT_REMEMBERED).await {
            Ok(SignedIn::Accepted) => here(self),
            Err(why @ (UpstreamError::RateLimited { .. } | UpstreamError::CredentialRefused { .. })) => why,
            Ok(SignedIn::Unknown) | Err(_) => auth.tokens.limit(limited, begun),
        }
    }

    /// The token server asks to come back later: of these scopes, if it lets the login in without one.
    pub(super) async fn busy(&mut self, why: UpstreamError, scheme: &Scheme) -> UpstreamError {
        let auth = self.auth;
        let accepted = auth.sign_in.verdict(&self.login, scheme, LIMIT_REMEMBERED).await;
        match (accepted, &why) {
            (Ok(SignedIn::Accepted), UpstreamError::Busy { retry_after, .. }) => {
                auth.signer.busy(&self.login, self.repository, &why, *retry_after);
                why
            }
            (Err(of_the_login), _) => of_the_login,
            (Ok(_), _) => why,
        }
    }

    /// Goes on with another login than the one that was refused, once.
    async fn replace(&mut self, why: UpstreamError) -> Result<(), UpstreamError> {
        if self.renewed || !matches!(why, UpstreamError::CredentialRefused { .. }) {
            return Err(why);
        }
        match self.auth.signer.replaced(&self.login, self.repository).await {
            Some(other) => {
                self.take(other);
                Ok(())
            }
            None => Err(why),
        }
    }

    fn take(&mut self, other: Held) {
        (self.renewed, self.login, self.turn) = (true, other, Turn::Free);
    }
}
