// SPDX-License-Identifier: Apache-2.0
//! Manifests and indexes: OCI image spec v1.1 and Docker's schema 2, which have the same shape.

use model::id::Digest;
use serde::Deserialize;

use crate::platform::Platform;

/// Largest manifest or index read (distribution spec: a registry takes at least 4 MiB).
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Layers of one image at most: what container tools allow, and well below what overlayfs can stack.
pub const MAX_LAYERS: usize = 127;
/// Entries of an index at most.
pub const MAX_INDEX_ENTRIES: usize = 1024;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A layer that is a disk as it is.
pub const RAW_DISK: &str = "application/vnd.lfedge.disk.layer.v1+raw";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What a client says it understands when it asks for a manifest.
pub const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// What stands behind a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<(Descriptor, Compression)>,
}

/// A choice of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub manifests: Vec<Descriptor>,
}

/// Names a blob and says how large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    pub platform: Option<Platform>,
}

/// How a layer's tar archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is no artifact of one raw disk")]
    NoDisk,
    #[error("manifest is larger than {MAX_MANIFEST_BYTES} bytes")]
    TooLarge,
    #[error("manifest is not readable as JSON")]
    Json(#[source] serde_json::Error),
    #[error("manifest schema {0} is not supported")]
    Schema(u64),
    #[error("document is both or neither of manifest and index")]
    Ambiguous,
    #[error("media type {0:?} is not an image")]
    NotAnImage(String),
    #[error("layer has the unknown media type {0:?}")]
    LayerType(String),
    #[error("{what} has no sha256 digest")]
    Digest { what: &'static str },
    #[error("image has more than {MAX_LAYERS} layers")]
    Layers,
    #[error("index has more than {MAX_INDEX_ENTRIES} entries")]
    Entries,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

impl RawDescriptor {
    fn read(self, what: &'static str) -> Result<Descriptor, ManifestError> {
        // A bare number of hex digits is no digest here: the algorithm must be named.
        let digest = match self.digest.strip_prefix("sha256:") {
            Some(_) => self.digest.parse().map_err(|_| ManifestError::Digest { what })?,
            None => return Err(ManifestError::Digest { what }),
        };
        Ok(Descriptor { media_type: self.media_type, digest, size: self.size, platform: self.platform })
    }
}

impl Document {
    /// Reads a manifest or index. What it is follows from its content alone: the registry's word is not needed, and a
    /// document that could be read as both is refused, since two readers would see two images under one digest.
    pub fn parse(untrusted_bytes: &[u8]) -> Result<Document, ManifestError> {
        if untrusted_bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let raw: RawDocument = serde_json::from_slice(untrusted_bytes).map_err(ManifestError::Json)?;
        match raw.schema_version {
            Some(2) => {}
            other => return Err(ManifestError::Schema(other.unwrap_or(0))),
        }
        let says_index = match raw.media_type.as_deref() {
            None | Some("") => None,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => Some(false),
            Some(OCI_INDEX | DOCKER_LIST) => Some(true),
            Some(other) => return Err(ManifestError::NotAnImage(short(other))),
        };
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if says_index != Some(false) => {
                Index::read(manifests).map(Document::Index)
            }
            (None, Some(config), layers) if says_index != Some(true) => {
                Manifest::read(config, layers.unwrap_or_default()).map(Document::Manifest)
            }
            _ => Err(ManifestError::Ambiguous),
        }
    }
}

/// The disk that an artifact consists of, in the form of LF Edge's Edge Containers: one layer that is a raw disk.
pub fn disk_root(untrusted_bytes: &[u8]) -> Result<Descriptor, ManifestError> {
    if untrusted_bytes.len() > MAX_MANIFEST_BYTES {
        return Err(ManifestError::TooLarge);
    }
    let raw: RawDocument = serde_json::from_slice(untrusted_bytes).map_err(ManifestError::Json)?;
    if raw.schema_version != Some(2) || raw.manifests.is_some() {
        return Err(ManifestError::NoDisk);
    }
    let mut disks = raw.layers.unwrap_or_default().into_iter().filter(|layer| layer.media_type == RAW_DISK);
    match (disks.next(), disks.next()) {
        (Some(disk), None) => disk.read("layer"),
        _ => Err(ManifestError::NoDisk),
    }
}

impl Manifest {
    fn read(config: RawDescriptor, layers: Vec<RawDescriptor>) -> Result<Manifest, ManifestError> {
        if layers.len() > MAX_LAYERS {
            return Err(ManifestError::Layers);
        }
        let layers = layers.into_iter().map(|layer| {
            let compression = Compression::of(&layer.media_type)
                .ok_or_else(|| ManifestError::LayerType(short(&layer.media_type)))?;
            Ok((layer.read("layer")?, compression))
        });
        Ok(Manifest { config: config.read("config")?, layers: layers.collect::<Result<_, _>>()? })
    }
}

impl Index {
    fn read(manifests: Vec<RawDescriptor>) -> Result<Index, ManifestError> {
        if manifests.len() > MAX_INDEX_ENTRIES {
            return Err(ManifestError::Entries);
        }
        // Entries that can never be chosen need not be readable.
        let is_image = |entry: &RawDescriptor| ACCEPTED.contains(&entry.media_type.as_str());
        let manifests = manifests.into_iter().filter(is_image).map(|entry| entry.read("manifest"));
        Ok(Index { manifests: manifests.collect::<Result<_, _>>()? })
    }
}

impl Compression {
    /// Of a layer's media type; `None` when it is no tar layer.
    pub fn of(media_type: &str) -> Option<Compression> {
        Some(match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Compression::None,
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Compression::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
            _ => return None,
        })
    }
}

