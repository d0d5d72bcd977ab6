// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;

use ipc::calls::FetchRequest;
use model::desired::RegistrySource;
use oci::unpack::Owners;
use tempfile::TempDir;

use super::*;
use crate::source::Opened;

/// A registry in memory; remembers what it was asked for.
#[derive(Default)]
struct Memory {
    manifests: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    asked: Mutex<Vec<String>>,
}

impl Source for Memory {
    fn open(&self, request: &FetchRequest, _: &Arc<AtomicBool>) -> Result<Opened, Fault> {
        let FetchRequest::Image(request) = request else { unreachable!("no file is asked for") };
        let (name, bytes) = match &request.object {
            FetchObject::Manifest { reference } => (reference.clone(), self.manifests.get(reference)),
            FetchObject::Blob { digest } => (digest.to_string(), self.blobs.get(digest)),
        };
        self.asked.lock().unwrap().push(name.clone());
        let bytes = bytes.ok_or_else(|| Fault::new(Reason::ImageNotFound, name))?;
        let rest = bytes[request.offset as usize..].to_vec();
        let size = Some(rest.len() as u64);
        Ok(Opened {
            media_type: String::new(),
            size,
            offset: request.offset,
            body: Box::new(Cursor::new(rest)),
        })
    }
}

/// Paths ending in a slash are directories with mode 0711, others files.
fn layer(paths: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for path in paths {
        let mut header = tar::Header::new_gnu();
        let is_directory = path.ends_with('/');
        header.set_entry_type(if is_directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if is_directory { 0o711 } else { 0o644 });
        header.set_size(0);
        builder.append_data(&mut header, path, &b""[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Memory {
    fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest::of(&bytes);
        let text = format!(r#""digest":"{digest}","size":{}"#, bytes.len());
        self.blobs.insert(digest, bytes);
        text
    }

    fn manifest(&mut self, architecture: &str, layers: &[Vec<u8>]) -> Vec<u8> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", digest::of(layer))).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"{architecture}","config":{{"Cmd":["run"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let config = self.blob(config.into_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{}}}"#,
                    self.blob(layer.clone())
                )
            })
            .collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{{config}}},"layers":[{}]}}"#,
            layers.join(",")
        )
        .into_bytes()
    }

    fn tag(&mut self, tag: &str, manifest: Vec<u8>) -> Digest {
        let digest = digest::of(&manifest);
        self.manifests.insert(digest.to_string(), manifest.clone());
        self.manifests.insert(tag.into(), manifest);
        digest
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn desired(reference: &str, digest: Option<Digest>) -> ContentDesired {
    let registry = RegistrySource { base_url: "https://r".into(), credentials: None, ca_pem: Vec::new() };
    ContentDesired {
        id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        name: "web".into(),
        generation: 0,
        sources: ContentSources::Registries(vec![ContentSource {
            registry,
            repository: "team/web".into(),
            reference: reference.into(),
        }]),
        digest,
        max_size_bytes: 0,
    }
}

struct World {
    place: TempDir,
    catalog: Catalog,
    registry: Memory,
}

impl World {
    fn new() -> World {
        let place = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(place.path(), Owners::Ignored).unwrap().0;
        World { place, catalog, registry: Memory::default() }
    }

    fn pull(&self, desired: &ContentDesired) -> Result<Image, Fault> {
        let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let pull = Pull {
            catalog: &self.catalog,
            source: &self.registry,
            platform: &platform,
            desired,
            cancelled: &Arc::default(),
            progress: &|_| {},
        };
        let result = pull.run().map(|held| match held {
            Held::Image(image) => image,
            Held::File(file) => panic!("a file: {file:?}"),
        });
        assert_eq!(fs::read_dir(self.place.path().join("tmp")).unwrap().count(), 0, "nothing is left behind");
        result
    }
}

#[test]
fn an_image_behind_an_index_is_pulled_once() {
    let mut world = World::new();
    let layers = [layer(&["a/", "a/one"]), layer(&["b/"])];
    let good = world.registry.manifest("amd64", &layers);
    let other = world.registry.manifest("arm64", &layers[..1]);
    let entry = |bytes: &[u8], architecture: &str| {
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
            digest::of(bytes),
            bytes.len()
        )
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{},{}]}}"#,
        entry(&other, "arm64"),
        entry(&good, "amd64")
    );
    world.registry.tag("good", good);
    world.registry.tag("other", other);
    let top = world.registry.tag("v1", index.into_bytes());

    let image = world.pull(&desired("v1", None)).unwrap();
    assert_eq!((image.digest, image.config.cmd.as_slice()), (top, &["run".to_string()][..]));
    assert_eq!(image.layers, [digest::of(&layers[0]), digest::of(&layers[1])]);
    assert_eq!(image.blobs.len(), 5);
    assert!(world.catalog.layer_path(&image.layers[0]).join("a/one").exists());
    assert_eq!(world.registry.asked().len(), 5);
    // By digest everything is here already; a tag is asked for again, and nothing else.
    assert_eq!(world.pull(&desired("v1", Some(top))).unwrap(), image);
    assert_eq!(world.registry.asked(), [""; 0]);
    world.pull(&desired("v1", None)).unwrap();
    assert_eq!(world.registry.asked(), ["v1"]);
    // The record survives.
    let again = Catalog::open(world.place.path(), Owners::Ignored).unwrap();
    assert_eq!((again.0.contents().len(), again.1.len()), (1, 0));
}

