//! The doubles themselves: each refuses, and notes, what the real one would.
