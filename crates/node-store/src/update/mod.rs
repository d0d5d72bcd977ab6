// SPDX-License-Identifier: Apache-2.0
//! Putting a version of the operating system into the idle slot, straight from the network.
//!
//! ```text
//! table, manifest ─ signature, architecture, room ─▶ slot from init ─▶ hash trees ─▶ blocks: there already │ copied from
//! the slot that runs │ fetched ─▶ read back, summed up as the whole file ─▶ init makes the boot entry
//! ```
//! A block is wanted by its hash, and is right when it has it, wherever it came from. So what was written before a kill or a power
//! cut is found again by looking, without a journal, and blocks that the version that runs has anywhere are not fetched. The sum
//! of the whole file is taken of what was read back from the slot; what a table and zeros between partitions add is known
//! without fetching it.
//!
//! Never: the network, boot entries, the slot that runs (it is open to read only).

pub(crate) mod drive;
pub mod remote;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk::gpt::{Table, Write};
use disk::partitions::Architecture;
use disk::update::{
    HEAD_BYTES, KERNEL, KERNEL_TREE, KEY_BYTES, MANIFEST, MANIFEST_BYTES, Manifest, ROOT, ROOT_TREE,
};
use disk::update::{SECTOR_BYTES, SlotLayout, Sum, UpdateError, key_name};
use disk::verity::{self, BLOCK_BYTES, HASH_BYTES, Hash, hex};
use model::desired::{ContentSources, UpdateDesired};
use model::id::Digest;
use model::observed::UpdateProgress;
use model::reason::{Fault, Reason};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use crate::pull::PROGRESS_INTERVAL;
use crate::source::Source;
pub use drive::Told;
use remote::{Place, Remote};

/// Blocks that are there already are fetched once more rather than begin another request for those behind them.
const GAP_BLOCKS: u64 = 8;
/// Blocks of one request.
const RANGE_BLOCKS: u64 = 4096;
/// Manifests of images are small.
const MANIFEST_LIMIT: u64 = 4 << 20;
/// What came longer ago than this is not lost with the power.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Blocks read at once.
const READ_BLOCKS: usize = 64;

/// The public half of the release key, uncompressed point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseKey(Vec<u8>);

impl ReleaseKey {
    /// The file of an image: hexadecimal digits. A key that cannot be read lets nothing through.
    pub fn parse(text: &str) -> ReleaseKey {
        let text = text.trim();
        let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        ReleaseKey((0..KEY_BYTES).map_while(byte).collect())
    }
}

/// Both partitions of the idle slot, and both of the one that runs.
#[derive(Debug)]
pub struct SlotFiles {
    pub root: File,
    pub tree: File,
    pub running_root: File,
    pub running_tree: File,
}

/// Whoever has the slots and the boot entries.
pub trait Boot: Send + Sync {
    fn open_slot(&self) -> Result<SlotFiles, Fault>;
    fn install(&self, manifest: &Manifest) -> Result<(), Fault>;
}

/// One order being carried out.
pub struct Install<'a> {
    pub source: &'a dyn Source,
    pub boot: &'a dyn Boot,
    pub desired: &'a UpdateDesired,
    pub key: Option<&'a ReleaseKey>,
    pub cancelled: &'a Arc<AtomicBool>,
    pub fetched: &'a AtomicU64,
    pub progress: &'a dyn Fn(UpdateProgress),
}

impl std::fmt::Debug for Install<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Install({})", self.desired.version)
    }
}

/// A file whose head has been read and believed.
struct Head {
    manifest: Manifest,
    table: Table,
    places: [u64; 5],
    manifest_bytes: Vec<u8>,
}

