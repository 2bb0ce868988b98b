//! Sizes and ages as people read them.

use std::time::Duration;

/// In the largest binary unit that fits, with one decimal: `1.5 KiB`.
pub fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{}.{} {unit}", bytes >> shift, ((bytes >> (shift - 10) & 1023) * 10) >> 10),
        None => format!("{bytes} B"),
    }
}

/// In its largest unit and the next: nobody wants to read the seconds of a month.
pub fn age(seconds: u64) -> String {
    let round = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(round)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "16777215.9 TiB")] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [(0, "0s"), (119, "1m 59s"), (7261, "2h 1m"), (3 * 86_400 + 7261, "3days 2h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
