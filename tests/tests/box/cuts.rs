// SPDX-License-Identifier: Apache-2.0
//! The power goes at ten thousand moments of an installation, the first boot and an update, and each disk is judged from
//! outside: which version the boot loader would take, whether its root is whole, and what becomes of P3.
//!
//! The writes were recorded by QEMU; the judge knows only what was built.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use disk::checked::Leaves;
use disk::content::{self, Content, LOOK_BYTES};
use disk::entry::{DIRECTORY, Entry};
use disk::gpt::{Partition, Table};
use disk::partitions::{self, ids_of_root};
use disk::verity::{BLOCK_BYTES, Root, parse_hash, tree_bytes};
use tests::command::{Background, output, run};
use tests::lab::Place;
use tests::machine::{BOOT, Image, Machine, controller};
use tests::progress::{step, wait_for};
use tests::replay::{Recording, State, View};

const SECTOR: u32 = 512;
/// Cuts of one run, over both recordings.
const CUTS: u64 = 10_000;
/// Of them, with a run of e2fsck.
const CHECKS_OF_PERSIST: u64 = 120;
const DISK_GIB: u64 = 3;

/// A version as it was built.
struct Version {
    name: String,
    uki: Vec<u8>,
    root: Root,
}

impl Version {
    fn of(image: &Image) -> Version {
        let description = image.description().unwrap();
        let hash = parse_hash(description["rootHash"].as_str().unwrap()).unwrap();
        let data_blocks = description["rootBytes"].as_u64().unwrap() / BLOCK_BYTES as u64;
        Version {
            name: description["version"].as_str().unwrap().to_owned(),
            uki: fs::read(image.file("efi")).unwrap(),
            root: Root { hash, data_blocks },
        }
    }
}

/// What holds for every disk, and what was found so far.
struct Judge {
    versions: Vec<Version>,
    disk_bytes: u64,
    may_be_unfinished: bool,
    /// Where e2fsck looks.
    work: PathBuf,
    persist_every: u64,
    seen: u64,
    /// Verdicts about parts that have not changed since.
    entries: BTreeMap<State, Entry>,
    roots: BTreeMap<(State, State, String), String>,
    counts: BTreeMap<&'static str, u64>,
}

