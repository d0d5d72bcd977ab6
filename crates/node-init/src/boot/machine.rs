// SPDX-License-Identifier: Apache-2.0
//! The box as the supervisor sees it: its watchdog, its screen, its power button, its boot entry, its orphans.
//!
//! ```text
//! trial ─ all services ready for a while ─▶ good: the boot entry loses its counter
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use disk::entry::{DIRECTORY, Entry};
use disk::partitions::ESP;
use model::time::MonoMs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use service::log;

use super::screen::{Health, Screen};
use super::storage::{Disk, device};
use super::{BootError, at, call, ioctl};

const WATCHDOG: &str = "/dev/watchdog0";
/// A box whose init does not go on for so long starts again.
const WATCHDOG_TIMEOUT_S: i32 = 120;
const WATCHDOG_EVERY_S: u64 = 15;
/// Services are all ready for so long: the version is good.
const GOOD_AFTER_S: u64 = 30;
const MEDIUM: &str = "/run/medium";
/// Never part of an image that leaves a workshop.
const PROBE: &str = "/usr/lib/selvedge/selvedge-probe";
/// `struct input_event` on 64 bits, and the number of the power key.
const EVENT_BYTES: usize = 24;
const EVENT_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Restart,
}

#[derive(Debug)]
pub struct Machine {
    disk: Disk,
    screen: Screen,
    watchdog: Option<File>,
    buttons: Vec<File>,
    next_beat: MonoMs,
    health: Health,
    /// Since when all services are ready.
    ready_since: Option<MonoMs>,
    is_good: bool,
    pub(crate) ending: Ending,
}

impl Machine {
    /// `server` is the controller as CONFIG names it.
    pub(super) fn new(disk: Disk, server: &str) -> Machine {
        let watchdog = File::options().write(true).open(WATCHDOG).ok();
        if let Some(watchdog) = &watchdog
            && let Err(error) = ioctl::set_watchdog(watchdog, WATCHDOG_TIMEOUT_S)
        {
            eprintln!("selvedge: the watchdog keeps its own time: {error}");
        }
        Machine {
            disk,
            screen: Screen::open(&version(), server),
            watchdog,
            buttons: buttons(),
            next_beat: MonoMs(0),
            health: Health { ready: 0, all: 0 },
            ready_since: None,
            is_good: false,
            ending: Ending::PowerOff,
        }
    }

    pub(crate) fn deadline(&self) -> MonoMs {
        let good = self.ready_since.filter(|_| !self.is_good).map(|since| since.plus_s(GOOD_AFTER_S));
        good.map_or(self.next_beat, |good| good.min(self.next_beat))
    }

    pub(crate) fn on_time(&mut self, now: MonoMs, health: Health) {
        let is_all_ready = health.ready == health.all;
        if health != self.health || self.next_beat <= now {
            self.health = health;
            self.screen.show(health);
        }
        if self.next_beat <= now {
            self.next_beat = now.plus_s(WATCHDOG_EVERY_S);
            if let Some(watchdog) = &mut self.watchdog
                && let Err(error) = watchdog.write_all(b"1")
            {
                log::error(format_args!("the watchdog is not reached: {error}"));
            }
        }
        self.ready_since = match (is_all_ready, self.ready_since) {
            (true, since) => since.or(Some(now)),
            (false, _) => None,
        };
        if !self.is_good && self.ready_since.is_some_and(|since| since.plus_s(GOOD_AFTER_S) <= now) {
            self.is_good = true;
            probe();
            match self.bless() {
                Ok(Some(name)) => log::info(format_args!("this version is good: {name}")),
                Ok(None) => {}
                Err(error) => {
                    log::error(format_args!(
                        "the boot entry keeps its counter: {}",
                        crate::supervise::chain(&error)
                    ));
                }
            }
        }
    }

