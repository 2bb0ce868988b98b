//! The tests of the whole: larder's parts over fake hosts, in process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop where it stands")]
#![allow(unreachable_pub, reason = "a test binary has no outside; `pub` here means: for other test modules")]

mod doubles;
mod support;