impl Install<'_> {
    /// Tries every source of the order.
    pub fn run(&self) -> Result<(), Fault> {
        let content = &self.desired.content;
        let mut last = Fault::new(Reason::InvalidConfig, "the update has no source");
        let digest = content.digest;
        let mut attempt = |place: Result<(Place, Digest), Fault>| {
            let result = place.and_then(|(place, digest)| {
                self.install(&mut Remote::new(self.source, place, self.cancelled, self.fetched), digest)
            });
            match result {
                Ok(()) => true,
                Err(fault) => {
                    last = fault;
                    false
                }
            }
        };
        let is_done = match &content.sources {
            ContentSources::Servers(files) => files.iter().any(|file| {
                let missing =
                    || Fault::new(Reason::InvalidConfig, format!("{}: a file needs its sha256", file.url));
                attempt(digest.ok_or_else(missing).map(|digest| (Place::File(file.clone()), digest)))
            }),
            ContentSources::Registries(images) => {
                images.iter().any(|image| attempt(self.blob_of(image, digest)))
            }
        };
        if is_done { Ok(()) } else { Err(last) }
    }

    /// The one layer of an image that is a disk.
    fn blob_of(
        &self,
        image: &model::desired::ContentSource,
        digest: Option<Digest>,
    ) -> Result<(Place, Digest), Fault> {
        use ipc::calls::{FetchObject, FetchRequest, ImageRequest};
        use std::io::Read as _;
        let name = format!("{}/{}:{}", image.registry.base_url, image.repository, image.reference);
        let object = FetchObject::Manifest { reference: image.reference.clone() };
        let request = ImageRequest { source: image.clone(), object, offset: 0, length: None };
        let opened = self.source.open(&FetchRequest::Image(request), self.cancelled)?;
        let mut bytes = Vec::new();
        opened
            .body
            .take(MANIFEST_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Fault::new(Reason::RegistryUnreachable, format!("{name}: {error}")))?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let found = oci::digest::of(&bytes);
        if let Some(digest) = digest.filter(|digest| *digest != found) {
            return Err(Fault::new(
                Reason::DigestMismatch,
                format!("{name}: expected {digest}, got {found}"),
            ));
        }
        let disk = oci::manifest::disk_root(&bytes)
            .map_err(|error| Fault::new(Reason::UpdateInvalid, format!("{name}: {error}")))?;
        Ok((Place::Blob(image.clone(), disk.digest), disk.digest))
    }

    fn install(&self, remote: &mut Remote<'_>, digest: Digest) -> Result<(), Fault> {
        let total_bytes = 0;
        (self.progress)(UpdateProgress::Downloading { done_bytes: 0, total_bytes });
        let head = self.head(remote)?;
        let manifest = &head.manifest;
        let layout = manifest.slot();
        let slot = self.boot.open_slot()?;
        check_room(&slot, &layout)?;
        let trees = self.trees(remote, &head, &slot)?;
        let known = Known::of(&slot.running_tree);
        let mut work =
            Work { install: self, slot: &slot, known, done: 0, total: layout.data_bytes, told: None };
        let [_, _, _, kernel_at, root_at] = head.places;
        let kernel = Region { leaves: trees.kernel(manifest), far: kernel_at, near: layout.kernel_at };
        let root = Region { leaves: trees.root(manifest), far: root_at, near: 0 };
        for region in [kernel, root] {
            work.fill(remote, &region)?;
        }
        slot.root.sync_all().map_err(disk("sync the slot"))?;
        slot.tree.sync_all().map_err(disk("sync the slot"))?;
        (self.progress)(UpdateProgress::Verifying);
        verify(&head, &slot, &trees, digest, &remote.name())?;
        self.boot.install(manifest)
    }

    fn head(&self, remote: &mut Remote<'_>) -> Result<Head, Fault> {
        let name = remote.name();
        let invalid = |what: String| Fault::new(Reason::UpdateInvalid, format!("{name}: {what}"));
        let front = remote.part(0, HEAD_BYTES as usize)?;
        let table = table_of(&front).ok_or_else(|| invalid("it is no update file".into()))?;
        let Some(first) = table.partitions.get(&MANIFEST) else {
            return Err(invalid(UpdateError::Foreign.to_string()));
        };
        let at = first.first * u64::from(SECTOR_BYTES);
        let manifest_bytes = remote.part(at, MANIFEST_BYTES)?;
        let read = Manifest::parse(&manifest_bytes).map_err(|error| invalid(error.to_string()))?;
        self.believe(&read, &name)?;
        let manifest = read.manifest;
        let places = manifest.places(&table).map_err(|error| invalid(error.to_string()))?;
        if manifest.architecture != Architecture::OWN.name() {
            let text = format!(
                "{name}: version {} is for {}, this box is {}",
                manifest.version,
                manifest.architecture,
                Architecture::OWN.name()
            );
            return Err(Fault::new(Reason::ArchitectureMismatch, text));
        }
        if manifest.version != self.desired.version {
            let text = format!("it is version {}, ordered was {}", manifest.version, self.desired.version);
            return Err(invalid(text));
        }
        let limit = self.desired.content.max_size_bytes;
        let bytes = table.sectors * u64::from(SECTOR_BYTES);
        if limit != 0 && bytes > limit {
            return Err(invalid(format!("it has {bytes} bytes, more than the {limit} allowed")));
        }
        Ok(Head { manifest, table, places, manifest_bytes })
    }

    /// With a release key in the image that runs, only what it signed is looked at any further.
    fn believe(&self, read: &disk::update::Read, name: &str) -> Result<(), Fault> {
        let Some(ReleaseKey(key)) = self.key else { return Ok(()) };
        let untrusted = |what: String| Fault::new(Reason::UpdateUntrusted, format!("{name}: {what}"));
        let Some(signature) = &read.signature else {
            return Err(untrusted("it is not signed, and this device takes signed updates only".into()));
        };
        let own = key_name(key);
        if signature.key != own {
            return Err(untrusted(format!(
                "it is signed by key {}, this device has key {own}",
                signature.key
            )));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
            .verify(read.signed.as_bytes(), &signature.bytes)
            .map_err(|_| untrusted("its signature is wrong".into()))
    }

    /// Hash trees, checked and written.
    fn trees(&self, remote: &mut Remote<'_>, head: &Head, slot: &SlotFiles) -> Result<Trees, Fault> {
        let manifest = &head.manifest;
        let sizes = manifest.sizes();
        let mut take = |index: usize, number: u32| {
            debug_assert_eq!(sizes[index].0, number);
            remote.part(head.places[index], usize::try_from(sizes[index].1).unwrap_or(usize::MAX))
        };
        let trees = Trees { root: take(1, ROOT_TREE)?, kernel: take(2, KERNEL_TREE)? };
        for (tree, root) in [(&trees.root, &manifest.root), (&trees.kernel, &manifest.kernel)] {
            if verity::leaves(tree, root).is_none() {
                let text = format!("{}: a hash tree is not the one of its manifest", remote.name());
                return Err(Fault::new(Reason::UpdateInvalid, text));
            }
        }
        slot.tree.write_all_at(&trees.root, 0).map_err(disk("write the hash tree"))?;
        let at = manifest.slot().kernel_tree_at;
        slot.tree.write_all_at(&trees.kernel, at).map_err(disk("write the hash tree"))?;
        Ok(trees)
    }
}