    /// Takes the counter from the boot entry of this version. Nothing: it had none.
    fn bless(&self) -> Result<Option<String>, BootError> {
        let number =
            self.disk.table.partitions.iter().find(|(_, p)| p.kind == ESP).map(|(number, _)| *number);
        let node = number.and_then(|number| self.disk.partition(number)).ok_or_else(|| BootError::Table {
            disk: self.disk.name.clone(),
            what: "there is no ESP".into(),
        })?;
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        mount(device(&node), MEDIUM, "vfat", quiet, Some(c"umask=0077")).map_err(call("mounting the ESP"))?;
        let renamed = rename(&Path::new(MEDIUM).join(DIRECTORY), &version());
        rustix::fs::sync();
        unmount(MEDIUM, UnmountFlags::empty()).map_err(call("unmounting the ESP"))?;
        renamed
    }

    pub(crate) fn buttons(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.buttons.iter().map(AsFd::as_fd)
    }

    /// Whether the power button was pressed.
    pub(crate) fn is_pressed(&mut self) -> bool {
        let mut buffer = [0; EVENT_BYTES * 16];
        let mut is_pressed = false;
        self.buttons.retain_mut(|button| match button.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                is_pressed |= buffer[..count].chunks_exact(EVENT_BYTES).any(is_power_key);
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        });
        is_pressed
    }

    /// Waits for children that nobody else waits for: what services left behind becomes ours.
    pub(crate) fn reap(&self, own: &BTreeSet<i32>) {
        loop {
            // SAFETY: the structure is plain numbers and lives until the calls are over.
            let mut ended: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            // SAFETY: as above.
            let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut ended, look) };
            // SAFETY: waitid has filled in what a child's end is told by.
            let pid = if result == 0 { unsafe { ended.si_pid() } } else { 0 };
            // one of ours is waited for by its descriptor, in this round
            if pid <= 0 || own.contains(&pid) {
                return;
            }
            // SAFETY: as above.
            let _ = unsafe {
                libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut ended, libc::WEXITED | libc::WNOHANG)
            };
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An orderly end is no reason to start again.
        if let Some(watchdog) = &mut self.watchdog {
            let _ = watchdog.write_all(b"V");
        }
    }
}

/// Starts the program of a test, where the image was built with one. It is as verified as the rest of the root.
fn probe() {
    if Path::new(PROBE).exists()
        && let Err(error) = std::process::Command::new(PROBE).stdin(std::process::Stdio::null()).spawn()
    {
        log::error(format_args!("{PROBE} cannot be started: {error}"));
    }
}

fn rename(dir: &Path, version: &str) -> Result<Option<String>, BootError> {
    for file in fs::read_dir(dir).map_err(at("cannot read", dir))?.flatten() {
        let name = file.file_name();
        let Some(entry) = name.to_str().and_then(Entry::parse) else { continue };
        if entry.version == version && entry.tries.is_some() {
            let good = entry.good().file_name();
            fs::rename(file.path(), dir.join(&good)).map_err(at("cannot rename", file.path()))?;
            return Ok(Some(good));
        }
    }
    Ok(None)
}

/// Of the root that runs, as its own files say.
pub(super) fn version() -> String {
    let text = fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION=")).unwrap_or_default().to_owned()
}

fn buttons() -> Vec<File> {
    let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    let events = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event"));
    let open = |path: &Path| File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
    events.filter_map(|entry| open(&entry.path())).collect()
}

fn is_power_key(event: &[u8]) -> bool {
    let number = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    number(16) == EVENT_KEY && number(18) == KEY_POWER && event[20] == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_this_version_loses_its_counter_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["selvedge_1.0+2-1.efi", "selvedge_2.0+3.efi", "other.efi"];
        names.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
        assert_eq!(rename(dir.path(), "1.0").unwrap().as_deref(), Some("selvedge_1.0.efi"));
        assert_eq!(rename(dir.path(), "1.0").unwrap(), None);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other.efi", "selvedge_1.0.efi", "selvedge_2.0+3.efi"]);
    }

    #[test]
    fn only_the_power_key_going_down_counts() {
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_power_key(&event));
        event[20] = 1;
        assert!(is_power_key(&event));
    }
}