/// Foreign text, fit to be shown in a message.
pub(crate) fn short(untrusted_text: &str) -> String {
    untrusted_text.chars().map(|c| if c.is_control() { '?' } else { c }).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest_of(byte: u8) -> String {
        Digest([byte; 32]).to_string()
    }

    fn manifest(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","annotations":{{"a":"b"}},
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":7}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{}","size":9,"urls":[]}}]}}"#,
            digest_of(1),
            digest_of(2)
        )
    }

    #[test]
    fn a_manifest_names_its_config_and_layers() {
        for (media_type, compression) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
        ] {
            let Document::Manifest(read) = Document::parse(manifest(media_type).as_bytes()).unwrap() else {
                panic!("not a manifest");
            };
            assert_eq!(read.config.digest, Digest([1; 32]));
            assert_eq!((read.layers[0].0.size, read.layers[0].1), (9, compression));
        }
    }

    #[test]
    fn an_index_keeps_only_images() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[
            {{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}},
            {{"mediaType":"application/x-other","digest":"sha512:00","size":1}}]}}"#,
            digest_of(1)
        );
        let Document::Index(index) = Document::parse(text.as_bytes()).unwrap() else {
            panic!("not an index")
        };
        assert_eq!(index.manifests.len(), 1);
    }

    #[test]
    fn documents_that_could_mislead_are_refused() {
        let both = manifest("application/vnd.oci.image.layer.v1.tar")
            .replace("\"config\"", "\"manifests\":[],\"config\"");
        let lying = manifest("application/vnd.oci.image.layer.v1.tar").replace(OCI_MANIFEST, OCI_INDEX);
        let many = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{0}","size":1}},"layers":[{1}]}}"#,
            digest_of(1),
            vec![format!(r#"{{"digest":"{}","size":1}}"#, digest_of(1)); MAX_LAYERS + 1].join(",")
        );
        for (text, why) in [
            (both, "both or neither"),
            (lying, "both or neither"),
            (many, "more than"),
            (manifest("text/plain"), "unknown media type"),
            (
                manifest("application/vnd.oci.image.layer.v1.tar").replace("sha256:02", "sha512:02"),
                "no sha256 digest",
            ),
            (r#"{"schemaVersion":1}"#.into(), "schema 1"),
            (r#"{"schemaVersion":2}"#.into(), "both or neither"),
            (r#"{"schemaVersion":2,"mediaType":"a/b"}"#.into(), "not an image"),
            ("[".repeat(10_000), "JSON"),
            (" ".repeat(MAX_MANIFEST_BYTES + 1), "larger"),
        ] {
            let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{error} for {why}");
        }
    }

    #[test]
    fn the_disk_of_an_artifact_is_its_one_raw_layer() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let layer = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":7}}"#);
        let config = layer("application/vnd.lfedge.eci.config.v1+json");
        let of = |layers: &[String]| {
            format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","))
        };
        let found = disk_root(of(&[layer(RAW_DISK), layer("x/y")]).as_bytes()).unwrap();
        assert_eq!((found.size, found.digest.to_string()), (7, digest.clone()));
        for bad in [of(&[]), of(&[layer("x/y")]), of(&[layer(RAW_DISK), layer(RAW_DISK)]), "{}".into()] {
            assert!(disk_root(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes);
        }

        #[test]
        fn a_changed_manifest_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = manifest("application/vnd.oci.image.layer.v1.tar").into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Document::parse(&bytes);
        }
    }
}