struct Trees {
    root: Vec<u8>,
    kernel: Vec<u8>,
}

impl Trees {
    fn root(&self, manifest: &Manifest) -> &[u8] {
        verity::leaves(&self.root, &manifest.root).unwrap_or_default()
    }

    fn kernel(&self, manifest: &Manifest) -> &[u8] {
        verity::leaves(&self.kernel, &manifest.kernel).unwrap_or_default()
    }
}

/// Blocks with their hashes, where they lie in the file, and where in the partition of the root.
struct Region<'t> {
    leaves: &'t [u8],
    far: u64,
    near: u64,
}

impl Region<'_> {
    fn blocks(&self) -> u64 {
        (self.leaves.len() / HASH_BYTES) as u64
    }

    fn leaf(&self, block: u64) -> &[u8] {
        let at = block as usize * HASH_BYTES;
        self.leaves.get(at..at + HASH_BYTES).unwrap_or_default()
    }
}

struct Work<'a, 'i> {
    install: &'a Install<'i>,
    slot: &'a SlotFiles,
    known: Known,
    done: u64,
    total: u64,
    told: Option<Instant>,
}

impl Work<'_, '_> {
    fn fill(&mut self, remote: &mut Remote<'_>, region: &Region<'_>) -> Result<(), Fault> {
        let missing = self.missing(region)?;
        for (first, count) in ranges(&missing) {
            let mut writer = Writer { slot: self.slot, region, next: first, held: Vec::new() };
            let at = region.far + first * BLOCK_BYTES as u64;
            let (mut done, mut told) = (self.done, self.told);
            let mut synced = Instant::now();
            let (install, total) = (self.install, self.total);
            remote.read(at, count * BLOCK_BYTES as u64, &mut |bytes| {
                writer.take(bytes)?;
                if synced.elapsed() >= SYNC_INTERVAL {
                    self.slot.root.sync_data().map_err(disk("sync the slot"))?;
                    synced = Instant::now();
                }
                done += bytes.len() as u64;
                tell(install, &mut told, done.min(total), total);
                Ok(())
            })?;
            (self.done, self.told) = (done, told);
        }
        Ok(())
    }

