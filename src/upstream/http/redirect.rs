//! Redirects: the one place where they are read and followed (RFC 9110 §15.4). What a hop may carry is
//! [`super::exchange::Hop`]'s.

use http::header::LOCATION;

use super::exchange::{Answer, Outgoing, Wire};
use super::url::Url;
use crate::upstream::UpstreamError;

/// Registries need two: to a regional host, and to its store.
const REDIRECTS_MAX: usize = 5;

impl Wire {
    /// Sends a question and follows its redirects to the answer that is not one.
    ///
    /// # Errors
    /// When a hop gives no answer, or the redirects lead nowhere, to `http` from `https`, in a circle or too far.
    pub async fn ask(&self, outgoing: &Outgoing<'_>) -> Result<Answer, UpstreamError> {
        let mut hop = self.first_hop(outgoing);
        let mut visited = Vec::new();
        loop {
            let answer = self.send(outgoing, &hop).await?;
            // A form holds a secret and goes nowhere but where it was meant for.
            let Some(next) = answer.location()?.filter(|_| outgoing.form.is_none()) else {
                return Ok(answer);
            };
            visited.push(hop.url.clone());
            if visited.len() > REDIRECTS_MAX || visited.contains(&next) {
                return Err(UpstreamError::Corrupt { detail: format!("redirects without end, the last to {next}") });
            }
            answer.discard();
            hop = hop.next(next);
        }
    }
}

impl Answer {
    /// Where a redirect leads.
    ///
    /// # Errors
    /// When that is nowhere a request can go, or to `http` from `https`.
    pub fn location(&self) -> Result<Option<Url>, UpstreamError> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let corrupt = |why: &str| UpstreamError::Corrupt { detail: format!("{} redirects {why}", self.url) };
        let location = self.header(LOCATION).ok_or_else(|| corrupt("to nowhere"))?;
        let next = self.url.join(location).map_err(|error| corrupt(&format!("to {error}")))?;
        if self.url.origin.tls && !next.origin.tls {
            return Err(corrupt("from https to http"));
        }
        Ok(Some(next))
    }
}
