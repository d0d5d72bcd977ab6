// SPDX-License-Identifier: Apache-2.0
//! The whole way from a recipe to the files of an image. Nothing appears in the output directory before all of it is made.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use disk::entry::{self, Entry, is_version};
use disk::gpt::{Partition, Table, Write};
use disk::partitions::{self, Architecture, NAME_CONFIG};
use disk::verity::hex;
use serde_json::json;
use uuid::Uuid;

use crate::fat::{self, Window};
use crate::lock::{Lock, Package};
use crate::medium::{self, Medium};
use crate::modules::Modules;
use crate::pe::{self, Section};
use crate::recipe::{Recipe, triplet};
use crate::root::{self, Root};
use crate::sbom::{self, Program};
use crate::tools::{self, Tools};
use crate::tree::Tree;
use crate::{cpio, deb, fetch, pcr, step};

/// Where our programs lie in a root.
pub const PROGRAMS: &str = "usr/lib/selvedge";
const INIT: &str = "selvedge-init";
pub(crate) const SECTOR: u32 = 512;
pub(crate) const MIB: u64 = 1 << 20;
/// Format of the description beside an image.
const FORMAT: u32 = 1;
/// Highest level that costs no more memory to unpack than the kernel is used to.
const INITRD_LEVEL: i32 = 19;

/// What to build.
#[derive(Clone, Debug)]
pub struct Order {
    pub recipe: PathBuf,
    pub lock: PathBuf,
    pub architecture: Architecture,
    /// Directory of our static executables.
    pub programs: PathBuf,
    /// Executables beyond those of the recipe.
    pub more_programs: Vec<PathBuf>,
    pub version: String,
    pub out: PathBuf,
    pub cache: PathBuf,
    /// Seconds since 1970 for everything; else when the archive was signed.
    pub time: Option<i64>,
    /// Nothing: unsigned.
    pub signing: Option<Signing>,
}

/// Who signs what the firmware starts, for Secure Boot.
#[derive(Clone, Debug)]
pub struct Signing {
    /// PEM without a passphrase.
    pub key: PathBuf,
    pub certificate: PathBuf,
    /// Whether a key whose file says that it is one of a test may be used.
    pub test_keys: TestKeys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestKeys {
    Refused,
    Allowed,
}

/// How files of keys are called that everybody has.
const TEST_KEY: &str = "test-";

/// What was built, by name.
#[derive(Clone, Debug)]
pub struct Made {
    pub files: BTreeMap<&'static str, PathBuf>,
    pub root_hash: String,
}

struct Parts<'a> {
    order: &'a Order,
    recipe: &'a Recipe,
    root: Root,
    uki: Vec<u8>,
    loader: Vec<u8>,
    /// What becomes the ESP, without the zeros behind it.
    esp: Vec<u8>,
    /// The kernel image that installs.
    installer: Vec<u8>,
}

