// SPDX-License-Identifier: Apache-2.0
//! Which of an index's images runs on this machine.

use core::fmt;

use serde::Deserialize;

use crate::manifest::{Descriptor, Index};

/// Operating system and processor, in OCI's (Go's) words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine this program was built for.
    pub fn this_machine() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// An image for `other` runs here. Variants of amd64 above the base are not taken: the box may lack them.
    pub fn runs(&self, other: &Platform) -> bool {
        let variant = other.variant.as_deref().unwrap_or("");
        self.os == other.os
            && self.architecture == other.architecture
            && match self.architecture.as_str() {
                "amd64" => matches!(variant, "" | "v1"),
                "arm64" => matches!(variant, "" | "v8"),
                _ => true,
            }
    }

    /// The manifest of an index to take: the first that names this platform, else the only one that names none.
    pub fn choose<'a>(&self, index: &'a Index) -> Result<&'a Descriptor, ArchitectureMismatch> {
        let named = index
            .manifests
            .iter()
            .find(|entry| entry.platform.as_ref().is_some_and(|platform| self.runs(platform)));
        if let Some(entry) = named {
            return Ok(entry);
        }
        let mut unnamed = index.manifests.iter().filter(|entry| entry.platform.is_none());
        match (unnamed.next(), unnamed.next()) {
            (Some(entry), None) => Ok(entry),
            _ => Err(self.mismatch(index.manifests.iter().filter_map(|entry| entry.platform.as_ref()))),
        }
    }

    /// Says that an image is for other machines.
    pub fn mismatch<'a>(&self, offered: impl Iterator<Item = &'a Platform>) -> ArchitectureMismatch {
        let mut names: Vec<String> = offered.map(ToString::to_string).take(MAX_NAMED).collect();
        names.dedup();
        ArchitectureMismatch { wanted: self.to_string(), offered: names.join(", ") }
    }
}

/// Platforms named in a message at most.
const MAX_NAMED: usize = 8;

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().filter(|c| c.is_ascii_graphic()).take(20).collect::<String>();
        write!(f, "{}/{}", short(&self.os), short(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", short(variant)),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the image is for {offered}, not for {wanted}")]
pub struct ArchitectureMismatch {
    pub wanted: String,
    pub offered: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(String::from);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    fn index(platforms: &[&str]) -> Index {
        let entry = |text: &&str| Descriptor {
            media_type: "m".into(),
            digest: digest::of(text.as_bytes()),
            size: 1,
            platform: (!text.is_empty()).then(|| platform(text)),
        };
        Index { manifests: platforms.iter().map(entry).collect() }
    }

    #[test]
    fn the_right_manifest_is_chosen() {
        let rows: [(&str, &[&str], Option<&str>); 8] = [
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &[""], Some("")),
            ("linux/amd64", &["", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &[], None),
        ];
        for (machine, offered, chosen) in rows {
            let index = index(offered);
            let got = platform(machine).choose(&index).ok().map(|entry| entry.digest);
            assert_eq!(got, chosen.map(|text| digest::of(text.as_bytes())), "{machine} {offered:?}");
        }
    }

    #[test]
    fn the_message_names_what_is_offered() {
        let error = platform("linux/arm64").choose(&index(&["linux/amd64", "linux/arm/v7"])).unwrap_err();
        assert_eq!(error.to_string(), "the image is for linux/amd64, linux/arm/v7, not for linux/arm64");
    }
}
