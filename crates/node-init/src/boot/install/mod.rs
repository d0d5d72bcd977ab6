// SPDX-License-Identifier: Apache-2.0
//! The installer: the root of the node started from a medium, to put itself onto a disk of the machine.
//!
//! ```text
//! options of CONFIG ─▶ target ─▶ all of the medium checked ─▶ mark of the unfinished ─▶ contents ─▶ table ─▶ first sector
//!                                                                                   ─▶ entry of the firmware ─▶ off
//! ```
//! Before the mark nothing is written. From the mark to the first sector, which takes its place, no firmware starts the disk, and
//! the installer may begin it again without leave. The medium is never written to.

mod copy;
mod entry;
mod options;
mod talk;
mod target;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use disk::content::{self, LOOK_BYTES};
use disk::partitions::{LAYOUT, Layout};
use disk::verity;
use uuid::Uuid;

use super::modules::Modules;
use super::storage::{self, Disk};
use super::{BootError, Ending, at, second};
use options::{Options, Start};
use talk::Talk;
use target::{Access, Candidate};

/// Where the kernel shows the firmware's variables.
pub(super) const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Disks are all there when no new one came for so long.
const SETTLED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// What P3 needs to be of use.
const PERSIST_BYTES_MIN: u64 = 256 << 20;
/// To read the last line before the screen goes dark.
const SHOWN: Duration = Duration::from_secs(3);

/// What the kernel image of the installer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Of what goes onto the ESP of the target.
    esp_sha256: String,
    root: verity::Root,
}

#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error(transparent)]
    Options(#[from] options::OptionsError),
    #[error(transparent)]
    Target(#[from] target::TargetError),
    #[error("the medium is damaged: {0}; nothing was changed")]
    Medium(&'static str),
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// The ESP of the medium that a kernel image of the installer names.
pub(super) fn medium(command_line: &str) -> Option<Uuid> {
    value(command_line, "selvedge.medium")?.parse().ok()
}

/// Nothing: this is no installer.
pub(super) fn ordered(command_line: &str) -> Option<Order> {
    let esp_sha256 = value(command_line, "selvedge.install")?.to_owned();
    Some(Order { esp_sha256, root: super::first::root_of(command_line).ok()? })
}

fn value<'l>(command_line: &'l str, name: &str) -> Option<&'l str> {
    command_line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Installs. What fails is shown until somebody comes: a box that starts over and over again tells nobody anything.
pub(super) fn run(medium: &Disk, order: &Order, modules: &mut Modules) -> Ending {
    let mut talk = Talk::open();
    match install(medium, order, modules, &mut talk) {
        Ok(ending) => {
            let what = if ending == Ending::Restart { "starts from it" } else { "is switched off" };
            talk.say(format_args!("installed; take the medium away; the box {what}"));
            std::thread::sleep(SHOWN);
            ending
        }
        Err(error) => {
            talk.say(format_args!("not installed: {}", crate::supervise::chain(&error)));
            talk.say(format_args!("the enter key switches the box off"));
            talk.wait_for_key();
            Ending::PowerOff
        }
    }
}

fn install(
    medium: &Disk,
    order: &Order,
    modules: &mut Modules,
    talk: &mut Talk,
) -> Result<Ending, InstallError> {
    talk.say(format_args!("Selvedge {} installs itself from {}", super::machine::version(), medium.name));
    second::config(medium)?;
    let options = read_options()?;
    let layout = fs::read_to_string(Path::new("/").join(LAYOUT)).map_err(at("cannot read", LAYOUT))?;
    let layout = Layout::parse(&layout).ok_or(InstallError::Medium("the layout of disks is not known"))?;
    let candidates = wait_for_disks(&medium.name, modules)?;
    for one in &candidates {
        let what = match &one.content {
            content::Content::Nothing => "nothing",
            content::Content::Unfinished => "an unfinished installation",
            content::Content::Data(what) => what,
        };
        talk.say(format_args!("{} with {} MiB carries {what}", one.name, one.bytes >> 20));
    }
    let needed = (layout.mib() << 20) + PERSIST_BYTES_MIN;
    let target = target::choose(&candidates, &options, needed)?;
    let sources = copy::Sources::open(medium, order)?;
    if options.start == Start::AfterKey {
        talk.say(format_args!("the enter key begins the installation on {}", target.name));
        talk.wait_for_key();
    }
    talk.say(format_args!("installing on {}", target.name));
    let table = copy::write(target, &layout, &sources, &options, talk)?;
    talk.say(format_args!("{} is complete", target.name));
    match entry::set(&table, modules) {
        Ok(name) => talk.say(format_args!("the firmware starts it first: {name}")),
        // it finds the disk by its usual name
        Err(error) => talk.say(format_args!(
            "the firmware keeps its own order of disks: {}",
            crate::supervise::chain(&error)
        )),
    }
    Ok(options.ending)
}

fn read_options() -> Result<Options, InstallError> {
    let path = Path::new(second::CONFIG_MOUNT).join(options::FILE);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(at("cannot read", &path)(error).into()),
    };
    Ok(Options::parse(&text)?)
}

/// All disks but the medium, once no more come.
fn wait_for_disks(medium: &str, modules: &mut Modules) -> Result<Vec<Candidate>, BootError> {
    let (mut names, mut since) = (Vec::new(), Instant::now());
    while since.elapsed() < SETTLED {
        modules.load_for_devices();
        let now = storage::names();
        if now != names {
            (names, since) = (now, Instant::now());
        }
        std::thread::sleep(PAUSE);
    }
    names.iter().filter(|name| *name != medium).map(|name| look(name)).collect()
}

fn look(name: &str) -> Result<Candidate, BootError> {
    let bytes = storage::bytes(name);
    let length = usize::try_from(bytes).unwrap_or(usize::MAX).min(LOOK_BYTES);
    let first = storage::read(name, 0, length)?;
    let last = storage::read(name, bytes - length as u64, length)?;
    let access = if storage::is_read_only(name) { Access::ReadOnly } else { Access::ReadWrite };
    Ok(Candidate { name: name.to_owned(), bytes, access, content: content::look(&first, &last) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_image_of_the_installer_installs() {
        let root = format!("selvedge.roothash={} selvedge.rootblocks=7", "ab".repeat(32));
        assert_eq!(ordered(&root), None);
        assert_eq!(medium(&root), None);
        let line = format!("{root} selvedge.install=cd selvedge.medium=00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(ordered(&line).map(|order| order.esp_sha256), Some("cd".to_owned()));
        assert!(medium(&line).is_some());
    }
}