pub fn build(order: &Order) -> anyhow::Result<Made> {
    if !is_version(&order.version) {
        bail!("version {:?} is not made of a-z, A-Z, 0-9, '.', '-' and '~'", order.version);
    }
    if let Some(signing) = &order.signing {
        check_key(signing)?;
    }
    let (recipe, lock) = (Recipe::read(&order.recipe)?, Lock::read(&order.lock)?);
    let arch = order.architecture;
    let time = order.time.unwrap_or(lock.signed_at);
    let mirror = crate::archive::mirror(&recipe);
    let programs = programs(&recipe, order)?;
    let (used, kernel_package) = used(&recipe, &lock, arch)?;
    fs::create_dir_all(&order.out).with_context(|| format!("cannot make {}", order.out.display()))?;
    let work = tempfile::tempdir_in(&order.out)?;
    let tools = Tools::open(&recipe, &lock, &mirror, &order.cache)?;
    let bytes_of = |package: &Package| fetch::package(package, &mirror, &order.cache);

    step(format_args!("kernel {}", kernel_package.version));
    let kernel_bytes = bytes_of(kernel_package)?;
    let kernel = deb::unpack(&kernel_bytes, |path| {
        path.starts_with("boot/vmlinuz") || path.starts_with("usr/lib/modules/")
    })
    .with_context(|| format!("package {}", kernel_package.name))?;
    let modules = Modules::of(&kernel)?;

    step(format_args!("root"));
    let mut tree = Tree::default();
    for part in &recipe.packages {
        let package = lock.package(&part.name, arch)?;
        let bytes = bytes_of(package)?;
        add_part(&mut tree, part, &bytes, arch).with_context(|| format!("package {}", part.name))?;
    }
    for (name, content) in &programs {
        tree.file(&format!("{PROGRAMS}/{name}"), content.clone(), true);
    }
    let os_release = os_release(&recipe, &order.version, arch);
    tree.file(partitions::LAYOUT, recipe.partitions.line().into_bytes(), false);
    tree.file("usr/lib/os-release", os_release.clone().into_bytes(), false);
    for file in &recipe.files {
        tree.file(&file.path, file.content.clone().into_bytes(), false);
    }
    for (path, to) in &recipe.links {
        tree.link(path, to);
    }
    recipe.directories.iter().for_each(|path| tree.directory(path));
    modules.add(&recipe.kernel.modules, &recipe.kernel.load, &mut tree).context("modules of the root")?;
    let missing = crate::elf::missing_libraries(&tree);
    if !missing.is_empty() {
        bail!("the root lacks libraries: {}", missing.join("; "));
    }
    let root = root::make(&tree, time, &tools, work.path())?;
    check_room("root", root.data.len(), recipe.partitions.root)?;
    check_room("hash tree of the root", root.tree.len(), recipe.partitions.root_verity)?;

    step(format_args!("kernel image, root hash {}", hex(&root.verity.hash)));
    let initrd = initrd(&recipe, &modules, &programs)?;
    let boot = deb::unpack(&bytes_of(lock.package(&recipe.boot.package, arch)?)?, |path| {
        path.starts_with("usr/lib/systemd/boot/efi/")
    })?;
    let (loader, stub) = match arch {
        Architecture::Amd64 => ("systemd-bootx64.efi", "linuxx64.efi.stub"),
        Architecture::Arm64 => ("systemd-bootaa64.efi", "linuxaa64.efi.stub"),
    };
    let efi = |name: &str| boot.content(&format!("usr/lib/systemd/boot/efi/{name}"));
    let stub = efi(stub)?;
    let common = Uki {
        recipe: &recipe,
        architecture: arch,
        stub: &stub,
        kernel: &kernel,
        initrd: &initrd,
        os_release: &os_release,
    };
    let image = |root: &Root, more: &[String]| {
        signed(&common.image(root, more)?, order.signing.as_ref(), &tools, work.path())
    };
    let uki = image(&root, &[])?;
    let loader = signed(&efi(loader)?, order.signing.as_ref(), &tools, work.path())?;
    // three of them, and the boot loader
    check_room("three kernel images", uki.len() * 3 + loader.len(), recipe.partitions.esp)?;
    let (esp, installer) = (Vec::new(), Vec::new());
    let mut parts = Parts { order, recipe: &recipe, root, uki, loader, esp, installer };
    parts.esp = parts.make_esp()?;
    parts.installer = image(&parts.root, &parts.medium().words())?;

    let of_root = parts.root.data.len() + parts.root.tree.len();
    // each in the disk, the medium, the update and the qcow2
    check_space(&order.out, 4 * (of_root + parts.esp.len()) + 2 * parts.installer.len())?;
    step(format_args!("disk"));
    let ours: Vec<Program> = programs
        .iter()
        .map(|(name, content)| Program { name: name.clone(), sha256: fetch::sha256(content) })
        .collect();
    let sbom = sbom::document(&recipe.name, &order.version, time, &used, &ours)?;
    parts.write(work.path(), &sbom, &kernel_package.version)?;
    finish(&recipe.name, work.path(), &order.out, hex(&parts.root.verity.hash))
}

/// Our executables by name.
fn programs(recipe: &Recipe, order: &Order) -> anyhow::Result<BTreeMap<String, Arc<[u8]>>> {
    let mut programs = BTreeMap::new();
    let of_recipe = recipe.programs.iter().map(|name| order.programs.join(name));
    for path in of_recipe.chain(order.more_programs.iter().cloned()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no plain name", path.display()))?;
        let content = fs::read(&path)
            .with_context(|| format!("cannot read our program {}: build it first", path.display()))?;
        programs.insert(name.to_owned(), content.into());
    }
    if !programs.contains_key(INIT) {
        bail!("the recipe has no program {INIT}");
    }
    Ok(programs)
}

