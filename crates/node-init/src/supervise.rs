// SPDX-License-Identifier: Apache-2.0
//! The loop of init: starts processes, connects them, starts the dead again, ends all in order.
//!
//! ```text
//! service   waiting ─ its time has come ─▶ running ─ dies ─▶ waiting (backoff)
//! shim      ─ run asks ─▶ running ─ dies or run asks ─▶ gone, with all that ran in its control group
//!             (lives already when an init before this one was killed: taken over)
//! node      serving ─ SIGTERM or SIGINT ─▶ stopping: run, shims, the others, log, bus ─▶ nothing left
//! ```
//!
//! The first process of a box also looks after the machine: [`crate::boot`].
//!
//! A running process that does not answer init is ended, and so started again (`health`). One thread, one poll. Blocking
//! work is bounded: building a cage, emptying a control group.

mod health;
mod process;
mod shims;
mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipc::boot::Role;
use ipc::frame::{Channel, FrameError};
use ipc::manifest::{Instances, Manifest};
use ipc::topics::{BootDesired, BoxMetrics, NodeObserved, ServiceObserved, SlotsObserved, Topic};
use model::observed;
use model::time::MonoMs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use service::bus::Bus;
use service::log::Shown;
use service::{IncomingCall, clock, log};

use crate::adopt::{self, Claim};
use crate::args::Options;
use crate::boot::{Ending, Health, Machine};
use crate::cgroup::{CgroupError, Cgroups};
use crate::disk::Disk;
use crate::spawn::{self, Roots, SpawnError};
use crate::wiring::{self, INIT, Party};
use crate::{facts, manifests};

use process::{Process, Running};
use stop::Stopping;

/// Memory and CPU of services are looked at this often.
const LOOK_S: u64 = 30;

