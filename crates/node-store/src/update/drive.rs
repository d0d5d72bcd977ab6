// SPDX-License-Identifier: Apache-2.0
//! Carries out the order of a version: one thread at a time, tried again where that may help, and told of.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use disk::update::Manifest;
use ipc::calls::{Fetch, Init, InitReply, InitRequest};
use model::desired::UpdateDesired;
use model::id::Digest;
use model::observed::{UpdateObserved, UpdateProgress};
use model::reason::{Fault, Reason, Retry};
use model::time::MonoMs;
use reconcile::Backoff;
use service::{Caller, Poster, log};

use super::{Boot, Install, ReleaseKey, SlotFiles};
use crate::run::{FetchSource, Posted};

/// init mounts the ESP and copies a kernel image.
const INIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Waits between tries: from the first to the longest.
const RETRY_MS: (u64, u64) = (2_000, 300_000);

/// What a thread tells.
#[derive(Debug)]
pub enum Told {
    Progress(UpdateProgress),
    Ended(Result<(), Fault>),
}

#[derive(Debug)]
pub(crate) struct Updater {
    fetch: Caller<Fetch>,
    init: Caller<Init>,
    poster: Poster<Posted>,
    key: Option<ReleaseKey>,
    fetched: Arc<AtomicU64>,
    /// What the thread was started for, and its end.
    running: Option<(UpdateDesired, Arc<AtomicBool>)>,
    state: Option<(UpdateDesired, UpdateProgress)>,
    failed: Option<(UpdateDesired, Fault, Backoff, Option<MonoMs>)>,
}

impl Updater {
    pub(crate) fn new(
        fetch: Caller<Fetch>,
        init: Caller<Init>,
        poster: Poster<Posted>,
        key: Option<ReleaseKey>,
    ) -> Updater {
        let fetched = Arc::default();
        Updater { fetch, init, poster, key, fetched, running: None, state: None, failed: None }
    }

    /// Starts or ends what is wanted now; gives what to tell, and when to look again.
    pub(crate) fn turn(
        &mut self,
        desired: Option<&UpdateDesired>,
        now: MonoMs,
    ) -> (Option<UpdateObserved>, Option<MonoMs>) {
        if let Some((order, cancelled)) = &self.running
            && Some(order) != desired
        {
            cancelled.store(true, Ordering::Relaxed);
        }
        let Some(desired) = desired else {
            (self.state, self.failed) = (None, None);
            return (None, None);
        };
        self.failed.take_if(|(order, ..)| order != desired);
        self.state.take_if(|(order, _)| order != desired);
        let is_installed = matches!(self.state, Some((_, UpdateProgress::Installed)));
        let retry_at = self.failed.as_ref().map(|(_, _, _, at)| *at);
        let is_due = match retry_at {
            None => true,
            Some(None) => false,
            Some(Some(at)) => at <= now,
        };
        if self.running.is_none() && !is_installed && is_due {
            self.start(desired);
        }
        let state = self.state.as_ref().map_or(START, |(_, state)| *state);
        let observed = UpdateObserved {
            version: desired.version.clone(),
            attempt: desired.attempt,
            state,
            fetched_bytes: self.fetched.load(Ordering::Relaxed),
            is_unsigned: self.key.is_none(),
            fault: self.failed.as_ref().map(|(_, fault, ..)| fault.clone()),
        };
        let is_waiting = self.running.is_none() && !is_installed;
        (Some(observed), retry_at.flatten().filter(|_| is_waiting))
    }

    fn start(&mut self, desired: &UpdateDesired) {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.fetched.store(0, Ordering::Relaxed);
        let (flag, fetched, key) = (cancelled.clone(), self.fetched.clone(), self.key.clone());
        let (fetch, init, poster, order) =
            (self.fetch.clone(), self.init.clone(), self.poster.clone(), desired.clone());
        log::info(format_args!("version {} is put into the idle slot", desired.version));
        let started = thread::Builder::new().name("update".into()).spawn(move || {
            let install = Install {
                source: &FetchSource(fetch),
                boot: &InitBoot(init),
                desired: &order,
                key: key.as_ref(),
                cancelled: &flag,
                fetched: &fetched,
                progress: &|progress| {
                    poster.post(Posted::Update(Told::Progress(progress)));
                },
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| install.run()));
            let result =
                result.unwrap_or_else(|_| Err(Fault::new(Reason::Internal, "the update ended in a panic")));
            poster.post(Posted::Update(Told::Ended(result)));
        });
        match started {
            Ok(_) => self.running = Some((desired.clone(), cancelled)),
            Err(error) => log::error(format_args!("cannot start a thread: {error}")),
        }
    }

    pub(crate) fn take(&mut self, told: Told, now: MonoMs) {
        let Some((order, cancelled)) = &self.running else { return };
        let result = match told {
            Told::Progress(progress) => {
                self.state = Some((order.clone(), progress));
                return;
            }
            Told::Ended(result) => result,
        };
        let (order, is_cancelled) = (order.clone(), cancelled.load(Ordering::Relaxed));
        self.running = None;
        match result {
            Ok(()) => {
                let bytes = self.fetched.load(Ordering::Relaxed);
                log::info(format_args!(
                    "version {} is installed, {bytes} bytes came over the network",
                    order.version
                ));
                self.failed = None;
                self.state = Some((order, UpdateProgress::Installed));
            }
            Err(_) if is_cancelled => self.state = None,
            Err(fault) => {
                log::warn(format_args!("version {}: {fault}", order.version));
                // the same bytes have the same sum
                let helps =
                    fault.reason.retry() == Retry::Automatic && fault.reason != Reason::DigestMismatch;
                let old = self.failed.take().filter(|(_, old, ..)| old.reason == fault.reason);
                let mut backoff =
                    old.map_or_else(|| Backoff::new(RETRY_MS.0, RETRY_MS.1), |(_, _, backoff, _)| backoff);
                let at = backoff.fail(now);
                self.failed = Some((order, fault, backoff, helps.then_some(at)));
                self.state = None;
            }
        }
    }
}

const START: UpdateProgress = UpdateProgress::Downloading { done_bytes: 0, total_bytes: 0 };

/// init as the one who has the slots.
struct InitBoot(Caller<Init>);

impl InitBoot {
    fn ask(&self, request: &InitRequest) -> Result<(InitReply, Vec<std::os::fd::OwnedFd>), Fault> {
        let answer = self.0.call(request, &[], INIT_TIMEOUT);
        let (reply, fds) =
            answer.map_err(|error| Fault::new(Reason::ServiceUnavailable, format!("init: {error}")))?;
        Ok((reply?, fds))
    }
}

impl Boot for InitBoot {
    fn open_slot(&self) -> Result<SlotFiles, Fault> {
        let (_, fds) = self.ask(&InitRequest::OpenSlot)?;
        let files: Vec<File> = fds.into_iter().map(File::from).collect();
        let files: [File; 4] =
            files.try_into().map_err(|_| Fault::new(Reason::Internal, "init handed out no slot"))?;
        let [root, tree, running_root, running_tree] = files;
        Ok(SlotFiles { root, tree, running_root, running_tree })
    }

    fn install(&self, manifest: &Manifest) -> Result<(), Fault> {
        let request = InitRequest::InstallSlot {
            version: manifest.version.clone(),
            root: Digest(manifest.root.hash),
            kernel: Digest(manifest.kernel_sha256),
            kernel_at: manifest.slot().kernel_at,
            kernel_bytes: manifest.kernel_bytes,
        };
        self.ask(&request).map(drop)
    }
}
