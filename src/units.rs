//! Sizes and durations as text, in one place for configuration, commands and messages. Pure; knows nothing of larder.

use std::time::Duration;

/// Binary units, from the largest down, with the power of two that each is.
const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// Not a whole number with a unit.
    Malformed,
    /// More than 2⁶⁴ − 1 bytes.
    TooLarge,
}

/// Bytes, as in `1024`, `500MB` or `20GiB`; letters' case and a space before the unit don't matter.
///
/// # Errors
/// When the text is no whole number with a unit, or too large a one.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| SizeError::Malformed)?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(SizeError::Malformed),
    };
    number.checked_mul(factor).ok_or(SizeError::TooLarge)
}

/// Bytes in the largest unit that leaves no remainder, so that [`parse_size`] reads the same number back: `20GiB`, `123456789`.
pub fn exact_size(bytes: u64) -> String {
    let whole = UNITS.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Bytes for people, with one decimal: `1.5 KiB`, `20.0 GiB`, `512 B`.
pub fn size(bytes: u64) -> String {
    match UNITS.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{}.{} {unit}", bytes >> shift, ((bytes >> (shift - 10) & 1023) * 10) >> 10),
        None => format!("{bytes} B"),
    }
}

/// A duration, as in `30s`, `5m`, `1h 30m` or `7d`; a bare `0` too. `None` for anything else, a number without a unit included.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" { Some(Duration::ZERO) } else { humantime::parse_duration(text).ok() }
}

/// A duration exactly, so that [`parse_duration`] reads the same one back: `1m 30s`, `30days`.
pub fn exact_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A duration for people: whole seconds.
pub fn duration(duration: Duration) -> String {
    exact_duration(Duration::from_secs(duration.as_secs()))
}

/// A length of time for people, in its largest unit and the next: nobody wants to read the seconds of a month.
pub fn age(seconds: u64) -> String {
    let round = match seconds {
        0..3600 => seconds,
        3600..86_400 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    exact_duration(Duration::from_secs(round))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_with_a_unit() {
        for (text, bytes) in
            [("1024", 1024), ("0", 0), ("10GiB", 10 << 30), ("500MB", 500_000_000), ("64 MiB", 64 << 20), ("1tib", 1 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "10 G", "１"] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed), "{text}");
        }
        assert_eq!(parse_size("99999999999TiB"), Err(SizeError::TooLarge));
    }

    #[test]
    fn an_exact_size_reads_back_and_one_for_people_is_short() {
        for (bytes, exact, short) in [
            (0, "0", "0 B"),
            (1023, "1023", "1023 B"),
            (1536, "1536", "1.5 KiB"),
            (1 << 30, "1GiB", "1.0 GiB"),
            (5 << 20, "5MiB", "5.0 MiB"),
            (u64::MAX, "18446744073709551615", "16777215.9 TiB"),
        ] {
            assert_eq!((exact_size(bytes).as_str(), size(bytes).as_str()), (exact, short));
            assert_eq!(parse_size(exact), Ok(bytes));
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_reads_back() {
        for (text, seconds) in [("0s", 0), ("0", 0), ("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604_800), ("1h 30m", 5400)] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(parse_duration(text), Some(duration), "{text}");
            assert_eq!(parse_duration(&exact_duration(duration)), Some(duration), "{text}");
        }
        for text in ["", "x", "30", "5 parsecs", "-1s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn times_for_people_are_short() {
        assert_eq!(duration(Duration::from_millis(61_900)), "1m 1s");
        for (seconds, text) in [(0, "0s"), (119, "1m 59s"), (7261, "2h 1m"), (3 * 86_400 + 7261, "3days 2h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
