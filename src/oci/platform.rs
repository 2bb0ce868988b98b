//! Platforms, as an index says for what its images are, and which of them a machine takes.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{Descriptor, Digest, Manifest, MediaType};

/// Operating system, architecture and perhaps its variant, in the words that indexes use: `linux/arm64`, `linux/arm/v7`.
/// What means the same is the same: `linux/arm64/v8` and `linux/aarch64` are `linux/arm64`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// Not a platform; the text says how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform; write os/architecture or os/architecture/variant, such as linux/arm64")]
pub struct InvalidPlatform(String);

impl Platform {
    /// What images for this machine are for.
    pub fn of_this_machine() -> Platform {
        Platform::new("linux", std::env::consts::ARCH, "")
    }

    fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        let (os, architecture, variant) = (os.to_lowercase(), architecture.to_lowercase(), variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", _) => ("amd64", variant.as_str()),
            ("i386" | "i686" | "x86", _) => ("386", ""),
            ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
            ("aarch64", _) => ("arm64", variant.as_str()),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            ("powerpc64" | "powerpc64le", _) => ("ppc64le", ""),
            (architecture, variant) => (architecture, variant),
        };
        Platform { os: if os == "macos" { "darwin".into() } else { os }, architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `self` suits a machine that is `wanted`; the lowest is the best. Like containerd: a machine takes
    /// its own variant, else the next older one.
    fn rank(&self, wanted: &Platform) -> Option<usize> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        if self.variant == wanted.variant {
            return Some(0);
        }
        let ages: &[&str] = match wanted.architecture.as_str() {
            "arm" => &["v5", "v6", "v7", "v8"],
            "amd64" => &["", "v2", "v3", "v4"],
            _ => return self.variant.is_empty().then_some(1),
        };
        let age = |platform: &Platform| ages.iter().position(|variant| *variant == platform.variant);
        age(wanted)?.checked_sub(age(self)?)
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Platform, InvalidPlatform> {
        let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let parts: Vec<&str> = text.split('/').filter(is_word).collect();
        match parts[..] {
            [os, architecture] if text.matches('/').count() == 1 => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] if text.matches('/').count() == 2 => Ok(Platform::new(os, architecture, variant)),
            _ => Err(InvalidPlatform(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// One of the things that an index lists.
#[derive(Clone, Debug)]
pub struct IndexEntry {
    pub descriptor: Descriptor,
    /// What it is for, if the index says so.
    pub platform: Option<Platform>,
    /// What buildkit says about another entry: it is for no platform, and no client pulls it with the image.
    pub is_attestation: bool,
}

/// What an index lists, with what it says of it.
pub fn index_entries(index: &Manifest) -> Vec<IndexEntry> {
    let document: Document = serde_json::from_slice(index.bytes()).unwrap_or_default();
    document.manifests.unwrap_or_default().into_iter().filter_map(Listed::entry).collect()
}

/// Of what an index lists: what machines of these platforms take, and the platforms for which there is nothing. What is for
/// no platform that is said, every machine may take.
pub fn select<'a, 'b>(entries: &'a [IndexEntry], wanted: &'b [Platform]) -> (Vec<&'a IndexEntry>, Vec<&'b Platform>) {
    let images = || entries.iter().filter(|entry| !entry.is_attestation);
    let mut selected: Vec<&IndexEntry> = images().filter(|entry| entry.platform.is_none()).collect();
    let is_unsaid = !selected.is_empty();
    let mut absent = Vec::new();
    for platform in wanted {
        let ranked = || images().filter_map(|entry| Some((entry.platform.as_ref()?.rank(platform)?, entry)));
        let Some(best) = ranked().map(|(rank, _)| rank).min() else {
            if !is_unsaid {
                absent.push(platform);
            }
            continue;
        };
        // Windows' are for one version each, which only the machine knows. Of others, clients take the first.
        let at_most = if platform.os == "windows" { usize::MAX } else { 1 };
        selected.extend(ranked().filter(|(rank, _)| *rank == best).map(|(_, entry)| entry).take(at_most));
    }
    (selected, absent)
}

#[derive(Default, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
    platform: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Listed {
    fn entry(self) -> Option<IndexEntry> {
        let media_type = self.media_type.as_deref().unwrap_or(MediaType::OCI_MANIFEST).parse().ok()?;
        let digest = self.digest?.parse::<Digest>().ok()?;
        let platform = self.platform.map(|said| Platform::new(&said.os, &said.architecture, said.variant.as_deref().unwrap_or_default()));
        let is_attestation = platform.as_ref().is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown");
        let platform = platform.filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty());
        Some(IndexEntry { descriptor: Descriptor { media_type, digest, size: self.size? }, platform, is_attestation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn what_means_the_same_platform_is_the_same() {
        for (text, same) in [
            ("linux/arm64/v8", "linux/arm64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).to_string(), same, "{text}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux//amd64", "linux/a/b/c", "linux/am d64", "linux/amd64/"] {
            let error = text.parse::<Platform>().expect_err(text);
            assert!(error.to_string().contains("such as linux/arm64"), "{error}");
        }
    }

    fn index(platforms: &[&str]) -> Vec<IndexEntry> {
        let descriptor = |text: &str| Descriptor {
            media_type: MediaType::OCI_MANIFEST.parse().expect("a type"),
            digest: Digest::of(Algorithm::Sha256, text.as_bytes()),
            size: 1,
        };
        let entry = |text: &&str| IndexEntry {
            descriptor: descriptor(text),
            platform: text.parse().ok(),
            is_attestation: *text == "unknown/unknown",
        };
        platforms.iter().map(entry).collect()
    }

    /// What is taken and what is absent, in words.
    fn taken(listed: &[&str], wanted: &[&str]) -> (Vec<String>, Vec<String>) {
        let (entries, wanted): (_, Vec<_>) = (index(listed), wanted.iter().map(|text| platform(text)).collect());
        let (selected, absent) = select(&entries, &wanted);
        let name = |entry: &&IndexEntry| entry.platform.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        (selected.iter().map(name).collect(), absent.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_machine_takes_its_own_variant_or_the_next_older_one() {
        for (listed, wanted, expected) in [
            (&["linux/amd64", "linux/arm64/v8", "unknown/unknown"][..], "linux/arm64", "linux/arm64"),
            (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v7", "linux/arm/v6"),
            (&["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v3", "linux/amd64/v2"),
            (&["linux/amd64/v2", "linux/amd64"], "linux/amd64", "linux/amd64"),
            (&["linux/arm64"], "linux/arm64/v9", "linux/arm64"),
        ] {
            assert_eq!(taken(listed, &[wanted]), (vec![expected.to_owned()], vec![]), "{listed:?}");
        }
        for (listed, wanted) in
            [(&["linux/arm/v7"][..], "linux/arm/v6"), (&["linux/amd64"], "linux/386"), (&["linux/amd64/v3"], "linux/amd64")]
        {
            assert_eq!(taken(listed, &[wanted]), (vec![], vec![wanted.to_owned()]), "{listed:?}");
        }
    }

    #[test]
    fn every_windows_version_is_taken_and_what_says_nothing_is_everybody_s() {
        let (selected, absent) = taken(&["windows/amd64", "windows/amd64", "linux/amd64"], &["windows/amd64", "linux/s390x"]);
        assert_eq!((selected.len(), absent), (2, vec!["linux/s390x".to_owned()]));
        assert_eq!(taken(&["", "unknown/unknown"], &["linux/amd64"]), (vec!["-".to_owned()], vec![]));
        assert_eq!(taken(&["linux/amd64", "linux/amd64"], &["linux/amd64"]).0.len(), 1);
    }

    #[test]
    fn an_index_is_read_with_what_it_says_of_its_entries() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let entry = |platform: &str| format!(r#"{{"mediaType":"{}","digest":"{digest}","size":1{platform}}}"#, MediaType::OCI_MANIFEST);
        let said = |os: &str, architecture: &str| entry(&format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#));
        let body = format!(r#"{{"manifests":[{},{},{}]}}"#, said("linux", "arm64"), said("unknown", "unknown"), entry(""));
        let index = Manifest::unnamed(body.into(), Some(MediaType::OCI_INDEX)).expect("an index");
        let read: Vec<_> =
            index_entries(&index).iter().map(|entry| (entry.platform.as_ref().map(ToString::to_string), entry.is_attestation)).collect();
        assert_eq!(read[0], (Some("linux/arm64".into()), false));
        assert!(read[1].1 && read[2] == (None, false));
    }
}