    /// Blocks that are neither in the slot nor in the one that runs; those of the latter are copied on the way.
    fn missing(&mut self, region: &Region<'_>) -> Result<Vec<u64>, Fault> {
        let mut missing = Vec::new();
        let mut buffer = vec![0; READ_BLOCKS * BLOCK_BYTES];
        let mut own = vec![0; BLOCK_BYTES];
        let mut block = 0;
        while block < region.blocks() {
            if self.install.cancelled.load(Ordering::Relaxed) {
                return Err(Fault::new(Reason::ServiceUnavailable, "no longer wanted"));
            }
            let count = (region.blocks() - block).min(READ_BLOCKS as u64);
            let bytes = count as usize * BLOCK_BYTES;
            let at = region.near + block * BLOCK_BYTES as u64;
            self.slot.root.read_exact_at(&mut buffer[..bytes], at).map_err(disk("read the slot"))?;
            for (offset, there) in buffer[..bytes].chunks(BLOCK_BYTES).enumerate() {
                let number = block + offset as u64;
                let leaf = region.leaf(number);
                if verity::hash(there) != *leaf {
                    if !self.known.copy(leaf, &self.slot.running_root, &mut own) {
                        missing.push(number);
                        continue;
                    }
                    let to = region.near + number * BLOCK_BYTES as u64;
                    self.slot.root.write_all_at(&own, to).map_err(disk("write the slot"))?;
                }
                self.done += BLOCK_BYTES as u64;
            }
            tell(self.install, &mut self.told, self.done, self.total);
            block += count;
        }
        Ok(missing)
    }
}

fn tell(install: &Install<'_>, told: &mut Option<Instant>, done_bytes: u64, total_bytes: u64) {
    if told.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
        *told = Some(Instant::now());
        (install.progress)(UpdateProgress::Downloading { done_bytes, total_bytes });
    }
}

/// Puts blocks that come in pieces into the slot, each once it has its hash.
struct Writer<'w> {
    slot: &'w SlotFiles,
    region: &'w Region<'w>,
    next: u64,
    held: Vec<u8>,
}

impl Writer<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() / BLOCK_BYTES * BLOCK_BYTES;
        let rest = self.held.split_off(whole);
        let blocks = std::mem::replace(&mut self.held, rest);
        for block in blocks.chunks(BLOCK_BYTES) {
            if verity::hash(block) != *self.region.leaf(self.next) {
                let text = format!("block {} of the update is not the one of its hash tree", self.next);
                return Err(Fault::new(Reason::DigestMismatch, text));
            }
            let at = self.region.near + self.next * BLOCK_BYTES as u64;
            self.slot.root.write_all_at(block, at).map_err(disk("write the slot"))?;
            self.next += 1;
        }
        Ok(())
    }
}