impl Judge {
    fn new(place: &Place, versions: Vec<Version>, disk_bytes: u64) -> Judge {
        Judge {
            versions,
            disk_bytes,
            may_be_unfinished: false,
            work: place.dir.join("persist.raw"),
            persist_every: u64::MAX,
            seen: 0,
            entries: BTreeMap::new(),
            roots: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn judge(&mut self, view: &View<'_>) -> anyhow::Result<()> {
        self.seen += 1;
        if self.may_be_unfinished {
            let last = view.read(self.disk_bytes - LOOK_BYTES as u64, LOOK_BYTES);
            match content::look(&view.read(0, LOOK_BYTES), &last) {
                Content::Nothing | Content::Unfinished => {
                    // no firmware takes a table without this sign
                    ensure!(view.read(510, 2) != [0x55, 0xaa], "an unfinished disk looks as if it started");
                    self.count("unfinished, to be installed again");
                    return Ok(());
                }
                Content::Data(_) => {}
            }
        }
        let sectors = self.disk_bytes / u64::from(SECTOR);
        let table = Table::read(SECTOR, sectors, |at, length| Ok::<_, io::Error>(view.read(at, length)));
        let (table, _) = table.map_err(|error| anyhow::anyhow!("{error}"))?;
        let esp = range(table.partitions.get(&partitions::NUMBER_ESP).context("no ESP")?);
        let chosen = match self.entries.get(&view.state(&esp)) {
            Some(entry) => entry.clone(),
            None => {
                let entry = self.choice_of_the_boot_loader(view, &esp)?;
                self.entries.insert(view.state(&esp), entry.clone());
                entry
            }
        };
        let version = self.versions.iter().find(|one| one.name == chosen.version);
        let version = version.with_context(|| format!("{} was never built", chosen.version))?;
        let (root_id, tree_id) = ids_of_root(&version.root.hash);
        let part = |id| {
            let found = table.partitions.values().find(|partition| partition.id == id).map(range);
            found.with_context(|| format!("version {} has an entry and no root", version.name))
        };
        let (root, tree) = (part(root_id)?, part(tree_id)?);
        let key = (view.state(&root), view.state(&tree), version.name.clone());
        if let Vacant(place) = self.roots.entry(key) {
            verify(view, &version.root, &root, &tree).with_context(|| format!("version {}", version.name))?;
            place.insert(version.name.clone());
        }
        self.count("boots a whole root");
        if let Some(persist) = table.partitions.values().find(|one| one.kind == partitions::PERSIST) {
            self.persist(view, persist)?;
        }
        Ok(())
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// systemd-boot takes the highest version of which tries are left, else the highest.
    fn choice_of_the_boot_loader(&self, view: &View<'_>, esp: &Range<u64>) -> anyhow::Result<Entry> {
        let part = Part { view, range: esp.clone(), at: 0 };
        let options = fatfs::FsOptions::new().update_accessed_date(false);
        let system = fatfs::FileSystem::new(part, options).context("the ESP is no file system")?;
        let dir = system.root_dir().open_dir(DIRECTORY).context("the ESP has no boot entries")?;
        let mut found: Vec<(bool, Entry, String)> = Vec::new();
        for file in dir.iter() {
            let file = file?;
            if let Some(entry) = Entry::parse(&file.file_name()) {
                let has_tries = entry.tries.is_none_or(|tries| tries.left > 0);
                found.push((has_tries, entry, file.file_name()));
            }
        }
        found.sort_by(|(a, one, _), (b, other, _)| (a, &one.version).cmp(&(b, &other.version)));
        let (_, entry, name) = found.pop().context("the ESP has no boot entry of ours")?;
        let mut uki = Vec::new();
        dir.open_file(&name)?.read_to_end(&mut uki)?;
        let is_known = |one: &&Version| one.name == entry.version && one.uki == uki;
        ensure!(
            self.versions.iter().any(|one| is_known(&one)),
            "{name} is not the kernel image that was built"
        );
        Ok(entry)
    }

    /// What init makes of it: begun again while its name says that it is unfinished, else mended without a question.
    fn persist(&mut self, view: &View<'_>, persist: &Partition) -> anyhow::Result<()> {
        if persist.name == partitions::NAME_PERSIST_UNFINISHED {
            self.count("P3 is begun again");
            return Ok(());
        }
        ensure!(persist.name == partitions::NAME_PERSIST, "P3 is called {:?}", persist.name);
        self.count("P3 is kept");
        if !self.seen.is_multiple_of(self.persist_every) {
            return Ok(());
        }
        view.extract(&range(persist), &self.work)?;
        let mended = output(Command::new("e2fsck").arg("-p").arg(&self.work))?;
        let code = mended.status.code().unwrap_or(i32::MAX);
        if code > 3 {
            bail!("e2fsck -p of P3 ends with {code}: {}", String::from_utf8_lossy(&mended.stdout));
        }
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&self.work)).context("P3 after it was mended")?;
        self.count("P3 was checked by e2fsck");
        Ok(())
    }
}

fn range(partition: &Partition) -> Range<u64> {
    partition.first * u64::from(SECTOR)..(partition.last + 1) * u64::from(SECTOR)
}

fn verify(view: &View<'_>, root: &Root, data: &Range<u64>, tree: &Range<u64>) -> anyhow::Result<()> {
    let bytes = tree_bytes(root.data_blocks);
    ensure!(bytes <= tree.end - tree.start, "no room for a tree");
    let leaves =
        Leaves::of(root, &view.read(tree.start, bytes as usize)).context("its hash tree is damaged")?;
    for block in 0..leaves.blocks() {
        let content = view.read(data.start + block * BLOCK_BYTES as u64, BLOCK_BYTES);
        ensure!(leaves.is_block(block, &content), "block {block} of its root is damaged");
    }
    Ok(())
}

/// A partition, to be read.
struct Part<'v> {
    view: &'v View<'v>,
    range: Range<u64>,
    at: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.range.end - self.range.start - self.at;
        let length = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        buffer[..length].copy_from_slice(&self.view.read(self.range.start + self.at, length));
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let bytes = self.range.end - self.range.start;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => bytes.checked_add_signed(by),
        };
        self.at = at.filter(|at| *at <= bytes).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Write for Part<'_> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Plays a recording so often that there are this many cuts.
fn play(recording: &Recording, base: Option<&File>, cuts: u64, judge: &mut Judge) -> anyhow::Result<u64> {
    let steps = recording.steps.len() as u64;
    // a few rounds at least, else there would be no chance in it
    let stride = (steps * 4 / cuts).max(1);
    let rounds = cuts.div_ceil(steps / stride);
    recording.cuts(base, (rounds, stride as usize), |view| judge.judge(view))
}

/// A disk in a file, written to by whoever writes to the file that is given, and recorded.
struct Recorder {
    _daemon: Background,
    file: PathBuf,
}

impl Recorder {
    fn start(place: &Place, disk: &Path, log: &Path) -> anyhow::Result<Recorder> {
        let file = place.dir.join("recorded.raw");
        File::create(&file)?;
        File::create(log)?;
        let mut command = Command::new("qemu-storage-daemon");
        command
            .args(["--blockdev", &format!("file,node-name=disk,filename={}", disk.display())])
            .args(["--blockdev", &format!("file,node-name=log,filename={}", log.display())])
            .args(["--blockdev", "blklogwrites,node-name=recorded,file=disk,log=log"])
            .args([
                "--export",
                &format!("fuse,id=e,node-name=recorded,mountpoint={},writable=on", file.display()),
            ]);
        let daemon = Background::start("the recorder", &place.dir.join("recorder.log"), &mut command)?;
        let bytes = fs::metadata(disk)?.len();
        wait_for("the recorder shows the disk", BOOT, || {
            (fs::metadata(&file).ok()?.len() == bytes).then_some(())
        })?;
        Ok(Recorder { _daemon: daemon, file })
    }
}

