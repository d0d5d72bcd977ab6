// SPDX-License-Identifier: Apache-2.0
//! Updates from a server in memory into slots that are files.

use std::io::Cursor;
use std::path::Path;
use std::sync::Mutex;

use disk::gpt::Partition;
use disk::partitions::ids_of_root;
use disk::update::{self, OTHER, Signature};
use ipc::calls::FetchRequest;
use model::desired::{ContentDesired, FileSource};
use model::id::ContentTreeId;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use uuid::Uuid;

use super::*;
use crate::source::Opened;

const SLOT_BYTES: u64 = 8 << 20;

/// A version: its root, its kernel image, and the file made of them.
struct Version {
    manifest: Manifest,
    root: Vec<u8>,
    root_tree: Vec<u8>,
    kernel: Vec<u8>,
    kernel_tree: Vec<u8>,
}

/// Blocks that no other number has.
fn blocks(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers.into_iter().flat_map(|number| number.to_le_bytes().repeat(BLOCK_BYTES / 4)).collect()
}

impl Version {
    fn new(version: &str, root: Vec<u8>, kernel_numbers: impl IntoIterator<Item = u32>) -> Version {
        let (root_tree, verity) = verity::tree(&root, Uuid::nil());
        let mut kernel = blocks(kernel_numbers);
        let line = format!("x selvedge.roothash={} y", hex(&verity.hash));
        // across the pieces in which it is looked for
        let at = READ_BLOCKS * BLOCK_BYTES - 30;
        kernel[at..at + line.len()].copy_from_slice(line.as_bytes());
        let kernel_bytes = kernel.len() - 77;
        kernel[kernel_bytes..].fill(0);
        let mut sum = Sum::default();
        sum.add(&kernel[..kernel_bytes]);
        let (kernel_tree, kernel_verity) = verity::tree(&kernel, Uuid::nil());
        let manifest = Manifest {
            version: version.into(),
            architecture: Architecture::OWN.name().into(),
            root: verity,
            kernel: kernel_verity,
            kernel_bytes: kernel_bytes as u64,
            kernel_sha256: sum.hash(),
        };
        Version { manifest, root, root_tree, kernel, kernel_tree }
    }

