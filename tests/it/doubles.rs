//! The doubles do what they claim: honest where nothing is scripted, and each fault exactly once as told.