/// Packages of which something is in the image, and the kernel's among them.
fn used<'l>(
    recipe: &Recipe,
    lock: &'l Lock,
    arch: Architecture,
) -> anyhow::Result<(Vec<&'l Package>, &'l Package)> {
    let kernel = lock.kernel(recipe, arch)?;
    let mut used = vec![kernel, lock.package(&recipe.boot.package, arch)?];
    for part in &recipe.packages {
        used.push(lock.package(&part.name, arch)?);
    }
    used.sort_unstable();
    used.dedup();
    Ok((used, kernel))
}

fn add_part(
    tree: &mut Tree,
    part: &crate::recipe::Part,
    bytes: &[u8],
    arch: Architecture,
) -> anyhow::Result<()> {
    let wanted: Vec<String> =
        part.files.iter().map(|path| path.replace("{triplet}", triplet(arch))).collect();
    let package = deb::unpack(bytes, |_| true)?;
    let mut joined = Vec::new();
    for path in &wanted {
        let mut found = package.matching(path).peekable();
        if found.peek().is_none() {
            bail!("it has no {path}");
        }
        for (path, node) in found {
            if part.joined.is_none() {
                tree.insert(path, node.clone());
            } else if deb::is_file(node) {
                joined.extend_from_slice(&package.content(path)?);
            }
        }
    }
    if let Some(path) = &part.joined {
        tree.file(path, joined, false);
    }
    Ok(())
}

fn os_release(recipe: &Recipe, version: &str, arch: Architecture) -> String {
    let name = &recipe.name;
    format!(
        "ID=selvedge\nNAME=Selvedge\nPRETTY_NAME=\"Selvedge {version}\"\nVERSION_ID={version}\nIMAGE_ID={name}\n\
         IMAGE_VERSION={version}\nARCHITECTURE={}\n",
        arch.name()
    )
}

fn initrd(
    recipe: &Recipe,
    modules: &Modules,
    programs: &BTreeMap<String, Arc<[u8]>>,
) -> anyhow::Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.file("init", programs[INIT].clone(), true);
    // by this name the kernel asks for what a module wants without depending on it
    tree.link("sbin/modprobe", "../init");
    for path in ["dev", "proc", "sys", "run", "sysroot"] {
        tree.directory(path);
    }
    modules.add(&recipe.kernel.initrd_modules, &[], &mut tree).context("modules of the initrd")?;
    Ok(zstd::encode_all(cpio::archive(&tree).as_slice(), INITRD_LEVEL)?)
}

/// What all kernel images of one build have in common.
struct Uki<'a> {
    recipe: &'a Recipe,
    architecture: Architecture,
    stub: &'a [u8],
    kernel: &'a Tree,
    initrd: &'a [u8],
    os_release: &'a str,
}

impl Uki<'_> {
    /// The image that starts this root, with more words on its command line.
    fn image(&self, root: &Root, more: &[String]) -> anyhow::Result<Vec<u8>> {
        let Uki { recipe, architecture, stub, kernel, initrd, os_release } = *self;
        let (path, _) = kernel
            .matching("boot/")
            .find(|(path, _)| path.starts_with("boot/vmlinuz-"))
            .context("the kernel package has no kernel")?;
        let version = path.trim_start_matches("boot/vmlinuz-").to_owned();
        let image = kernel.content(path)?;
        let (_, console) = recipe.kernel_of(architecture)?;
        let consoles = console.split_whitespace().map(|one| format!("console={one}"));
        let own = [
            format!("selvedge.roothash={}", hex(&root.verity.hash)),
            format!("selvedge.rootblocks={}", root.verity.data_blocks),
        ];
        let words: Vec<String> = own
            .into_iter()
            .chain(more.iter().cloned())
            .chain(consoles)
            .chain(recipe.kernel.command_line.iter().cloned())
            .collect();
        let command_line = words.join(" ");
        // The kernel comes last: unpacking itself in place it takes more memory than the file has.
        let linux = Section { name: ".linux", content: &image, memory_bytes: pe::memory_bytes(&image)? };
        let sections = [
            Section::new(".osrel", os_release.as_bytes()),
            Section::new(".cmdline", command_line.as_bytes()),
            Section::new(".uname", version.as_bytes()),
            Section::new(".initrd", initrd),
            linux,
        ];
        pe::append(stub, &sections).context("systemd's stub")
    }
}

