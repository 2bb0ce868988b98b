//! Another registry than Distribution: it answers for itself, and notes what no honest client would have sent.

use parking_lot::Mutex;
use std::sync::Arc;

use super::answer::Answer;
use super::{FakeRegistry, Request, State};

/// How a registry of the field answers. What is scripted (`when(…).then(…)`) still comes first.
pub trait Manners: Send {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer;
}

impl State {
    /// Notes what no honest client would have sent.
    pub fn violation(&mut self, request: &Request, what: impl AsRef<str>) {
        let at = format!("{} {}{}", request.method, request.host, request.path);
        self.violations.push(format!("{}: {at}", what.as_ref()));
    }

    /// A signed URL, at the store or CDN.
    pub fn signed(&mut self, request: &Request) -> Answer {
        let (answer, violation) = self.redirects.serve(request);
        if let Some(violation) = violation {
            self.violation(request, violation);
        }
        answer
    }
}

impl FakeRegistry {
    pub fn with_manners(manners: Arc<Mutex<dyn Manners>>) -> FakeRegistry {
        let registry = FakeRegistry::new();
        registry.state().manners = Some(manners);
        registry
    }

    /// What came that no honest client would have sent.
    pub fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// For a test that is about a violation.
    pub fn forgive(&self) {
        self.state().violations.clear();
    }

    /// Panics if anything came that no honest client would have sent.
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:#?}\nof {:#?}", self.requests());
    }
}

/// How redirects are signed.
impl FakeRegistry {
    /// Signed URLs work this long, in tokio's time.
    pub fn signatures_live(&self, lifetime: std::time::Duration) {
        self.state().redirects.lifetime = Some(lifetime);
    }

    /// Blobs are answered with this status.
    pub fn redirect_blobs_by(&self, status: u16, origin: &str) {
        self.redirect_blobs(origin);
        self.state().redirects.status = status;
    }

    /// Signed URLs are for GET alone, also those that a HEAD was given.
    pub fn blobs_without_head(&self) {
        self.state().redirects.refuses_head = true;
    }
}
