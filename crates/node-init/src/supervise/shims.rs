// SPDX-License-Identifier: Apache-2.0
//! Shims: started when run asks for one, in the control groups of their app; gone with all that ran in them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use ipc::calls::{Init as InitCall, InitReply, InitRequest, LiveShim};
use model::id::AppId;
use model::reason::{Fault, Reason};
use service::{IncomingCall, clock, log};

use super::{Init, Name, Process, Running, chain};
use crate::boot::Written;
use crate::{adopt, spawn};

const RUN: &str = "run";
const STORE: &str = "store";

/// Services of a killed init see at once that it is gone; log then writes down what still waits for it.
const SERVICES_END_MS: u64 = 1_000;
const SERVICES_END_PAUSE: Duration = Duration::from_millis(5);

/// Apps are run's affair, slots are store's.
fn is_allowed(from: &str, request: &InitRequest) -> bool {
    match request {
        InitRequest::SpawnShim { .. } | InitRequest::KillShim { .. } | InitRequest::Shims => from == RUN,
        InitRequest::OpenSlot | InitRequest::InstallSlot { .. } => from == STORE,
    }
}

fn not_booted() -> Fault {
    Fault::new(Reason::Unsupported, "a hosted node has no slots")
}

impl Init {
    pub(super) fn answer(&mut self, call: IncomingCall) {
        let mut handed = Vec::new();
        let reply = match call.decode::<InitCall>() {
            Ok(request) if is_allowed(call.from(), &request) => self.do_as_asked(&request, &mut handed),
            Ok(_) => Err(Fault::new(Reason::Internal, format!("this is not for {}", call.from()))),
            Err(error) => {
                log::error(format_args!("unreadable call of {}: {error}", call.from()));
                return;
            }
        };
        // An asker that is gone asks again.
        let handed: Vec<BorrowedFd<'_>> = handed.iter().map(AsFd::as_fd).collect();
        let _ = call.reply::<InitCall>(&reply, &handed);
    }

    fn do_as_asked(&mut self, request: &InitRequest, handed: &mut Vec<File>) -> Result<InitReply, Fault> {
        match request {
            InitRequest::OpenSlot => {
                handed.extend(self.machine.as_mut().ok_or_else(not_booted)?.open_slot()?);
                Ok(InitReply::Slot)
            }
            InitRequest::InstallSlot { version, root, kernel, kernel_at, kernel_bytes } => {
                let written = Written {
                    version: version.clone(),
                    root: root.0,
                    kernel_sha256: kernel.0,
                    kernel_at: *kernel_at,
                    kernel_bytes: *kernel_bytes,
                };
                self.machine.as_mut().ok_or_else(not_booted)?.install(&written)?;
                Ok(InitReply::Done)
            }
            InitRequest::SpawnShim { .. } if self.stopping.is_some() => {
                Err(Fault::new(Reason::Internal, "the node is being stopped"))
            }
            InitRequest::SpawnShim { app, limits } => {
                let name = self.shim_name(*app)?;
                if self.processes.contains_key(&name) {
                    return Ok(InitReply::Done);
                }
                match self.start_shim(&name, *limits) {
                    Ok(()) => Ok(InitReply::Done),
                    Err(what) => {
                        self.remove_group(&name.1);
                        log::error(format_args!("shim of app {app} cannot be started: {what}"));
                        Err(Fault::new(Reason::Internal, format!("shim of app {app}: {what}")))
                    }
                }
            }
            InitRequest::KillShim { app } => {
                let name = self.shim_name(*app)?;
                if let Some(process) = self.processes.get(&name) {
                    process.kill();
                }
                self.remove_group(&name.1);
                // The pidfd tells its end; until then it counts as living.
                self.exited(&name);
                Ok(InitReply::Done)
            }
            InitRequest::Shims => {
                let live = |(name, process): (&Name, &Process)| {
                    let pid = process.running()?.pid.as_raw_nonzero().get();
                    Some(LiveShim { app: name.1.parse().ok()?, pid })
                };
                Ok(InitReply::Shims(self.processes.iter().filter_map(live).collect()))
            }
        }
    }

    fn shim_name(&self, app: AppId) -> Result<Name, Fault> {
        let template = self.manifests.iter().find(|m| m.outlives_init());
        let template =
            template.ok_or_else(|| Fault::new(Reason::Internal, "there is no manifest of a shim"))?;
        Ok((template.name.clone(), app.to_string()))
    }

    fn start_shim(&mut self, name: &Name, limits: ipc::calls::AppLimits) -> Result<(), String> {
        let manifest = self.manifest(&name.0).ok_or("no manifest")?;
        let result = self.cgroups.make_app(&name.1, manifest.limits, limits, manifest.uid);
        self.say_missing();
        result.map_err(|error| chain(&error))?;
        let group = format!("app-{}", name.1);
        let dirs = self.cgroups.open_dirs(&format!("{group}/app")).map_err(|e| chain(&e))?;
        let procs = self.cgroups.procs_files(&format!("{group}/shim"));
        let cage = spawn::cage(&manifest, &self.roots, &self.bins, procs).map_err(|error| chain(&error))?;
        let spawned = spawn::spawn(&cage, manifest.network).map_err(|error| chain(&error))?;
        let mut process = Process::default();
        process.started(Running::new(spawned, clock::mono()).keeps_an_app());
        self.processes.insert(name.clone(), process);
        self.connect(name, &manifest, dirs);
        log::info(format_args!("shim of app {} started", name.1));
        Ok(())
    }

    /// What an init before this one left, when it was killed: shims with their apps go on, everything else is ended
    /// before the first service starts, so that there are never two of one.
    pub(super) fn take_over(&mut self) {
        let Some(template) = self.manifests.iter().find(|m| m.outlives_init()).cloned() else { return };
        let now = clock::mono();
        let mut kept = BTreeSet::new();
        for (app, found) in adopt::find(&self.cgroups, &template, &self.bins) {
            match found {
                Ok(found) => {
                    log::info(format_args!("app {app} of the init before this one is taken over"));
                    kept.insert(format!("app-{app}"));
                    let mut process = Process::default();
                    let mut running = Running::adopted(found, now);
                    // To one that the init before us had not finished with; any other does not mind.
                    running.go();
                    process.started(running);
                    self.processes.insert((template.name.clone(), app), process);
                }
                Err(error) => log::warn(format_args!(
                    "app {app} of the init before this one cannot be taken over and is ended: {}",
                    chain(&error)
                )),
            }
        }
        let rest: Vec<String> =
            self.cgroups.children().into_iter().filter(|name| !kept.contains(name)).collect();
        let ends = now.plus_ms(SERVICES_END_MS);
        while clock::mono() < ends && rest.iter().any(|name| !self.cgroups.is_empty(name)) {
            std::thread::sleep(SERVICES_END_PAUSE);
        }
        for name in rest {
            // Started again, it is tried again.
            if let Err(error) = self.cgroups.remove(&name) {
                log::error(format_args!("left of the init before this one: {}", chain(&error)));
            }
        }
    }

    /// Without its shim an app has no keeper: it ends too.
    pub(super) fn shim_ended(&mut self, name: &Name, how: &str) {
        self.processes.remove(name);
        self.remove_group(&name.1);
        log::info(format_args!("shim of app {} ended ({how})", name.1));
    }

    fn remove_group(&mut self, app: &str) {
        if let Err(error) = self.cgroups.remove(&format!("app-{app}")) {
            log::error(format_args!("app {app}: {}", chain(&error)));
        }
    }
}
