//! Randomness as a value, so that a simulation can own it: jitter and request ids, nothing secret.

use parking_lot::Mutex;
use std::time::Duration;

/// A seeded generator, shared by reference.
#[derive(Debug)]
pub struct Rng(Mutex<fastrand::Rng>);

impl Rng {
    pub fn seeded(seed: u64) -> Rng {
        Rng(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    pub fn from_entropy() -> Rng {
        Rng(Mutex::new(fastrand::Rng::new()))
    }

    pub fn u128(&self) -> u128 {
        self.0.lock().u128(..)
    }

    /// Between half of `duration` and all of it.
    pub fn jitter(&self, duration: Duration) -> Duration {
        let share = self.0.lock().f64();
        duration.mul_f64(0.5 + share / 2.0)
    }
}
