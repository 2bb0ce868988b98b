//! Whether an upstream is worth waiting for: once it has let somebody wait in vain, nobody who has something to serve waits
//! for it until it answers again. It is asked all the same.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One upstream's credit.
#[derive(Debug, Default)]
pub struct Patience {
    lost: AtomicBool,
    answers: AtomicU64,
}

/// When a question began, counted in answers to others.
#[derive(Clone, Copy, Debug)]
pub struct Since(u64);

impl Patience {
    pub fn begin(&self) -> Since {
        Since(self.answers.load(Ordering::Relaxed))
    }

    /// Any answer counts, a refusal too: else a tag would be served stale for ever that should be refused.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
    }

    /// No answer to a question. If others were answered meanwhile, that says more.
    pub fn disappointed(&self, since: Since) {
        if self.answers.load(Ordering::Relaxed) == since.0 {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_lost_by_silence_and_restored_by_any_answer() {
        let patience = Patience::default();
        let first = patience.begin();
        patience.disappointed(first);
        assert!(patience.is_lost());
        patience.answered();
        assert!(!patience.is_lost());
        patience.disappointed(first);
        assert!(!patience.is_lost(), "a question that ends late says less than an answer that came meanwhile");
        patience.disappointed(patience.begin());
        assert!(patience.is_lost());
    }
}
