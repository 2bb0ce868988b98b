//! Redirects: the one place where they are read and followed.

use http::header::LOCATION;

use super::exchange::{Answer, Outgoing, Wire};
use super::url::Url;
use crate::upstream::UpstreamError;

const REDIRECTS_MAX: usize = 5;

impl Wire {
    /// Asks, and follows redirects to the answer that is none.
    pub async fn ask(&self, outgoing: &Outgoing<'_>) -> Result<Answer, UpstreamError> {
        let mut visited = vec![outgoing.url.clone()];
        loop {
            let url = visited.last().unwrap_or(&outgoing.url).clone();
            let response = self.send(outgoing, &url).await?;
            let answer = Answer { response, url, redirected: visited.len() > 1, deadline: outgoing.deadline, place: None };
            // A form holds a secret and goes nowhere but where it was meant for.
            let Some(next) = answer.location()?.filter(|_| outgoing.form.is_none()) else {
                return Ok(answer);
            };
            if visited.len() > REDIRECTS_MAX || visited.contains(&next) {
                return Err(UpstreamError::Corrupt { detail: format!("redirects without end, the last to {next}") });
            }
            answer.discard();
            visited.push(next);
        }
    }
}

impl Answer {
    /// Where a redirect leads.
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