/// Why there is no node.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("user namespaces cannot be had here")]
    Anchor(#[from] crate::anchor::AnchorError),
    #[error("no manifests")]
    Manifests(#[from] manifests::LoadError),
    #[error("no control groups")]
    Cgroup(#[from] CgroupError),
    #[error("cannot use {}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("{call} failed")]
    Os { call: &'static str, source: std::io::Error },
    #[error("no channel")]
    Channel(#[from] FrameError),
    #[error(
        "{} lies on an overlay file system, and the writable layers of apps cannot: give --persist a directory on \
         ext4, xfs, btrfs or tmpfs (in a container: a volume)",
        path.display()
    )]
    Overlay { path: PathBuf },
    #[error("another init runs the node that has {}: stop that one first", path.display())]
    Claimed { path: PathBuf, source: rustix::io::Errno },
}

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAYFS_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// Which process: service and, for a shim, app id.
type Name = (String, String);

struct Init {
    options: Options,
    roots: Roots,
    bins: PathBuf,
    manifests: Vec<Arc<Manifest>>,
    cgroups: Cgroups,
    processes: BTreeMap<Name, Process>,
    /// Order in which services are started: bus and log first.
    order: Vec<String>,
    bus: Bus,
    /// Calls that init answers.
    callers: BTreeMap<Name, Arc<Channel>>,
    signals: OwnedFd,
    /// Under the node's data.
    disk: Option<Disk>,
    next_look: MonoMs,
    stopping: Option<Stopping>,
    /// Nothing: hosted.
    machine: Option<Machine>,
    _claims: [Claim; 2],
}

/// What a descriptor in the poll belongs to.
enum Source {
    Signal,
    Button,
    Bus,
    Exit(Name),
    Control(Name),
    Output(Name),
    Call(Name),
}

/// Runs the node until it is told to end.
pub fn run(mut options: Options) -> Result<(), InitError> {
    // before the root changes: the kernel names the executable by the path it was started from
    if options.bins.is_none() {
        options.bins = Some(beside_this()?);
    }
    crate::anchor::leave_chroot()?;
    let mut init = Init::new(options, None)?;
    init.take_over();
    init.run()
}

/// Runs the node as the first process of a box, until the box is to end.
pub fn run_booted(options: Options, machine: Machine) -> Result<Ending, InitError> {
    let mut init = Init::new(options, Some(machine))?;
    init.run()?;
    Ok(init.machine.map_or(Ending::PowerOff, |machine| machine.ending))
}

/// The kernel takes no overlay as the writable part of another.
fn is_overlay(path: &Path) -> Result<bool, InitError> {
    let failed =
        |errno: rustix::io::Errno| InitError::Directory { path: path.to_owned(), source: errno.into() };
    Ok(rustix::fs::statfs(path).map_err(failed)?.f_type == OVERLAYFS_MAGIC)
}

impl Init {
    fn run(&mut self) -> Result<(), InitError> {
        for service in self.order.clone() {
            self.start((service, String::new()));
        }
        loop {
            self.serve();
            if self.stopping.is_some() && self.processes.is_empty() {
                break;
            }
        }
        self.cgroups.remove("")?;
        log::flush();
        Ok(())
    }

    fn new(options: Options, machine: Option<Machine>) -> Result<Init, InitError> {
        let all = manifests::load(options.manifests.as_deref(), options.services.as_deref())?;
        let directory = |path: &PathBuf| {
            let failed = |source: std::io::Error| InitError::Directory { path: path.clone(), source };
            std::fs::create_dir_all(path).map_err(failed)?;
            std::fs::canonicalize(path).map_err(failed)
        };
        let roots = Roots {
            config: directory(&options.config)?,
            persist: directory(&options.persist)?,
            run: directory(&options.run)?,
        };
        if is_overlay(&roots.persist)? {
            return Err(InitError::Overlay { path: roots.persist });
        }
        directory(&roots.run.join("root"))?;
        let own = directory(&roots.persist.join(INIT))?;
        let claim = |path: &Path| {
            adopt::claim(path).map_err(|source| InitError::Claimed { path: path.to_path_buf(), source })
        };
        let own_claim = claim(&own)?;
        let bins = match &options.bins {
            Some(dir) => directory(dir)?,
            None => beside_this()?,
        };
        let signals = signal_fd()?;
        let (restart_counter, counted) = facts::count_start(&own);
        let (serial, kept) = facts::given_serial(&own);
        let cgroups = Cgroups::open(&options.instance)?;
        let group_claim = claim(&cgroups.top())?;
        let order: Vec<String> =
            all.iter().filter(|m| m.instances == Instances::One).map(|m| m.name.clone()).collect();
        if order.iter().any(|name| name == "log") {
            log::launched();
            log::show(if options.is_verbose { Shown::All } else { Shown::WithoutLog });
        }
        // A full disk is no reason for apps not to run.
        for error in [counted, kept].into_iter().filter_map(Result::err) {
            log::error(format_args!("{} cannot be written: {error}", own.display()));
        }
        let mut bus = Bus::default();
        let disk = Disk::below(&roots.persist);
        let disk_facts = disk.as_ref().map(|disk| disk.facts.clone());
        let node = observed::NodeObserved {
            is_hosted: machine.is_none(),
            ..facts::node(restart_counter, serial, disk_facts)
        };
        publish::<NodeObserved>(&mut bus, "", &node);
        bus.synced(NodeObserved::NAME);
        publish::<BoxMetrics>(&mut bus, "", &facts::box_metrics(disk.as_ref()));
        bus.synced(BoxMetrics::NAME);
        if let Some(machine) = &machine {
            bus.subscribe(BootDesired::NAME);
            if let Some(slots) = machine.observed() {
                publish::<SlotsObserved>(&mut bus, "", &slots);
            }
        }
        bus.synced(SlotsObserved::NAME);
        let processes = order.iter().map(|name| ((name.clone(), String::new()), Process::default()));
        Ok(Init {
            processes: processes.collect(),
            order,
            manifests: all.into_iter().map(Arc::new).collect(),
            options,
            roots,
            bins,
            cgroups,
            bus,
            callers: BTreeMap::new(),
            signals,
            disk,
            next_look: clock::mono().plus_s(LOOK_S),
            stopping: None,
            machine,
            _claims: [own_claim, group_claim],
        })
    }

    fn manifest(&self, service: &str) -> Option<Arc<Manifest>> {
        self.manifests.iter().find(|m| m.name == service).cloned()
    }

    /// One round: wait, then do what came.
    fn serve(&mut self) {
        log::flush();
        self.bus.flush();
        for process in self.processes.values_mut() {
            process.flush();
        }
        let wait_ms = self.deadline().since_ms(clock::mono());
        let wait_ms = if log::is_waiting() { wait_ms.min(100) } else { wait_ms };
        for source in self.wait(wait_ms) {
            match source {
                Source::Signal => self.signalled(),
                Source::Button => self.pressed(),
                Source::Bus => self.bus.take(&mut BTreeSet::new()),
                Source::Exit(name) => self.exited(&name),
                Source::Control(name) => self.spoke(&name),
                Source::Output(name) => self.wrote(&name),
                Source::Call(name) => self.asked(name),
            }
        }
        self.on_time();
    }

    fn deadline(&self) -> MonoMs {
        if let Some(stopping) = &self.stopping {
            return stopping.deadline();
        }
        let starts = self.processes.values().filter_map(Process::start_at);
        let looks = self.processes.values().filter_map(|process| Some(process.running()?.deadline()));
        let machine = self.machine.iter().map(Machine::deadline);
        starts.chain(looks).chain(machine).fold(self.next_look, MonoMs::min)
    }

    fn wait(&self, wait_ms: u64) -> Vec<Source> {
        let mut sources = vec![Source::Signal];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        for button in self.machine.iter().flat_map(Machine::buttons) {
            add(Source::Button, button, PollFlags::IN);
        }
        if let Some(fd) = self.bus.fd() {
            let flags = if self.bus.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
            add(Source::Bus, fd, flags | PollFlags::IN);
        }
        for (name, process) in &self.processes {
            let Some(running) = process.running() else { continue };
            add(Source::Exit(name.clone()), running.pidfd.as_fd(), PollFlags::IN);
            let flags = if running.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
            if let Some(control) = running.control() {
                add(Source::Control(name.clone()), control, flags | PollFlags::IN);
            }
            if let Some(output) = running.output() {
                add(Source::Output(name.clone()), output, PollFlags::IN);
            }
        }
        for (name, channel) in &self.callers {
            add(Source::Call(name.clone()), channel.as_fd(), PollFlags::IN);
        }
        let timeout = Timespec { tv_sec: (wait_ms / 1000) as _, tv_nsec: (wait_ms % 1000 * 1_000_000) as _ };
        // An interrupted wait is a short one.
        if poll(&mut fds, Some(&timeout)).is_err() {
            return Vec::new();
        }
        let hits: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        sources.into_iter().zip(hits).filter(|(_, hit)| *hit).map(|(source, _)| source).collect()
    }

    fn on_time(&mut self) {
        let now = clock::mono();
        self.look_after_machine(now);
        if self.stopping.is_some() {
            self.go_on_stopping(now);
            return;
        }
        let due = self.processes.iter().filter(|(_, p)| p.start_at().is_some_and(|at| at <= now));
        let due: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.start(name);
        }
        self.look_at_health(now);
        if self.next_look <= now {
            self.next_look = now.plus_s(LOOK_S);
            publish::<BoxMetrics>(&mut self.bus, "", &facts::box_metrics(self.disk.as_ref()));
            let names: Vec<Name> = self.processes.keys().cloned().collect();
            for name in names {
                self.publish_service(&name);
            }
        }
    }

    fn look_after_machine(&mut self, now: MonoMs) {
        let is_ready = |name: &String| {
            let process = self.processes.get(&(name.clone(), String::new()));
            process.and_then(Process::running).is_some_and(Running::is_ready)
        };
        let ready =
            if self.stopping.is_none() { self.order.iter().filter(|name| is_ready(name)).count() } else { 0 };
        let health = Health { ready, all: self.order.len() };
        let Some(machine) = &mut self.machine else { return };
        let running = self.processes.values().filter_map(Process::running);
        let own: BTreeSet<i32> = running.map(|running| running.pid.as_raw_nonzero().get()).collect();
        machine.reap(&own);
        machine.on_time(now, health);
        if let Some(slots) = machine.observed() {
            publish::<SlotsObserved>(&mut self.bus, "", &slots);
        }
        if self.stopping.is_some() {
            return;
        }
        let wanted = self.bus.value(BootDesired::NAME, "").and_then(|bytes| postcard::from_bytes(bytes).ok());
        let is_hopeless = machine.is_hopeless(now);
        if is_hopeless {
            log::error(format_args!("this version is on trial and does not come up: the box starts again"));
        }
        if is_hopeless || wanted.is_some_and(|wanted| machine.follow(now, &wanted)) {
            machine.ending = Ending::Restart;
            self.begin_stopping(now);
        }
    }

    /// Starts a service, or plans another try.
    fn start(&mut self, name: Name) {
        let Some(manifest) = self.manifest(&name.0) else { return };
        let group = name.0.clone();
        // Two of it must never run: whatever is left of the last one goes before.
        let cleared = self.cgroups.remove(&group);
        let started = cleared
            .and_then(|()| self.cgroups.make_service(&group, manifest.limits))
            .map_err(|error| error.to_string())
            .and_then(|()| self.spawn(&manifest, &group).map_err(|error| chain(&error)));
        self.say_missing();
        let now = clock::mono();
        match started {
            Ok(running) => {
                let Some(process) = self.processes.get_mut(&name) else { return };
                process.started(running);
                self.connect(&name, &manifest, Vec::new());
                log::info(format_args!("{} started", name.0));
            }
            Err(what) => {
                let Some(process) = self.processes.get_mut(&name) else { return };
                let at = process.died(now, manifest.restart.backoff_ms);
                let wait_s = at.since_ms(now) as f64 / 1000.0;
                log::error(format_args!("{} cannot be started, next try in {wait_s} s: {what}", name.0));
            }
        }
        self.publish_service(&name);
    }

    fn spawn(&self, manifest: &Manifest, group: &str) -> Result<Running, SpawnError> {
        let procs = self.cgroups.procs_files(group);
        let cage = spawn::cage(manifest, &self.roots, &self.bins, procs)?;
        let spawned = spawn::spawn(&cage, manifest.network)?;
        Ok(Running::new(spawned, clock::mono()))
    }

    /// Hands the launch message to a process that has just started, and new pairs to it and all it deals with.
    fn connect(&mut self, name: &Name, manifest: &Arc<Manifest>, fds: Vec<(String, OwnedFd)>) {
        let launch = self.launch(manifest, &name.1);
        let party = Party { manifest, key: &name.1 };
        self.tell(name, |running| running.launch(launch));
        let peers: Vec<Name> = self.processes.keys().cloned().collect();
        for peer in peers {
            let is_running = self.processes.get(&peer).is_some_and(|process| process.running().is_some());
            let Some(peer_manifest) = self.manifest(&peer.0).filter(|_| is_running) else {
                continue;
            };
            let other = Party { manifest: &peer_manifest, key: &peer.1 };
            for (own, its) in wiring::between(party, other) {
                self.pair(|init, a, b| {
                    init.tell(name, |running| running.channel(own, a));
                    init.tell(&peer, |running| running.channel(its, b));
                });
            }
        }
        for role in wiring::with_init(party) {
            self.pair(|init, own, its| {
                init.take_end(name, &role, own);
                init.tell(name, |running| running.channel(role, its));
            });
        }
        self.tell(name, |running| {
            for (fd_name, fd) in fds {
                running.fd(fd_name, fd);
            }
            running.go();
        });
    }

    fn pair(&mut self, hand_out: impl FnOnce(&mut Init, Channel, Channel)) {
        match Channel::pair() {
            Ok((a, b)) => hand_out(self, a, b),
            Err(error) => log::error(format_args!("no channel: {error}")),
        }
    }

    fn tell(&mut self, name: &Name, say: impl FnOnce(&mut Running)) {
        if let Some(running) = self.processes.get_mut(name).and_then(Process::running_mut) {
            say(running);
        }
    }

    /// init's own end of a pair.
    fn take_end(&mut self, name: &Name, role: &Role, channel: Channel) {
        match role {
            Role::CallTo { .. } => {
                self.callers.insert(name.clone(), Arc::new(channel));
            }
            Role::Raw { kind, .. } if kind == "source" => log::install(channel),
            _ => self.bus.install(channel),
        }
    }

    fn launch(&self, manifest: &Manifest, key: &str) -> ipc::boot::Launch {
        let mut settings = self.options.settings.clone();
        let mode = if self.machine.is_some() { "booted" } else { "hosted" };
        settings.insert("mode".into(), mode.into());
        settings.insert("instance".into(), self.options.instance.clone());
        if self.options.is_verbose {
            settings.insert("verbose".into(), "1".into());
        }
        let readers = match manifest.name.as_str() {
            "bus" => {
                let own = (INIT.to_owned(), vec![BootDesired::NAME.to_owned()]);
                self.manifests.iter().map(|m| (m.name.clone(), m.reads.clone())).chain([own]).collect()
            }
            _ => BTreeMap::new(),
        };
        ipc::boot::Launch { manifest: manifest.clone(), key: key.into(), settings, readers }
    }

    fn exited(&mut self, name: &Name) {
        self.wrote(name);
        let Some(process) = self.processes.get_mut(name) else { return };
        let Some(how) = process.reap() else { return };
        self.callers.remove(name);
        if !name.1.is_empty() {
            self.shim_ended(name, &how);
            return;
        }
        if self.stopping.is_some() {
            self.processes.remove(name);
            return;
        }
        let now = clock::mono();
        let backoff_ms = self.manifest(&name.0).map_or(0, |m| m.restart.backoff_ms);
        if let Some(process) = self.processes.get_mut(name) {
            let at = process.died(now, backoff_ms);
            let wait_ms = at.since_ms(now);
            log::error(format_args!("{} ended ({how}), started again in {wait_ms} ms", name.0));
        }
        // Whatever it left behind in its group does not outlive it.
        if let Err(error) = self.cgroups.remove(&name.0) {
            log::error(format_args!("{}", chain(&error)));
        }
        self.publish_service(name);
    }

    fn spoke(&mut self, name: &Name) {
        if let Some(running) = self.processes.get_mut(name).and_then(Process::running_mut) {
            running.hear();
        }
    }

    /// stderr of a process becomes log lines.
    fn wrote(&mut self, name: &Name) {
        let title = if name.1.is_empty() { name.0.clone() } else { format!("{}/{}", name.0, name.1) };
        // What log writes are the lines of all, for a human who looks on; without log each is shown as it is.
        let has_log = self.order.iter().any(|name| name == "log");
        let show = |text: std::fmt::Arguments<'_>| {
            // stderr may be gone.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), text);
        };
        if let Some(running) = self.processes.get_mut(name).and_then(Process::running_mut) {
            running.read_output(|line| {
                if name.0 == "log" {
                    show(format_args!("{line}\n"));
                } else if !has_log {
                    show(format_args!("{title}: {line}\n"));
                }
                // Its own lines would come back to log for ever.
                if name.0 != "log" && has_log {
                    log::service_line(&title, line);
                }
            });
        }
    }

    fn asked(&mut self, name: Name) {
        let Some(channel) = self.callers.get(&name).cloned() else { return };
        match IncomingCall::receive(&name.0, &name.1, &channel) {
            Ok(Some(call)) => self.answer(call),
            Ok(None) => {}
            Err(FrameError::Closed | FrameError::Os { .. }) => {
                self.callers.remove(&name);
            }
            Err(error) => log::error(format_args!("unreadable call of {}: {error}", name.0)),
        }
    }

    fn publish_service(&mut self, name: &Name) {
        let Some(process) = self.processes.get(name) else { return };
        if !name.1.is_empty() {
            return;
        }
        let running = process.running();
        let pid = running.map(|running| running.pid.as_raw_nonzero().get());
        let value = observed::ServiceObserved {
            name: name.0.clone(),
            pid,
            restarts: process.restarts(),
            started: running.map_or(MonoMs(0), |running| running.started),
            memory_bytes: pid.map_or(0, facts::memory_of),
            memory_limit_bytes: self
                .manifest(&name.0)
                .map_or(0, |manifest| u64::from(manifest.limits.memory_max_mib) << 20),
            cpu_ns: self.cgroups.cpu_ns(&name.0),
        };
        publish::<ServiceObserved>(&mut self.bus, &name.0, &value);
        let is_all = self.order.iter().all(|name| self.bus_has(name));
        if is_all {
            self.bus.synced(ServiceObserved::NAME);
        }
    }

    fn bus_has(&self, service: &str) -> bool {
        self.bus.has_published(ServiceObserved::NAME, service)
    }

    fn say_missing(&mut self) {
        for what in self.cgroups.missing() {
            log::warn(format_args!("limit not enforced: {what}"));
        }
    }

    fn signalled(&mut self) {
        let mut buffer = [0_u8; 128];
        if rustix::io::read(&self.signals, &mut buffer).is_err() || self.stopping.is_some() {
            return;
        }
        // Hosted, both signals ask for the same. To the first process of a box SIGINT is the kernel's way to say that
        // somebody at the keyboard wants a restart.
        let number = i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
        if let Some(machine) = &mut self.machine {
            machine.ending = if number == libc::SIGINT { Ending::Restart } else { Ending::PowerOff };
        }
        self.begin_stopping(clock::mono());
    }

    fn pressed(&mut self) {
        if self.machine.as_mut().is_some_and(Machine::is_pressed) && self.stopping.is_none() {
            log::info(format_args!("the power button was pressed"));
            self.begin_stopping(clock::mono());
        }
    }
}

fn publish<T: Topic>(bus: &mut Bus, key: &str, value: &T::Value) {
    match postcard::to_allocvec(value) {
        Ok(bytes) => bus.publish(T::NAME, key, bytes),
        Err(error) => log::error(format_args!("cannot encode {}: {error}", T::NAME)),
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn beside_this() -> Result<PathBuf, InitError> {
    let own = std::env::current_exe()
        .map_err(|source| InitError::Os { call: "finding the own executable", source })?;
    Ok(own.parent().map_or_else(PathBuf::new, PathBuf::from))
}

/// SIGTERM and SIGINT as a descriptor.
fn signal_fd() -> Result<OwnedFd, InitError> {
    // SAFETY: the set lives on the stack for all calls; signalfd makes a new descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            let source = std::io::Error::last_os_error();
            return Err(InitError::Os { call: "signalfd", source });
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