/// First blocks and numbers of blocks, to be asked for one by one.
fn ranges(missing: &[u64]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for block in missing {
        match out.last_mut() {
            Some((first, count))
                if *block - (*first + *count) <= GAP_BLOCKS && *block - *first < RANGE_BLOCKS =>
            {
                *count = *block - *first + 1;
            }
            _ => out.push((*block, 1)),
        }
    }
    out
}

/// Where the slot that runs has which block.
#[derive(Debug, Default)]
struct Known(HashMap<Hash, u64>);

impl Known {
    /// Of the hash trees of a slot. What they say is not believed: a block is taken for what it is.
    fn of(tree: &File) -> Known {
        let mut known = HashMap::new();
        let mut superblock = vec![0; BLOCK_BYTES];
        let (mut tree_at, mut data_at) = (0, 0);
        for _ in 0..2 {
            if tree.read_exact_at(&mut superblock, tree_at).is_err() {
                break;
            }
            let blocks =
                verity::data_blocks(&superblock).filter(|blocks| *blocks <= disk::update::BLOCKS_MAX);
            let Some(blocks) = blocks else { break };
            let end = tree_at + verity::tree_bytes(blocks);
            let level = blocks.div_ceil((BLOCK_BYTES / HASH_BYTES) as u64) * BLOCK_BYTES as u64;
            let mut leaves = vec![0; blocks as usize * HASH_BYTES];
            if end < level || tree.read_exact_at(&mut leaves, end - level).is_err() {
                break;
            }
            for (block, leaf) in (0..).zip(leaves.chunks_exact(HASH_BYTES)) {
                if let Ok(leaf) = Hash::try_from(leaf) {
                    known.entry(leaf).or_insert(data_at + block * BLOCK_BYTES as u64);
                }
            }
            (tree_at, data_at) = (end, data_at + blocks * BLOCK_BYTES as u64);
        }
        Known(known)
    }

    fn copy(&self, leaf: &[u8], root: &File, into: &mut [u8]) -> bool {
        let at = Hash::try_from(leaf).ok().and_then(|leaf| self.0.get(&leaf));
        at.is_some_and(|at| root.read_exact_at(into, *at).is_ok() && verity::hash(into) == *leaf)
    }
}

fn check_room(slot: &SlotFiles, layout: &SlotLayout) -> Result<(), Fault> {
    for (file, what, needed) in [
        (&slot.root, "root and kernel image", layout.data_bytes),
        (&slot.tree, "hash trees", layout.tree_bytes),
    ] {
        let room = size(file).map_err(disk("find out the size of the slot"))?;
        if needed > room {
            let text = format!("{what} need {needed} bytes, the slot has {room}");
            return Err(Fault::new(Reason::UpdateInvalid, text));
        }
    }
    Ok(())
}

/// Of a file or a block device.
fn size(mut file: &File) -> io::Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    file.seek(SeekFrom::End(0))
}

/// The table in front of a file. Its copy at the end is not looked at: the sum of the whole covers it.
fn table_of(front: &[u8]) -> Option<Table> {
    let header = front.get(SECTOR_BYTES as usize..)?;
    let last = u64::from_le_bytes(header.get(32..40)?.try_into().ok()?);
    let read = Table::read(SECTOR_BYTES, last.checked_add(1)?, |at, length| {
        let piece = usize::try_from(at).ok().and_then(|at| front.get(at..at.checked_add(length)?));
        Ok::<_, io::Error>(piece.map_or_else(|| vec![0; length], <[u8]>::to_vec))
    });
    read.ok().map(|(table, _)| table)
}

