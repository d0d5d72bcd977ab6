// SPDX-License-Identifier: Apache-2.0
//! `selvedge image`: a recipe becomes a bootable disk, gets its onboarding bundle, and runs under QEMU.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use mkimage::build::{Signing, TestKeys};
use mkimage::run::{Medium, Tpm};

use crate::{DONE, FAILED};

/// Seconds since 1970 for all times in an image, as other builders know it.
const TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Choose the newest version of every package of a recipe, from the signed index of its archive
    Lock(LockArgs),
    /// Build the disk, installation medium, kernel image, update file and bill of materials of a node
    Build(BuildArgs),
    /// Write an onboarding bundle into the CONFIG partition of a disk
    Bundle(BundleArgs),
    /// Put an update file into the idle slot of a disk that no box uses at the moment
    Update(UpdateArgs),
    /// Run a disk under QEMU with UEFI
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Recipe {
    /// Recipe (YAML)
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Lock; default: beside the recipe, with the end .lock
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Packages and tools that were fetched already
    #[arg(
        long,
        value_name = "DIR",
        env = "SELVEDGE_IMAGE_CACHE",
        default_value = "/var/cache/selvedge/image"
    )]
    cache: PathBuf,
}

impl Recipe {
    fn lock(&self) -> PathBuf {
        self.lock.clone().unwrap_or_else(|| self.recipe.with_extension("lock"))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct LockArgs {
    #[command(flatten)]
    recipe: Recipe,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    recipe: Recipe,
    /// amd64 or arm64
    #[arg(long, default_value = "amd64")]
    arch: String,
    /// Directory for the files of the image, made when missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Directory of the node's static executables; default: where this one lies
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// One more executable for the image, e.g. a probe of a test; may be repeated
    #[arg(long = "with", value_name = "FILE")]
    more_programs: Vec<PathBuf>,
    /// Sign for Secure Boot with this key (PEM without a passphrase)
    #[arg(long, value_name = "FILE", requires = "sign_cert")]
    sign_key: Option<PathBuf>,
    /// Certificate of the key, which the firmware of the box must have (PEM)
    #[arg(long, value_name = "FILE", requires = "sign_key")]
    sign_cert: Option<PathBuf>,
    /// Allow keys whose file names begin with test-
    #[arg(long)]
    insecure_test_keys: bool,
    /// Version of the image
    #[arg(long, value_name = "VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    image_version: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BundleArgs {
    /// Raw disk or installation medium, from image build
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Bundle, from node bundle
    #[arg(long, value_name = "DIR")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    /// Raw disk
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Update file, from image build
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Raw disk, qcow2, or installation medium (.iso) beside an empty disk; it stays as it is
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The medium is a USB stick instead of a CD
    #[arg(long)]
    usb: bool,
    /// One more disk (raw or .qcow2), which is written to; may be repeated
    #[arg(long = "add-disk", value_name = "FILE")]
    more_disks: Vec<PathBuf>,
    /// Record all that is written to the box's disk, in the format of dm-log-writes
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// What the box keeps: its disk, the firmware's variables; default: beside the image, with the end .box
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Size of its disk in GiB
    #[arg(long, value_name = "GIB", default_value_t = 8)]
    disk: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Port of this machine's loopback that leads to a port of the node
    #[arg(long, value_name = "HOST:NODE", value_parser = ports)]
    forward: Vec<(u16, u16)>,
    /// Serial console into a file instead of the terminal
    #[arg(long, value_name = "FILE")]
    serial: Option<PathBuf>,
    /// Socket to control QEMU by (QMP)
    #[arg(long, value_name = "SOCKET")]
    monitor: Option<PathBuf>,
    /// Secure Boot, with the firmware's variables of this file: they hold the keys that it trusts
    #[arg(long, value_name = "VARIABLES")]
    secure_boot: Option<PathBuf>,
    /// No emulated TPM
    #[arg(long)]
    no_tpm: bool,
    /// Serial number of the box
    #[arg(long, value_name = "TEXT")]
    serial_number: Option<String>,
    /// End when the box restarts
    #[arg(long)]
    once: bool,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let parse = || {
        let (host, node) = text.split_once(':')?;
        Some((host.parse().ok()?, node.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{text:?} is not HOST:NODE, e.g. 8080:80"))
}

pub(crate) fn run(command: ImageCommand) -> anyhow::Result<u8> {
    match command {
        ImageCommand::Lock(args) => lock(&args),
        ImageCommand::Build(args) => build(args),
        ImageCommand::Bundle(args) => bundle(&args),
        ImageCommand::Update(args) => update(&args),
        ImageCommand::Run(args) => boot(args),
    }
}

fn lock(args: &LockArgs) -> anyhow::Result<u8> {
    let recipe = mkimage::recipe::Recipe::read(&args.recipe.recipe)?;
    let mirror = mkimage::archive::mirror(&recipe);
    for line in mkimage::lock::renew(&recipe, &args.recipe.lock(), &mirror, &args.recipe.cache)? {
        println!("{line}");
    }
    Ok(DONE)
}

fn build(args: BuildArgs) -> anyhow::Result<u8> {
    let programs = match args.programs {
        Some(dir) => dir,
        None => {
            let own = std::env::current_exe().context("finding the own executable")?;
            own.parent().context("an executable has a directory")?.to_owned()
        }
    };
    let time = match std::env::var(TIME_VARIABLE) {
        Ok(text) => Some(text.parse().with_context(|| format!("{TIME_VARIABLE} is {text:?}, no number"))?),
        Err(_) => None,
    };
    let test_keys = if args.insecure_test_keys { TestKeys::Allowed } else { TestKeys::Refused };
    let pair = args.sign_key.zip(args.sign_cert);
    let signing = pair.map(|(key, certificate)| Signing { key, certificate, test_keys });
    let order = mkimage::build::Order {
        signing,
        lock: args.recipe.lock(),
        recipe: args.recipe.recipe,
        architecture: mkimage::recipe::architecture(&args.arch)?,
        programs,
        more_programs: args.more_programs,
        version: args.image_version,
        out: args.out,
        cache: args.recipe.cache,
        time,
    };
    let made = mkimage::build::build(&order)?;
    for path in made.files.values() {
        println!("{}", path.display());
    }
    Ok(DONE)
}

fn bundle(args: &BundleArgs) -> anyhow::Result<u8> {
    let count = mkimage::bundle::write(&args.image, &args.config)?;
    eprintln!("{count} files are in CONFIG of {}", args.image.display());
    Ok(DONE)
}

fn update(args: &UpdateArgs) -> anyhow::Result<u8> {
    let done = mkimage::update::write(&args.image, &args.from)?;
    let replaced = done.replaced.map_or(String::new(), |version| format!(", in place of {version}"));
    eprintln!("version {} is in {}{replaced}, to be tried", done.version, done.slot);
    Ok(DONE)
}

fn boot(args: RunArgs) -> anyhow::Result<u8> {
    let machine = mkimage::run::Machine {
        state: args.state.unwrap_or_else(|| args.image.with_extension("box")),
        image: args.image,
        medium: if args.usb { Medium::Usb } else { Medium::Cd },
        more_disks: args.more_disks,
        record: args.record,
        disk_gib: args.disk,
        memory_mib: args.memory,
        cpus: args.cpus,
        forwards: args.forward,
        serial: args.serial,
        monitor: args.monitor,
        secure_boot: args.secure_boot,
        tpm: if args.no_tpm { Tpm::None } else { Tpm::Emulated },
        serial_number: args.serial_number,
        is_once: args.once,
    };
    // In our place: whoever ends us ends the machine.
    let error = std::os::unix::process::CommandExt::exec(&mut mkimage::run::command(&machine)?);
    eprintln!("error: cannot run QEMU: {error}");
    Ok(FAILED)
}
