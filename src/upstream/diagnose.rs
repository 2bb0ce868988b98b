//! What an operator wants to know of an upstream: what it answers now, what a question would meet, which certificate it shows.

pub mod certificate;
pub mod outlook;
pub mod probe;
pub mod survey;
