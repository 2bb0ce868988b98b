//! Content digests as the image-spec writes them (`sha256:<hex>`), and the hashers that make them.

use std::fmt;
use std::str::FromStr;

use sha2::{Sha256, Sha512};

/// A registered digest algorithm (image-spec, descriptor.md, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// The name of some content: well-formed, which says nothing about whether anybody has the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of bytes that are at hand.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(hash) => hash,
            Digest::Sha512(hash) => hash,
        }
    }

    /// The part after the colon, in lower-case hex.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.as_bytes().iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).map(char::from).collect()
    }

    /// Reads the two parts of a digest, as they stand apart in paths on disk.
    ///
    /// # Errors
    /// When the algorithm is not registered, or the hex is not lower case and of its exact length.
    pub fn from_parts(algorithm: &str, hex: &str) -> Result<Digest, InvalidDigest> {
        match algorithm {
            "sha256" => decode_hex(hex).map(Digest::Sha256),
            "sha512" => decode_hex(hex).map(Digest::Sha512),
            _ => Err(InvalidDigest),
        }
    }
}

/// Not `<algorithm>:<lower-case hex>` with a registered algorithm and its exact length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: expected sha256:<64 hex digits> or sha512:<128 hex digits>, in lower case")]
pub struct InvalidDigest;

fn decode_hex<const N: usize>(hex: &str) -> Result<[u8; N], InvalidDigest> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(InvalidDigest),
    };
    let text = hex.as_bytes();
    if text.len() != 2 * N {
        return Err(InvalidDigest);
    }
    let mut hash = [0; N];
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(hash)
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest)?;
        Digest::from_parts(algorithm, hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A digest in the making. The sha2 crate picks the processor's SHA instructions at run time.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Digest::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Digest::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(state) => sha2::Digest::update(state, bytes),
            Hasher::Sha512(state) => sha2::Digest::update(state, bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(state) => Digest::Sha256(sha2::Digest::finalize(state).into()),
            Hasher::Sha512(state) => Digest::Sha512(sha2::Digest::finalize(state).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_vector_has_its_known_name() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(Algorithm::Sha256, b"")));
    }

    #[test]
    fn what_is_not_a_digest_is_refused() {
        let sha256 = "a".repeat(64);
        for text in [
            String::new(),
            "sha256".into(),
            "sha256:".into(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{sha256}a"),
            format!("sha512:{sha256}"),
            format!("md5:{sha256}"),
            format!("sha256:{}/", "a".repeat(63)),
            format!("sha256:{}\0", "a".repeat(63)),
            "sha256:../../../../../../etc/passwd".into(),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_are_inverse(bytes: Vec<u8>) {
            for algorithm in Algorithm::ALL {
                let digest = Digest::of(algorithm, &bytes);
                prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            }
        }

        #[test]
        fn parsing_never_panics(text: String) {
            let _ = text.parse::<Digest>();
        }
    }
}
