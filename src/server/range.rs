//! The `Range` header (RFC 9110, section 14) of one blob, pure. Only single ranges are answered in part: every client that
//! asks for several accepts the whole, and a one-part 206 to a many-part question breaks them all.

/// What of a blob to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// 200: no range asked for, or none that has to be understood.
    Whole,
    /// 206; `start <= end_inclusive < size`.
    Part { start: u64, end_inclusive: u64 },
    /// 416
    Unsatisfiable,
}

/// One range as asked, before the size is known. Numbers beyond `u64` stand at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=N-`
    From(u64),
    /// `bytes=N-M`, `M` inclusive and perhaps less than `N`.
    Between(u64, u64),
    /// `bytes=-K`
    Last(u64),
}

impl Selection {
    /// Chooses from the header's value and the blob's size.
    pub fn of(header: Option<&str>, size: u64) -> Selection {
        header.and_then(ByteRange::parse).map_or(Selection::Whole, |range| range.within(size))
    }

    /// Bytes to send; none for what is unsatisfiable.
    pub fn length(self, size: u64) -> u64 {
        match self {
            Selection::Whole => size,
            Selection::Part { start, end_inclusive } => end_inclusive - start + 1,
            Selection::Unsatisfiable => 0,
        }
    }

    /// The `Content-Range` header.
    pub fn content_range(self, size: u64) -> Option<String> {
        match self {
            Selection::Whole => None,
            Selection::Part { start, end_inclusive } => Some(format!("bytes {start}-{end_inclusive}/{size}")),
            Selection::Unsatisfiable => Some(format!("bytes */{size}")),
        }
    }
}

impl ByteRange {
    /// `None` for other units, several ranges and what is malformed: all of that is ignored, as the RFC has it.
    pub fn parse(header: &str) -> Option<ByteRange> {
        let (unit, range) = header.split_once('=')?;
        let (first, last) = range.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first, last) {
            ("", last) => number(last).map(ByteRange::Last),
            (first, "") => number(first).map(ByteRange::From),
            (first, last) => Some(ByteRange::Between(number(first)?, number(last)?)),
        }
    }

    /// Fits the range into a blob of `size` bytes.
    pub fn within(self, size: u64) -> Selection {
        // Some clients ask for `bytes=0-` always; no 206 can describe nothing, and a 416 would fail the pull.
        let Some(last) = size.checked_sub(1) else { return Selection::Whole };
        match self {
            ByteRange::From(start) if start <= last => Selection::Part { start, end_inclusive: last },
            ByteRange::Between(start, end) if start <= last && start <= end => Selection::Part { start, end_inclusive: end.min(last) },
            ByteRange::Last(count) if count > 0 => Selection::Part { start: size.saturating_sub(count), end_inclusive: last },
            ByteRange::From(_) | ByteRange::Between(..) | ByteRange::Last(_) => Selection::Unsatisfiable,
        }
    }
}

/// Digits only; too many of them are a number beyond every blob.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(start: u64, end_inclusive: u64) -> Selection {
        Selection::Part { start, end_inclusive }
    }

    #[test]
    fn the_clients_ranges_are_answered_as_they_expect() {
        for (header, selection) in [
            ("bytes=500-1499", part(500, 1499)),
            ("bytes=500-", part(500, 2047)),
            ("bytes=0-", part(0, 2047)),
            ("bytes=-500", part(1548, 2047)),
            ("bytes=-5000", part(0, 2047)),
            ("bytes=2000-5000", part(2000, 2047)),
            ("bytes=2047-2047", part(2047, 2047)),
            ("Bytes=0-0", part(0, 0)),
            ("bytes=0-99999999999999999999", part(0, 2047)),
            ("bytes=-99999999999999999999", part(0, 2047)),
            ("bytes=500-0", Selection::Unsatisfiable),
            ("bytes=2048-", Selection::Unsatisfiable),
            ("bytes=5000-10000", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=99999999999999999999-", Selection::Unsatisfiable),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=0-,-1", Selection::Whole),
            ("bytes=5000-6000,7000-", Selection::Whole),
            ("items=0-1", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=1-2-3", Selection::Whole),
            ("bytes 0-1", Selection::Whole),
            ("", Selection::Whole),
        ] {
            assert_eq!(Selection::of(Some(header), 2048), selection, "{header}");
        }
        assert_eq!(Selection::of(None, 2048), Selection::Whole);
    }

    #[test]
    fn nothing_is_whole_whatever_is_asked_of_it() {
        for header in ["bytes=0-", "bytes=-1", "bytes=5-9"] {
            assert_eq!(Selection::of(Some(header), 0), Selection::Whole, "{header}");
        }
    }

    #[test]
    fn content_range_is_exact() {
        assert_eq!(part(1, 2).content_range(9).as_deref(), Some("bytes 1-2/9"));
        assert_eq!(Selection::Unsatisfiable.content_range(9).as_deref(), Some("bytes */9"));
        assert_eq!(Selection::Whole.content_range(9), None);
    }

    proptest! {
        /// Also: cve_2017_7529
        #[test]
        fn a_part_lies_within_the_blob(first: Option<u64>, last: Option<u64>, size: u64) {
            let text = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
            let selection = Selection::of(Some(&format!("bytes={}-{}", text(first), text(last))), size);
            if let Selection::Part { start, end_inclusive } = selection {
                prop_assert!(start <= end_inclusive && end_inclusive < size);
                prop_assert_eq!(first.unwrap_or(start), start);
                prop_assert!(selection.length(size) <= size);
                if first.is_none() {
                    prop_assert_eq!((Some(selection.length(size)), end_inclusive), (last.map(|last| last.min(size)), size - 1));
                }
            }
        }

        #[test]
        fn two_neighbouring_ranges_make_the_whole(size in 2u64.., cut: u64) {
            let cut = cut % (size - 1) + 1;
            let front = Selection::of(Some(&format!("bytes=0-{}", cut - 1)), size);
            let back = Selection::of(Some(&format!("bytes={cut}-")), size);
            prop_assert_eq!(front.length(size) + back.length(size), size);
            prop_assert_eq!(back, Selection::of(Some(&format!("bytes=-{}", size - cut)), size));
        }

        #[test]
        fn parsing_never_panics(header: String, size: u64) {
            let _ = Selection::of(Some(&header), size).content_range(size);
            let _ = Selection::of(Some(&format!("bytes={header}")), size);
        }
    }
}