/// From an empty disk to a version that is good, in one recording.
fn recorded_installation(place: &Place, image: &Image) -> Recording {
    let controller = controller(place).unwrap();
    let bundle = place.dir.join("bundle");
    controller.bundle(&bundle).unwrap();
    fs::write(bundle.join("installer.options"), "eve_reboot_after_install\n").unwrap();
    let (iso, log) = (image.file("iso"), place.dir.join("install.log"));
    run(Command::new(place.program("selvedge"))
        .args(["image", "bundle"])
        .arg(&iso)
        .arg("--config")
        .arg(bundle))
    .unwrap();
    let arguments = ["--disk", &DISK_GIB.to_string(), "--record", &log.to_string_lossy()];
    let mut machine = Machine::start(place, &iso, &arguments).unwrap();
    let line = machine.wait_any(&["selvedge: installed", "selvedge: not installed"], BOOT).unwrap();
    assert!(line.contains("selvedge: installed"), "{line}");
    machine.wait_line("this is device", BOOT).unwrap();
    machine.wait_line("this version is good", BOOT).unwrap();
    machine.press_power_button().unwrap();
    Recording::open(&log).unwrap()
}

#[test]
#[ignore = "boots machines"]
fn of_the_power_cuts_of_an_installation_none_leaves_a_disk_that_does_not_start() {
    let place = super::place("box-cuts");
    let old = Image::shared(&place, &place.dir.join("old"), &[]).unwrap();

    step("recording an installation and the first boot");
    let recording = recorded_installation(&place, &old);
    let mut judge = Judge::new(&place, vec![Version::of(&old)], DISK_GIB << 30);
    judge.may_be_unfinished = true;
    judge.persist_every = (CUTS / 2).div_ceil(CHECKS_OF_PERSIST);
    step(format_args!("{} steps; cutting", recording.steps.len()));
    let cuts = play(&recording, None, CUTS / 2, &mut judge).unwrap();
    step(format_args!("{cuts} cuts: {:?}", judge.counts));
    for what in ["unfinished, to be installed again", "P3 is begun again", "P3 was checked by e2fsck"] {
        assert!(judge.counts.contains_key(what), "no cut has shown: {what}");
    }
    step("the same had nobody flushed: the judge must find fault with it");
    judge.persist_every = u64::MAX;
    let fault = play(&recording.without_flushes(), None, CUTS / 2, &mut judge).unwrap_err();
    step(format_args!("found: {fault:#}"));
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}

#[test]
#[ignore = "takes minutes"]
fn of_the_power_cuts_of_an_update_by_hand_none_leaves_a_disk_that_does_not_start() {
    let place = super::place("box-cuts-update");
    let old = Image::shared(&place, &place.dir.join("old"), &[]).unwrap();
    let new = Image::shared(&place, &place.dir.join("new"), &["--image-version", "2.0"]).unwrap();
    step("recording an update into the idle slot");
    let (raw, base, log) = (old.file("raw"), place.dir.join("base.raw"), place.dir.join("update.log"));
    run(Command::new("cp").arg("--sparse=always").arg(&raw).arg(&base)).unwrap();
    let recorder = Recorder::start(&place, &raw, &log).unwrap();
    let mut update = Command::new(place.program("selvedge"));
    update.args(["image", "update"]).arg(&recorder.file).arg("--from").arg(new.file("update"));
    run(&mut update).unwrap();
    drop(recorder);
    let recording = Recording::open(&log).unwrap();
    let disk_bytes = fs::metadata(&raw).unwrap().len();
    let versions = || vec![Version::of(&old), Version::of(&new)];
    let mut judge = Judge::new(&place, versions(), disk_bytes);
    let base = File::open(base).unwrap();
    step(format_args!("{} steps; cutting", recording.steps.len()));
    let cuts = play(&recording, Some(&base), CUTS / 2, &mut judge).unwrap();
    let taken: Vec<&String> = judge.roots.values().collect();
    for version in &judge.versions {
        assert!(taken.contains(&&version.name), "no cut has shown {}: {taken:?}", version.name);
    }
    let mut judge = Judge::new(&place, versions(), disk_bytes);
    let fault = play(&recording.without_flushes(), Some(&base), CUTS / 2, &mut judge).unwrap_err();
    step(format_args!("without flushes: {fault:#}"));
    step(format_args!("{cuts} cuts"));
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
