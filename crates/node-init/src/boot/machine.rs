// SPDX-License-Identifier: Apache-2.0
//! The box as the supervisor sees it: its watchdog, its screen, its power button, its boot entry, its orphans.
//!
//! ```text
//! trial ─ the planner finds it good ─▶ good: the boot entry loses its counter
//!       ─ the planner finds it bad ──▶ the entry has no try left, the box starts into the other version
//!       ─ no services, no judgement ─▶ the box starts again: a try is used
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use disk::verity::Hash;
use model::desired::{BootDesired, Verdict};
use model::observed::SlotsObserved;
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use service::log;

use super::screen::{Health, Screen};
use super::slots::{Slots, Written};
use super::storage::Disk;
use super::{BootError, ioctl};

const WATCHDOG: &str = "/dev/watchdog0";
/// A box whose init does not go on for so long starts again.
const WATCHDOG_TIMEOUT_S: i32 = 120;
const WATCHDOG_EVERY_S: u64 = 15;
/// A version on trial whose services are not all ready by then uses up a try. The planner judges long before, where it runs.
const READY_AFTER_S: u64 = 900;
/// The longest test has four windows of an hour.
const VERDICT_AFTER_S: u64 = 5 * 3600;
/// Before a change of boot entries that failed is tried again.
const RETRY_S: u64 = 30;
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
    unjudged_since: MonoMs,
    version: String,
    /// Nothing: the ESP cannot be read; the box runs what it runs.
    slots: Option<Slots>,
    given_up: Option<String>,
    /// After a change of boot entries failed.
    retry_at: MonoMs,
    pub(crate) ending: Ending,
}

impl Machine {
    /// `server` is the controller as CONFIG names it.
    pub(super) fn new(disk: Disk, server: &str, root: &Hash) -> Machine {
        let version = version();
        let slots = Slots::open(&disk, root, &version);
        let slots = slots
            .inspect_err(|error| eprintln!("selvedge: boot entries: {}", crate::supervise::chain(error)));
        let slots = slots.ok();
        let watchdog = File::options().write(true).open(WATCHDOG).ok();
        if let Some(watchdog) = &watchdog
            && let Err(error) = ioctl::set_watchdog(watchdog, WATCHDOG_TIMEOUT_S)
        {
            eprintln!("selvedge: the watchdog keeps its own time: {error}");
        }
        Machine {
            disk,
            screen: Screen::open(&version, server),
            watchdog,
            buttons: buttons(),
            next_beat: MonoMs(0),
            health: Health { ready: 0, all: 0 },
            ready_since: None,
            unjudged_since: service::clock::mono(),
            slots,
            version,
            given_up: None,
            retry_at: MonoMs(0),
            ending: Ending::PowerOff,
        }
    }

    pub(crate) fn deadline(&self) -> MonoMs {
        self.next_beat
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
    }

    /// What the planner wants done about the slots. True: the machine is to end, to start again.
    pub(crate) fn follow(&mut self, now: MonoMs, wanted: &BootDesired) -> bool {
        let Some(slots) = self.slots.as_mut().filter(|_| self.retry_at <= now) else { return false };
        let done = match (&wanted.verdict, &wanted.start_into) {
            (Verdict::Good { version }, _) if *version == self.version => {
                if !slots.is_trial() {
                    return false;
                }
                slots.bless(&self.disk).map(|name| {
                    probe();
                    log::info(format_args!("this version is good: {name}"));
                    false
                })
            }
            (Verdict::Bad { version }, _) => {
                let is_own = *version == self.version;
                let is_news = is_own || self.given_up.as_ref() != Some(version);
                if !is_news {
                    return false;
                }
                slots.give_up(&self.disk, version).map(|()| {
                    log::error(format_args!("version {version} is given up"));
                    self.given_up = Some(version.clone());
                    is_own
                })
            }
            (_, Some(version)) => slots.prepare_start(&self.disk, version).inspect(|is_there| {
                if *is_there {
                    log::info(format_args!("the box starts into version {version}"));
                }
            }),
            _ => return false,
        };
        match done {
            Ok(is_end) => is_end,
            Err(error) => {
                log::error(format_args!("boot entries: {}", crate::supervise::chain(&error)));
                self.retry_at = now.plus_s(RETRY_S);
                false
            }
        }
    }

    /// As they are told; nothing where they could not be read.
    pub(crate) fn observed(&self) -> Option<SlotsObserved> {
        let is_ready = self.health.all > 0 && self.health.ready == self.health.all;
        Some(self.slots.as_ref()?.observed(&self.disk, is_ready))
    }

    /// The slot that does not run, for store.
    pub(crate) fn open_slot(&mut self) -> Result<[File; 4], Fault> {
        let slots = self.slots.as_mut().ok_or_else(no_slots)?;
        if slots.is_trial() {
            let text = "the version that runs is on trial: the one before may be needed";
            return Err(Fault::new(Reason::ServiceUnavailable, text));
        }
        slots.hand_out(&self.disk).map_err(|error| storage_failed(&error))
    }

    pub(crate) fn install(&mut self, written: &Written) -> Result<(), Fault> {
        let slots = self.slots.as_mut().ok_or_else(no_slots)?;
        if slots.has(&written.version) {
            // the answer to the last question was lost
            return Ok(());
        }
        if slots.is_trial() || slots.has_other() {
            let text = "a slot is written that was not handed out";
            return Err(Fault::new(Reason::Internal, text));
        }
        slots.install(&mut self.disk, written).map_err(|error| storage_failed(&error))?;
        self.given_up = None;
        log::info(format_args!("version {} is in its slot, to be tried", written.version));
        Ok(())
    }

    /// A version on trial that does not get its services up goes, where there is another one: the boot loader counts.
    pub(crate) fn is_hopeless(&self, now: MonoMs) -> bool {
        let is_on_trial = self.slots.as_ref().is_some_and(|slots| slots.is_trial() && slots.has_other());
        let limit_s = if self.ready_since.is_some() { VERDICT_AFTER_S } else { READY_AFTER_S };
        is_on_trial && self.unjudged_since.plus_s(limit_s) <= now
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

fn no_slots() -> Fault {
    Fault::new(Reason::StorageFailed, "the boot entries of this box cannot be read")
}

fn storage_failed(error: &BootError) -> Fault {
    Fault::new(Reason::StorageFailed, crate::supervise::chain(error))
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
    fn only_the_power_key_going_down_counts() {
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_power_key(&event));
        event[20] = 1;
        assert!(is_power_key(&event));
    }
}