    fn file(&self, signature: Option<&Signature>) -> Vec<u8> {
        let manifest = self.manifest.to_bytes(signature);
        let contents = [&manifest, &self.root_tree, &self.kernel_tree, &self.kernel, &self.root];
        let (root_id, _) = ids_of_root(&self.manifest.root.hash);
        let partitions: Vec<(Partition, u64)> = contents
            .iter()
            .map(|content| {
                let name = "part".into();
                (
                    Partition { kind: OTHER, id: root_id, first: 0, last: 0, attributes: 0, name },
                    content.len() as u64,
                )
            })
            .collect();
        let table = update::table(Uuid::nil(), &partitions).unwrap();
        let mut out = vec![0; (table.sectors * 512) as usize];
        for write in table.writes() {
            if let Write::At { offset, bytes } = write {
                out[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
        for (number, content) in (1..).zip(contents) {
            let at = table.partitions[&number].first as usize * 512;
            out[at..at + content.len()].copy_from_slice(content);
        }
        out
    }

    /// As it lies in a slot.
    fn data(&self) -> Vec<u8> {
        [&self.root[..], &self.kernel[..]].concat()
    }

    fn trees(&self) -> Vec<u8> {
        [&self.root_tree[..], &self.kernel_tree[..]].concat()
    }
}

/// A server, and a box with the slots of a directory.
struct World {
    dir: tempfile::TempDir,
    file: Vec<u8>,
    sends_parts: bool,
    /// Connections break after so many bytes.
    breaks_after: usize,
    asked: Mutex<Vec<(u64, Option<u64>)>>,
    opened: Mutex<u32>,
    installed: Mutex<Vec<String>>,
    /// The node goes down when so much of the file was asked for.
    power_bytes: Mutex<Option<u64>>,
}

impl World {
    fn new(running: &Version, file: Vec<u8>) -> World {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| {
            std::fs::write(dir.path().join(name), content).unwrap();
            File::options().write(true).open(dir.path().join(name)).unwrap().set_len(SLOT_BYTES).unwrap();
        };
        put("root", &[]);
        put("tree", &[]);
        put("running-root", &running.data());
        put("running-tree", &running.trees());
        World {
            dir,
            file,
            sends_parts: true,
            breaks_after: usize::MAX,
            asked: Mutex::default(),
            opened: Mutex::default(),
            installed: Mutex::default(),
            power_bytes: Mutex::default(),
        }
    }

    fn run(&self, version: &str, key: Option<&ReleaseKey>) -> (Result<(), Fault>, u64) {
        self.run_with(version, key, oci::digest::of(&self.file))
    }

    fn run_with(&self, version: &str, key: Option<&ReleaseKey>, digest: Digest) -> (Result<(), Fault>, u64) {
        let source = FileSource { url: "http://server/update".into(), credentials: None, ca_pem: Vec::new() };
        let desired = UpdateDesired {
            version: version.into(),
            attempt: 0,
            content: ContentDesired {
                id: ContentTreeId(Uuid::nil()),
                name: String::new(),
                generation: 0,
                sources: ContentSources::Servers(vec![source]),
                digest: Some(digest),
                max_size_bytes: 0,
            },
        };
        let (cancelled, fetched) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
        let install = Install {
            source: self,
            boot: self,
            desired: &desired,
            key,
            cancelled: &cancelled,
            fetched: &fetched,
            progress: &|_| {},
        };
        (install.run(), fetched.load(Ordering::Relaxed))
    }

    fn slot(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(name)).unwrap()
    }
}

impl Source for World {
    fn open(&self, request: &FetchRequest, _: &Arc<AtomicBool>) -> Result<Opened, Fault> {
        let FetchRequest::File(request) = request else { unreachable!("no image is asked for") };
        self.asked.lock().unwrap().push((request.offset, request.length));
        let mut power = self.power_bytes.lock().unwrap();
        if let Some(left) = power.as_mut() {
            *left = left.checked_sub(request.length.unwrap_or(0)).ok_or_else(gone)?;
        }
        let (offset, length) = match (self.sends_parts, request.length) {
            (true, Some(length)) => (request.offset as usize, length as usize),
            (true, None) | (false, _) => (0, self.file.len()),
        };
        let end = (offset + length).min(self.file.len());
        let sent = self.file[offset..end.min(offset.saturating_add(self.breaks_after))].to_vec();
        let body = Box::new(Cursor::new(sent));
        let (offset, size) = (offset as u64, Some((end - offset) as u64));
        Ok(Opened { media_type: String::new(), size, offset, body })
    }
}

fn gone() -> Fault {
    Fault::new(Reason::ServiceUnavailable, "the power goes")
}

impl Boot for World {
    fn open_slot(&self) -> Result<SlotFiles, Fault> {
        *self.opened.lock().unwrap() += 1;
        let open = |name: &str, is_writable| {
            let path = self.dir.path().join(Path::new(name));
            File::options().read(true).write(is_writable).open(path).unwrap()
        };
        Ok(SlotFiles {
            root: open("root", true),
            tree: open("tree", true),
            running_root: open("running-root", false),
            running_tree: open("running-tree", false),
        })
    }

    fn install(&self, manifest: &Manifest) -> Result<(), Fault> {
        self.installed.lock().unwrap().push(manifest.version.clone());
        Ok(())
    }
}

fn old() -> Version {
    Version::new("1.0", blocks(0..400), 1000..1100)
}

/// Thirty blocks of the root are others, one of them lies elsewhere, and one block of the kernel image is another.
fn new() -> Version {
    let numbers = (0..400).map(|n| if (200..230).contains(&n) { n + 5000 } else { n });
    let moved = std::iter::once(399).chain(numbers);
    Version::new("2.0", blocks(moved), (1000..1100).map(|n| if n == 1050 { 7000 } else { n }))
}

fn assert_whole(world: &World, version: &Version) {
    let (data, trees) = (version.data(), version.trees());
    assert_eq!(world.slot("root")[..data.len()], data);
    assert_eq!(world.slot("tree")[..trees.len()], trees);
    assert_eq!(world.installed.lock().unwrap().join(" "), version.manifest.version);
}

#[test]
fn only_blocks_that_the_running_version_does_not_have_come_over_the_network() {
    let new = new();
    let world = World::new(&old(), new.file(None));
    let (result, fetched) = world.run("2.0", None);
    result.unwrap();
    assert_whole(&world, &new);
    // 30 changed blocks of the root; of the kernel image one, and the two with the hash of the root
    let of_blocks = 33 * BLOCK_BYTES as u64;
    let head = HEAD_BYTES + MANIFEST_BYTES as u64 + (new.root_tree.len() + new.kernel_tree.len()) as u64;
    assert!(fetched <= head + of_blocks + GAP_BLOCKS * BLOCK_BYTES as u64, "{fetched}");
    assert!(fetched < world.file.len() as u64 / 5, "{fetched} of {}", world.file.len());
}

#[test]
fn a_server_that_sends_no_parts_is_read_once_from_the_front() {
    let new = new();
    let world = World { sends_parts: false, ..World::new(&old(), new.file(None)) };
    let (result, fetched) = world.run("2.0", None);
    result.unwrap();
    assert_whole(&world, &new);
    assert_eq!(world.asked.lock().unwrap().len(), 1);
    assert!(fetched <= world.file.len() as u64);
}

#[test]
fn connections_that_break_are_taken_up_again() {
    let new = Version::new("2.0", blocks(10_000..10_400), 1000..1100);
    let world = World { breaks_after: 100_001, ..World::new(&old(), new.file(None)) };
    let (result, fetched) = world.run("2.0", None);
    result.unwrap();
    assert_whole(&world, &new);
    assert!(fetched < world.file.len() as u64);
}

#[test]
fn what_was_written_before_a_power_cut_is_not_fetched_again() {
    // no block is known, and ranges are short: every other block is zero and so in the slot already
    let numbers = (0..400).map(|n| if n % 20 < 10 { 20_000 + n } else { 0 });
    let new = Version::new("2.0", blocks(numbers), 30_000..30_100);
    let (_, whole) = World::new(&old(), new.file(None)).run("2.0", None);
    for cut in [100_000, 400_000, 700_000, 1_000_000] {
        let world = World::new(&old(), new.file(None));
        *world.power_bytes.lock().unwrap() = Some(cut);
        let (result, before) = world.run("2.0", None);
        assert_eq!(result.unwrap_err(), gone());
        assert!(world.installed.lock().unwrap().is_empty());
        // the last write of a cut is torn
        let file = File::options().write(true).open(world.dir.path().join("root")).unwrap();
        file.write_all_at(&[9; 100], new.manifest.slot().kernel_at + 5 * 4096).unwrap();
        *world.power_bytes.lock().unwrap() = None;
        let (result, after) = world.run("2.0", None);
        result.unwrap();
        assert_whole(&world, &new);
        let head = HEAD_BYTES + MANIFEST_BYTES as u64 + new.trees().len() as u64;
        assert!(
            before + after <= whole + head + 4 * BLOCK_BYTES as u64 * GAP_BLOCKS,
            "{before} {after} {whole}"
        );
    }
}

fn key_pair() -> (EcdsaKeyPair, ReleaseKey) {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let key = ReleaseKey::parse(&format!("{}\n", hex(pair.public_key().as_ref())));
    (pair, key)
}

fn signed(pair: &EcdsaKeyPair, manifest: &Manifest) -> Signature {
    let made = pair.sign(&SystemRandom::new(), manifest.text().as_bytes()).unwrap();
    Signature { key: key_name(pair.public_key().as_ref()), bytes: made.as_ref().try_into().unwrap() }
}

#[test]
fn with_a_release_key_only_what_it_signed_is_written() {
    let new = new();
    let ((pair, key), (foreign, _)) = (key_pair(), key_pair());
    let good = signed(&pair, &new.manifest);
    let world = World::new(&old(), new.file(Some(&good)));
    world.run("2.0", Some(&key)).0.unwrap();
    assert_whole(&world, &new);
    // without a key in the image a signature means nothing
    World::new(&old(), new.file(Some(&good))).run("2.0", None).0.unwrap();
    let mut wrong = good.clone();
    wrong.bytes[7] ^= 1;
    let foreign = signed(&foreign, &new.manifest);
    for (signature, what) in
        [(None, "not signed"), (Some(&wrong), "wrong"), (Some(&foreign), "signed by key")]
    {
        let world = World::new(&old(), new.file(signature));
        let fault = world.run("2.0", Some(&key)).0.unwrap_err();
        assert_eq!(fault.reason, Reason::UpdateUntrusted, "{fault}");
        assert!(fault.message.contains(what), "{fault}");
        assert_eq!(*world.opened.lock().unwrap(), 0, "the slot was touched");
    }
    // a key that cannot be read lets nothing through
    let world = World::new(&old(), new.file(Some(&good)));
    assert_eq!(
        world.run("2.0", Some(&ReleaseKey::parse("x"))).0.unwrap_err().reason,
        Reason::UpdateUntrusted
    );
}

#[test]
fn what_is_not_the_version_ordered_is_refused_before_the_slot_is_touched() {
    let new = new();
    let with = |change: fn(&mut Manifest)| {
        let mut version = super::tests::new();
        change(&mut version.manifest);
        version.file(None)
    };
    let mut no_manifest = new.file(None);
    no_manifest[1 << 20] ^= 1;
    for (file, version, reason) in [
        (new.file(None), "3.0", Reason::UpdateInvalid),
        (with(|manifest| manifest.architecture = "riscv64".into()), "2.0", Reason::ArchitectureMismatch),
        (with(|manifest| manifest.root.data_blocks += 1), "2.0", Reason::UpdateInvalid),
        (no_manifest, "2.0", Reason::UpdateInvalid),
        (vec![7; 3 << 20], "2.0", Reason::UpdateInvalid),
    ] {
        let world = World::new(&old(), file);
        assert_eq!(world.run(version, None).0.unwrap_err().reason, reason, "{version}");
        assert_eq!(*world.opened.lock().unwrap(), 0, "the slot was touched");
    }
}

#[test]
fn what_is_damaged_truncated_or_too_large_never_gets_a_boot_entry() {
    let new = new();
    let whole = new.file(None);
    let table = table_of(&whole).unwrap();
    let at = |number: u32| table.partitions[&number].first as usize * 512;
    let refused = |file: Vec<u8>, digest: Digest, reason: Reason| {
        let world = World::new(&old(), file);
        assert_eq!(world.run_with("2.0", None, digest).0.unwrap_err().reason, reason);
        assert!(world.installed.lock().unwrap().is_empty());
    };
    let own = oci::digest::of(&whole);
    // the sum of the config is another one
    refused(whole.clone(), Digest([1; 32]), Reason::DigestMismatch);
    // a changed block, in the file and in its sum
    let mut changed = whole.clone();
    changed[at(ROOT) + 210 * BLOCK_BYTES] ^= 1;
    let sum = oci::digest::of(&changed);
    refused(changed, sum, Reason::DigestMismatch);
    let mut changed = whole.clone();
    changed[at(ROOT_TREE) + BLOCK_BYTES] ^= 1;
    refused(changed, own, Reason::UpdateInvalid);
    // what lies between partitions is zero
    let mut changed = whole.clone();
    changed[at(KERNEL_TREE) - 1] = 1;
    let sum = oci::digest::of(&changed);
    refused(changed, sum, Reason::DigestMismatch);
    refused(whole[..at(ROOT) + 205 * BLOCK_BYTES].to_vec(), own, Reason::DatastoreUnreachable);
    // a kernel image for another root
    let mut other = super::tests::new();
    let needle = READ_BLOCKS * BLOCK_BYTES - 5;
    other.kernel[needle] ^= 1;
    let (tree, root) = verity::tree(&other.kernel, Uuid::nil());
    (other.kernel_tree, other.manifest.kernel) = (tree, root);
    let file = other.file(None);
    let sum = oci::digest::of(&file);
    refused(file, sum, Reason::UpdateInvalid);
    let large = Version::new("2.0", blocks(0..2048), 1000..1100);
    let file = large.file(None);
    let sum = oci::digest::of(&file);
    refused(file, sum, Reason::UpdateInvalid);
}