#[test]
fn an_implied_directory_looks_as_in_the_layer_below_and_not_as_in_another_image() {
    let mut world = World::new();
    let implying = layer(&["d/new"]);
    let first = world.registry.manifest("amd64", &[layer(&["d/"]), implying.clone()]);
    let second = world.registry.manifest("amd64", &[layer(&["e/"]), implying.clone()]);
    world.registry.tag("first", first);
    world.registry.tag("second", second);
    let mode = |image: &Image| {
        let path = world.catalog.layer_path(&image.layers[1]).join("d");
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    let first = world.pull(&desired("first", None)).unwrap();
    let second = world.pull(&desired("second", None)).unwrap();
    assert_eq!((mode(&first), mode(&second)), (0o711, 0o755));
    assert_ne!(first.layers[1], digest::of(&implying));
    world.registry.asked();
    assert_eq!(world.pull(&desired("first", None)).unwrap().layers, first.layers);
    assert_eq!(world.registry.asked(), ["first"]);
}

#[test]
fn a_layer_twice_in_an_image_is_one_directory() {
    let mut world = World::new();
    let twice = [layer(&["x/"]), layer(&["x/"])];
    let manifest = world.registry.manifest("amd64", &twice);
    world.registry.tag("v1", manifest);
    let image = world.pull(&desired("v1", None)).unwrap();
    assert_eq!(image.layers[0], image.layers[1]);
}

#[test]
fn every_refusal_has_its_reason_and_leaves_nothing() {
    let good = || layer(&["a/"]);
    type Spoil = fn(&mut World);
    let rows: [(Reason, Spoil); 6] = [
        (Reason::ImageNotFound, |world| world.registry.manifests.clear()),
        (Reason::ImageInvalid, |world| {
            world.registry.manifests.insert("v1".into(), b"{}".to_vec());
        }),
        (Reason::DigestMismatch, |world| {
            let blob = world.registry.blobs.values_mut().find(|blob| blob.starts_with(b"a/")).unwrap();
            blob[0] = b'b';
        }),
        (Reason::DigestMismatch, |world| {
            let config = world.registry.blobs.values_mut().find(|blob| blob.starts_with(b"{")).unwrap();
            config[2] = b'O';
        }),
        (Reason::ArchitectureMismatch, |world| {
            let manifest = world.registry.manifest("arm64", &[]);
            world.registry.tag("v1", manifest);
        }),
        (Reason::ImageInvalid, |world| {
            let blob = world.registry.blob(b"no archive".to_vec());
            let manifest = world.registry.manifest("amd64", &[layer(&["a/"])]);
            let text = String::from_utf8(manifest).unwrap();
            let (head, _) = text.split_once("\"layers\"").unwrap();
            let manifest = format!(
                r#"{head}"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{blob}}}]}}"#
            );
            world.registry.tag("v1", manifest.into_bytes());
        }),
    ];
    for (number, (reason, spoil)) in rows.into_iter().enumerate() {
        let mut world = World::new();
        let manifest = world.registry.manifest("amd64", &[good()]);
        world.registry.tag("v1", manifest);
        spoil(&mut world);
        let fault = world.pull(&desired("v1", None)).unwrap_err();
        assert_eq!(fault.reason, reason, "row {number}: {fault}");
        assert!(world.catalog.contents().is_empty());
    }
}

#[test]
fn an_image_larger_than_ordered_is_refused_before_its_layers_come() {
    let mut world = World::new();
    let manifest = world.registry.manifest("amd64", &[layer(&["a/"])]);
    world.registry.tag("v1", manifest);
    let order = ContentDesired { max_size_bytes: 1000, ..desired("v1", None) };
    assert_eq!(world.pull(&order).unwrap_err().reason, Reason::ImageInvalid);
    assert_eq!(world.registry.asked().len(), 2);
}

#[test]
fn a_manifest_with_another_digest_than_ordered_is_refused() {
    let mut world = World::new();
    let manifest = world.registry.manifest("amd64", &[]);
    let wrong = Digest([9; 32]);
    world.registry.manifests.insert(wrong.to_string(), manifest);
    assert_eq!(world.pull(&desired("v1", Some(wrong))).unwrap_err().reason, Reason::DigestMismatch);
}

#[test]
fn the_next_source_is_tried() {
    let mut world = World::new();
    let manifest = world.registry.manifest("amd64", &[]);
    world.registry.tag("v1", manifest);
    let mut order = desired("missing", None);
    let both = [order.sources, desired("v1", None).sources].into_iter().flat_map(|sources| match sources {
        ContentSources::Registries(sources) => sources,
        ContentSources::Servers(_) => Vec::new(),
    });
    order.sources = ContentSources::Registries(both.collect());
    assert!(world.pull(&order).is_ok());
}
