//! Records as bytes. The key is the raw hash: its length tells the algorithm. The value is the time of the last use,
//! eight bytes, then for a manifest a one and what it lists: length of the hash, hash, size.

use super::Record;
use crate::oci::Digest;
use crate::store::uptime::DaemonTime;

/// Before the list of a manifest, which may be empty.
const MANIFEST: u8 = 1;

pub(super) fn encode_key(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

pub(super) fn decode_key(key: &[u8]) -> Option<Digest> {
    match key.len() {
        32 => key.try_into().ok().map(Digest::Sha256),
        64 => key.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut value = record.last_used.0.to_be_bytes().to_vec();
    if let Some(children) = &record.children {
        value.push(MANIFEST);
        for (digest, size) in children.iter() {
            let hash = digest.as_bytes();
            value.push(u8::try_from(hash.len()).unwrap_or_default());
            value.extend(hash);
            value.extend(size.to_be_bytes());
        }
    }
    value
}

pub(super) fn decode(value: &[u8]) -> Option<Record> {
    let (time, list) = value.split_first_chunk()?;
    let last_used = DaemonTime(u64::from_be_bytes(*time));
    let children = match list {
        [] => None,
        [MANIFEST, list @ ..] => Some(decode_list(list)?.into()),
        _ => return None,
    };
    Some(Record { last_used, children })
}

fn decode_list(mut list: &[u8]) -> Option<Vec<(Digest, u64)>> {
    let mut children = Vec::new();
    while let [len, rest @ ..] = list {
        let (hash, rest) = rest.split_at_checked(usize::from(*len))?;
        let (size, rest) = rest.split_first_chunk()?;
        children.push((decode_key(hash)?, u64::from_be_bytes(*size)));
        list = rest;
    }
    Some(children)
}

/// The value with another time: what a manifest lists never changes.
pub(super) fn with_time(value: &[u8], last_used: DaemonTime) -> Vec<u8> {
    [&last_used.0.to_be_bytes(), value.get(8..).unwrap_or_default()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_undoes_encoding(time: u64, later: u64, list: Option<Vec<(bool, Vec<u8>, u64)>>) {
            let children = list.map(|list| {
                let child = |(long, bytes, size): (bool, Vec<u8>, u64)| {
                    (Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &bytes), size)
                };
                list.into_iter().map(child).collect()
            });
            let record = Record { last_used: DaemonTime(time), children };
            let value = encode(&record);
            prop_assert_eq!(decode(&value), Some(record.clone()));
            prop_assert_eq!(decode(&with_time(&value, DaemonTime(later))), Some(Record { last_used: DaemonTime(later), ..record }));
        }

        #[test]
        fn decoding_never_panics(value: Vec<u8>) {
            let _ = decode(&value);
        }
    }
}