fn check_key(signing: &Signing) -> anyhow::Result<()> {
    for path in [&signing.key, &signing.certificate] {
        fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(TEST_KEY) && signing.test_keys == TestKeys::Refused {
            bail!(
                "{} is the key of a test, which everybody has: --insecure-test-keys allows it",
                path.display()
            );
        }
    }
    Ok(())
}

/// As it is where nobody signs.
fn signed(image: &[u8], signing: Option<&Signing>, tools: &Tools, work: &Path) -> anyhow::Result<Vec<u8>> {
    let Some(signing) = signing else { return Ok(image.to_vec()) };
    let (plain, signed) = (work.join("unsigned"), work.join("signed"));
    fs::write(&plain, image)?;
    let mut command = tools.command("usr/bin/sbsign");
    command.arg("--key").arg(&signing.key).arg("--cert").arg(&signing.certificate);
    tools::run(command.arg("--output").arg(&signed).arg(&plain), "sbsign")?;
    Ok(fs::read(&signed)?)
}

/// Before anything is written: a disk that is full in the middle of it helps nobody.
pub(crate) fn check_space(dir: &Path, needed: usize) -> anyhow::Result<()> {
    let says =
        rustix::fs::statvfs(dir).with_context(|| format!("asking for the room in {}", dir.display()))?;
    let (free, needed) = (says.f_bavail.saturating_mul(says.f_frsize), needed as u64);
    if free < needed {
        bail!("{} has {} MiB free, {} are needed", dir.display(), free / MIB, needed.div_ceil(MIB));
    }
    Ok(())
}

fn check_room(what: &str, bytes: usize, partition_mib: u32) -> anyhow::Result<()> {
    let room = u64::from(partition_mib) * MIB;
    if bytes as u64 > room {
        bail!("{what}: {bytes} bytes do not fit into a partition of {partition_mib} MiB");
    }
    Ok(())
}