/// Reads the slot back as the file it came from, and compares its sum.
fn verify(head: &Head, slot: &SlotFiles, trees: &Trees, digest: Digest, name: &str) -> Result<(), Fault> {
    let manifest = &head.manifest;
    let invalid = |what: &str| Fault::new(Reason::UpdateInvalid, format!("{name}: {what}"));
    let (mut sum, mut kernel_sum) = (Sum::default(), Sum::default());
    let mut front = vec![0; HEAD_BYTES as usize];
    let mut back = Vec::new();
    let table_sectors = (HEAD_BYTES - u64::from(SECTOR_BYTES)) / u64::from(SECTOR_BYTES);
    let back_at = (head.table.sectors - table_sectors) * u64::from(SECTOR_BYTES);
    back.resize(table_sectors as usize * SECTOR_BYTES as usize, 0);
    for write in head.table.writes() {
        let Write::At { offset, bytes } = write else { continue };
        let (into, at) = if offset < HEAD_BYTES {
            (&mut front, offset)
        } else {
            (&mut back, offset.wrapping_sub(back_at))
        };
        let place = usize::try_from(at).ok().and_then(|at| into.get_mut(at..at.checked_add(bytes.len())?));
        place.ok_or_else(|| invalid("its table has an odd form"))?.copy_from_slice(&bytes);
    }
    sum.add(&front);
    let mut behind = HEAD_BYTES;
    let layout = manifest.slot();
    for ((number, bytes), at) in manifest.sizes().into_iter().zip(head.places) {
        add_zeros(&mut sum, at - behind);
        behind = at + bytes;
        match number {
            MANIFEST => sum.add(&head.manifest_bytes),
            ROOT_TREE => sum.add(&trees.root),
            KERNEL_TREE => sum.add(&trees.kernel),
            KERNEL => {
                let needle = format!("selvedge.roothash={}", hex(&manifest.root.hash));
                let mut finder = Finder { needle: needle.into_bytes(), tail: Vec::new(), is_found: false };
                let mut rest = manifest.kernel_bytes as usize;
                read_back(&slot.root, layout.kernel_at, bytes, |piece| {
                    sum.add(piece);
                    let own = rest.min(piece.len());
                    kernel_sum.add(&piece[..own]);
                    rest -= own;
                    finder.look(piece);
                })?;
                if !finder.is_found {
                    return Err(invalid("its kernel image names another root"));
                }
            }
            ROOT => read_back(&slot.root, 0, bytes, |piece| sum.add(piece))?,
            _ => {}
        }
    }
    add_zeros(&mut sum, back_at.saturating_sub(behind));
    sum.add(&back);
    let got = Digest(sum.hash());
    if got != digest {
        return Err(Fault::new(Reason::DigestMismatch, format!("{name}: expected {digest}, got {got}")));
    }
    if kernel_sum.hash() != manifest.kernel_sha256 {
        return Err(invalid("its kernel image is not the one of its manifest"));
    }
    Ok(())
}

fn add_zeros(sum: &mut Sum, mut count: u64) {
    let zeros = [0; 4096];
    while count > 0 {
        let length = zeros.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        sum.add(&zeros[..length]);
        count -= length as u64;
    }
}

fn read_back(file: &File, at: u64, bytes: u64, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
    let mut buffer = vec![0; READ_BLOCKS * BLOCK_BYTES];
    let mut done = 0;
    while done < bytes {
        let length = buffer.len().min((bytes - done) as usize);
        file.read_exact_at(&mut buffer[..length], at + done).map_err(disk("read the slot"))?;
        take(&buffer[..length]);
        done += length as u64;
    }
    Ok(())
}

/// Looks for a text in what comes in pieces.
struct Finder {
    needle: Vec<u8>,
    tail: Vec<u8>,
    is_found: bool,
}

impl Finder {
    fn look(&mut self, piece: &[u8]) {
        if self.is_found {
            return;
        }
        self.tail.extend_from_slice(piece);
        self.is_found = self.tail.windows(self.needle.len()).any(|window| window == self.needle);
        let keep = self.tail.len().saturating_sub(self.needle.len() - 1);
        self.tail.drain(..keep);
    }
}

fn disk(what: &'static str) -> impl FnOnce(io::Error) -> Fault {
    move |error| Fault::new(Reason::StorageFailed, format!("cannot {what}: {error}"))
}