impl Parts<'_> {
    fn id(&self, of: &str) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{of} {}", hex(&self.root.verity.hash)).as_bytes())
    }

    fn partition(&self, kind: Uuid, name: &str) -> Partition {
        Partition { kind, id: self.id(name), first: 0, last: 0, attributes: 0, name: name.into() }
    }

    fn write(&self, dir: &Path, sbom: &serde_json::Value, kernel: &str) -> anyhow::Result<()> {
        fs::write(dir.join("uki"), &self.uki)?;
        self.disk(&dir.join("raw"))?;
        self.update(&dir.join("update"))?;
        self.medium().write(&dir.join("iso"), &self.installer)?;
        fs::write(dir.join("sbom"), format!("{}\n", serde_json::to_string_pretty(sbom)?))?;
        let description = json!({
            "format": FORMAT,
            "name": self.recipe.name,
            "version": self.order.version,
            "architecture": self.order.architecture.name(),
            "kernel": kernel,
            "rootHash": hex(&self.root.verity.hash),
            "rootBytes": self.root.data.len(),
            "ukiBytes": self.uki.len(),
            // register 11 of a TPM, by phase of the start
            "pcr11": { "sha256": { "kernel": pcr::after_stub(&self.uki)? } },
        });
        fs::write(dir.join("json"), format!("{}\n", serde_json::to_string_pretty(&description)?))?;
        if let Err(error) = tools::run(
            Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "qcow2"])
                .arg(dir.join("raw"))
                .arg(dir.join("qcow2")),
            "qemu-img",
        ) {
            step(format_args!("no qcow2: {error:#}"));
        }
        Ok(())
    }

    fn medium(&self) -> Medium<'_> {
        Medium {
            architecture: self.order.architecture,
            root: &self.root,
            new_esp: &self.esp,
            config_mib: self.recipe.partitions.config,
        }
    }

    /// The ESP as a file system of its whole size; only its beginning is used.
    fn make_esp(&self) -> anyhow::Result<Vec<u8>> {
        let bytes = u64::from(self.recipe.partitions.esp) * MIB;
        let mut file = tempfile::tempfile_in(&self.order.out)?;
        file.set_len(bytes)?;
        let volume = fat::Volume::for_firmware("ESP", self.volume_number("ESP"));
        fat::make(Window::new(&file, 0, bytes), volume, &self.esp_files())?;
        let mut content = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut content)?;
        let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        content.truncate(used.next_multiple_of(MIB as usize));
        Ok(content)
    }

    /// The disk of a node as it leaves the factory: one slot, an empty CONFIG, no P3.
    fn disk(&self, path: &Path) -> anyhow::Result<()> {
        let layout = self.recipe.partitions;
        let bytes = layout.mib() * MIB;
        let (arch, hash) = (self.order.architecture, &self.root.verity.hash);
        let table = layout.table(arch, hash, (SECTOR, bytes / u64::from(SECTOR)), |name| self.id(name))?;
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(bytes)?;
        write_table(&file, &table)?;
        let (slot, tree) = partitions::NUMBERS_SLOTS[0];
        write_at(&file, offset(&table, slot), &self.root.data)?;
        write_at(&file, offset(&table, tree), &self.root.tree)?;
        write_at(&file, offset(&table, partitions::NUMBER_ESP), &self.esp)?;
        fat::make(
            window(&file, &table, partitions::NUMBER_CONFIG),
            fat::Volume::for_any_disk(NAME_CONFIG, self.volume_number("CONFIG")),
            &[],
        )?;
        file.sync_all()?;
        Ok(())
    }

    fn volume_number(&self, of: &str) -> u32 {
        u32::from_le_bytes(self.id(of).into_bytes()[..4].try_into().unwrap_or_default())
    }

    fn esp_files(&self) -> Vec<(String, Vec<u8>)> {
        let removable = medium::removable(self.order.architecture);
        let settings = format!("timeout {}\neditor no\nauto-entries no\n", self.recipe.boot.timeout_s);
        let uki = format!("{}/{}", entry::DIRECTORY, Entry::fresh(&self.order.version).file_name());
        vec![
            (removable.into(), self.loader.clone()),
            ("loader/loader.conf".into(), settings.into_bytes()),
            (uki, self.uki.clone()),
        ]
    }

    /// The update file: root, hash tree and kernel image as partitions of their size.
    fn update(&self, path: &Path) -> anyhow::Result<()> {
        let arch = self.order.architecture;
        let (root_id, tree_id) = partitions::ids_of_root(&self.root.verity.hash);
        let contents = [
            (Partition { id: root_id, ..self.partition(arch.root(), "root") }, &self.root.data),
            (Partition { id: tree_id, ..self.partition(arch.root_verity(), "root-verity") }, &self.root.tree),
            (self.partition(partitions::ESP, "uki"), &self.uki),
        ];
        let whole = |bytes: usize| (bytes as u64).next_multiple_of(MIB);
        let bytes = contents.iter().map(|(_, content)| whole(content.len())).sum::<u64>() + 2 * MIB;
        let mut table = Table::new(self.id("update"), SECTOR, bytes / u64::from(SECTOR));
        for (number, (partition, content)) in (1..).zip(&contents) {
            table.append(number, (content.len() as u64).div_ceil(SECTOR.into()), partition.clone())?;
        }
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(bytes)?;
        write_table(&file, &table)?;
        for (number, (_, content)) in (1..).zip(&contents) {
            write_at(&file, offset(&table, number), content)?;
        }
        Ok(())
    }
}

pub(crate) fn offset(table: &Table, number: u32) -> u64 {
    table.partitions.get(&number).map_or(0, |partition| partition.first * u64::from(SECTOR))
}

pub(crate) fn window<'f>(file: &'f File, table: &Table, number: u32) -> Window<'f> {
    let sectors = table.partitions.get(&number).map_or(0, Partition::sectors);
    Window::new(file, offset(table, number), sectors * u64::from(SECTOR))
}

pub(crate) fn write_table(file: &File, table: &Table) -> anyhow::Result<()> {
    for write in table.writes() {
        if let Write::At { offset, bytes } = write {
            write_at(file, offset, &bytes)?;
        }
    }
    Ok(())
}

pub(crate) fn write_at(mut file: &File, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(bytes)?)
}

/// Gives everything its name in the output directory.
fn finish(name: &str, work: &Path, out: &Path, root_hash: String) -> anyhow::Result<Made> {
    let mut files = BTreeMap::new();
    for (kind, file) in [
        ("raw", format!("{name}.raw")),
        ("qcow2", format!("{name}.qcow2")),
        ("iso", format!("{name}.iso")),
        ("uki", format!("{name}.efi")),
        ("update", format!("{name}.update")),
        ("sbom", format!("{name}.spdx.json")),
        ("json", format!("{name}.json")),
    ] {
        let (from, to) = (work.join(kind), out.join(file));
        if from.exists() {
            fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
            files.insert(kind, to);
        }
    }
    Ok(Made { files, root_hash })
}
