// SPDX-License-Identifier: Apache-2.0
//! Process shim: starts one app once, keeps it, owns its console and tells run how it ended.
//!
//! Single-threaded, since it makes namespaces and forks. It decides nothing: run says when, the image says what, net and
//! vault furnish. Before the app runs it holds the capabilities of its manifest; then it gives up all of them and
//! confines itself ([`confine`]). What it reads of foreign origin: its app's output, as bytes, and the first line of what
//! the app answers to its probe ([`probe`]).
//!
//! States are [`ipc::shim::ShimPhase`]. Limits: [`crate::output`].

pub mod confine;
mod probe;
mod start;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ipc::frame::Channel;
use ipc::shim::{ShimEvent, ShimPhase, ShimRequest, ShimStatus, StartApp};
use model::log::LogSeverity;
use model::observed::{AppMetrics, Exit};
use model::reason::{Fault, Reason};
use model::time::MonoMs;
use service::{ChannelEvent, Event, Service};

use crate::container::cgroup::Gauges;
use crate::container::{Ended, Netns, Running, seccomp::Filter, signal};
use crate::output::{Line, Output, Stream};
use probe::Prober;

const ENDED: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const PROBE: u64 = 3;
/// Bytes taken from a pipe at once: all it holds.
const READ_BYTES: usize = 64 * 1024;
/// While log is full or away, lines are offered again this often.
const LOG_RETRY_MS: u64 = 200;
/// How long an app has when the whole node is stopped.
const NODE_STOP_TIMEOUT_S: u32 = 10;

/// Made before run says start, so that it is not waited for then.
struct Prepared {
    netns: Netns,
    filter: Filter,
}

/// The app while there is one.
struct App {
    running: Running,
    gauges: Gauges,
    /// Asked until it is stopped.
    prober: Option<Prober>,
    stop_signal: i32,
    kill_at: Option<MonoMs>,
    /// Processes it was refused up to the last look, and whether it wanted more since the one before, or still has all it
    /// may have.
    pids_refused: u64,
    wants_processes: bool,
}

struct Shim {
    service: Service,
    run: Option<Arc<Channel>>,
    prepared: Option<Result<Prepared, Fault>>,
    told: Option<StartApp>,
    phase: ShimPhase,
    app: Option<App>,
    output: Output,
    is_stopping_node: bool,
}

/// The main of the shim.
pub fn run(service: Service) {
    let output = Output::new(service.now().mono);
    let mut shim = Shim {
        prepared: Some(prepare()),
        service,
        run: None,
        told: None,
        phase: ShimPhase::Idle,
        app: None,
        output,
        is_stopping_node: false,
    };
    while !shim.is_done() {
        let deadline = shim.deadline();
        let event = shim.service.next(deadline);
        shim.handle(event);
    }
}

fn prepare() -> Result<Prepared, Fault> {
    let filter = Filter::compile().map_err(|error| Fault::new(Reason::Internal, error.to_string()))?;
    // The manifest gives a shim an empty network namespace: it becomes the app's.
    let netns = Netns::prepare_own().map_err(|error| Fault::new(Reason::StartFailed, error.to_string()))?;
    Ok(Prepared { netns, filter })
}

impl Shim {
    fn is_done(&self) -> bool {
        self.is_stopping_node && self.app.is_none() && self.output.next().is_none()
    }

    fn deadline(&self) -> Option<MonoMs> {
        let kill_at = self.app.as_ref().and_then(|app| app.kill_at);
        let probe_at = self.app.as_ref().and_then(|app| app.prober.as_ref()).map(Prober::deadline);
        let log_at = self.output.next().map(|_| self.service.now().mono.plus_ms(LOG_RETRY_MS));
        [kill_at, probe_at, log_at].into_iter().flatten().min()
    }

    fn handle(&mut self, event: Event<()>) {
        match event {
            Event::Channel(ChannelEvent::Opened { kind, channel, .. }) if kind == "run" => {
                self.run = Some(channel);
                self.tell_status();
                self.take_requests();
            }
            Event::Channel(ChannelEvent::Readable { kind, .. }) if kind == "run" => self.take_requests(),
            Event::Channel(ChannelEvent::Closed { kind, .. }) if kind == "run" => self.run = None,
            Event::Channel(_) | Event::Call(_) | Event::Topics(_) | Event::Worker(()) => {}
            Event::Readable(ENDED) => self.reap(),
            Event::Readable(STDOUT) => self.read(Stream::Stdout),
            Event::Readable(STDERR) => self.read(Stream::Stderr),
            Event::Readable(PROBE) => self.probe(true),
            Event::Readable(_) => {}
            Event::Deadline => {
                self.kill_when_due();
                self.probe(false);
            }
            Event::Stop => {
                self.is_stopping_node = true;
                self.stop(NODE_STOP_TIMEOUT_S);
            }
        }
        self.hand_over_lines();
    }

    fn take_requests(&mut self) {
        loop {
            let Some(channel) = self.run.clone() else { return };
            match channel.try_recv::<ShimRequest>() {
                Ok(Some((request, _))) => self.obey(request),
                Ok(None) => return,
                Err(error) => {
                    service::log::warn(format_args!("run's channel: {error}"));
                    self.run = None;
                }
            }
        }
    }

    fn obey(&mut self, request: ShimRequest) {
        match request {
            ShimRequest::Start(told) => self.start(*told),
            ShimRequest::Stop { timeout_s } => self.stop(timeout_s),
            ShimRequest::Status => self.tell_status(),
            ShimRequest::Metrics => self.tell_metrics(),
        }
    }

    fn start(&mut self, told: StartApp) {
        let Some(prepared) = self.prepared.take() else { return };
        self.told = Some(told.clone());
        self.enter(ShimPhase::Starting);
        let started = prepared.and_then(|prepared| start::start(&self.service, &prepared, &told.spec));
        let started = started.and_then(|started| {
            confine::confine(told.spec.probe.as_ref().map(|probe| probe.port))
                .map_err(|error| Fault::new(Reason::Internal, format!("shim: {error}")))
                .map(|()| started)
        });
        match started {
            Ok((running, gauges)) => self.keep(running, gauges, &told),
            Err(fault) => {
                service::log::error(format_args!("app {}: not started: {fault}", told.spec.name));
                self.enter(ShimPhase::Failed(fault));
            }
        }
    }

    fn keep(&mut self, running: Running, gauges: Gauges, told: &StartApp) {
        let duplicates =
            [(ENDED, running.pidfd()), (STDOUT, running.stdout.as_fd()), (STDERR, running.stderr.as_fd())]
                .map(|(token, fd)| (token, fd.try_clone_to_owned()));
        for (token, fd) in duplicates {
            match fd {
                Ok(fd) => self.service.watch(token, fd),
                Err(error) => {
                    // Dropping the app ends it.
                    let fault = Fault::new(Reason::Internal, format!("cannot watch the app: {error}"));
                    return self.enter(ShimPhase::Failed(fault));
                }
            }
        }
        let stop_signal = signal::number(&told.spec.image.stop_signal).unwrap_or(signal::DEFAULT_STOP);
        service::log::info(format_args!(
            "app {}: runs, process {}, instance {}, start {}",
            told.spec.name,
            running.pid(),
            told.spec.instance,
            told.start
        ));
        let now = self.service.now();
        let (pids_refused, _) = gauges.pids_refused();
        let prober = told.spec.probe.clone().map(|probe| Prober::new(probe, now.mono));
        self.app = Some(App {
            running,
            gauges,
            prober,
            stop_signal,
            kill_at: None,
            pids_refused,
            wants_processes: false,
        });
        self.enter(ShimPhase::Running { since: now.mono, started_at: now.wall.time() });
    }

    fn stop(&mut self, timeout_s: u32) {
        let now = self.service.now().mono;
        let Some(app) = &mut self.app else { return };
        let kill_at = now.plus_s(u64::from(timeout_s));
        // Said again, it may only become shorter.
        app.kill_at = Some(app.kill_at.map_or(kill_at, |at| at.min(kill_at)));
        if self.phase == ShimPhase::Stopping {
            return;
        }
        if app.prober.take().is_some() {
            self.service.unwatch(PROBE);
        }
        if let Err(error) = app.running.signal(app.stop_signal) {
            service::log::warn(format_args!("stop signal not delivered: {error}"));
        }
        self.enter(ShimPhase::Stopping);
    }

    fn probe(&mut self, is_readable: bool) {
        let now = self.service.now().mono;
        let Some(prober) = self.app.as_mut().and_then(|app| app.prober.as_mut()) else { return };
        let service = &mut self.service;
        let changed = prober.advance(now, is_readable, |socket| match socket {
            Some(socket) => service.watch(PROBE, socket),
            None => drop(service.unwatch(PROBE)),
        });
        if changed {
            let health = prober.health();
            service::log::info(format_args!("probe: {health:?}"));
            self.tell_status();
        }
    }

    fn kill_when_due(&mut self) {
        let now = self.service.now().mono;
        let Some(app) = &mut self.app else { return };
        if app.kill_at.is_some_and(|at| at <= now) {
            // Every process of the app ends with its first.
            if let Err(error) = app.running.signal(libc::SIGKILL) {
                service::log::error(format_args!("app not killed: {error}"));
            }
            app.kill_at = None;
        }
    }

    fn reap(&mut self) {
        let Some(app) = &mut self.app else { return };
        let ended = match app.running.wait() {
            Ok(Some(Ended(exit))) => exit,
            Ok(None) => return,
            Err(error) => {
                service::log::error(format_args!("app's exit status is lost: {error}"));
                Exit::Signal(libc::SIGKILL)
            }
        };
        let exit =
            if ended != Exit::Code(0) && app.gauges.saw_memory_kill() { Exit::OutOfMemory } else { ended };
        self.read(Stream::Stdout);
        self.read(Stream::Stderr);
        for (token, stream) in [(STDOUT, Stream::Stdout), (STDERR, Stream::Stderr)] {
            self.output.finish(stream);
            self.service.unwatch(token);
        }
        self.service.unwatch(ENDED);
        self.service.unwatch(PROBE);
        self.app = None;
        let name = self.told.as_ref().map_or("", |told| &told.spec.name);
        service::log::info(format_args!("app {name}: ended, {exit:?}"));
        self.enter(ShimPhase::Ended(exit));
    }

    /// All that is in the pipe now. At its end it is watched no more.
    fn read(&mut self, stream: Stream) {
        let now = self.service.now().mono;
        let Some(app) = &self.app else { return };
        let (pipe, token): (&OwnedFd, u64) = match stream {
            Stream::Stdout => (&app.running.stdout, STDOUT),
            Stream::Stderr => (&app.running.stderr, STDERR),
        };
        let mut buffer = vec![0; READ_BYTES];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => {
                self.output.finish(stream);
                self.service.unwatch(token);
            }
            Ok(count) => self.output.push(now, stream, &buffer[..count]),
            // Woken for nothing, or tried again when woken next.
            Err(_) => {}
        }
    }

    fn hand_over_lines(&mut self) {
        let Some(told) = &self.told else { return };
        while let Some(line) = self.output.next() {
            let (severity, text) = match line {
                Line::Text { stream: Stream::Stdout, text } => (LogSeverity::Info, text),
                Line::Text { stream: Stream::Stderr, text } => (LogSeverity::Warning, text),
                Line::Lost(count) => (LogSeverity::Warning, format!("{count} lines lost here")),
            };
            if !service::log::app_line(&told.spec.name, severity, &text) {
                return;
            }
            self.output.taken();
        }
    }

    fn enter(&mut self, phase: ShimPhase) {
        self.phase = phase;
        self.tell_status();
    }

    fn tell_status(&mut self) {
        let Ok(app) = self.service.key().parse() else { return };
        let (instance, start) = self.told.as_ref().map_or((0, 0), |told| (told.spec.instance, told.start));
        let health = self.app.as_ref().and_then(|app| app.prober.as_ref()).map(Prober::health);
        let phase = self.phase.clone();
        let wants_processes = self.app.as_ref().is_some_and(|app| app.wants_processes);
        self.tell(&ShimEvent::Status(ShimStatus { app, instance, start, phase, health, wants_processes }));
    }

    fn tell_metrics(&mut self) {
        let Ok(id) = self.service.key().parse() else { return };
        let Some(app) = &mut self.app else { return };
        let used = app.gauges.read();
        let (refused, is_full) = app.gauges.pids_refused();
        let wants_processes = refused > app.pids_refused || is_full;
        let is_news = wants_processes != app.wants_processes;
        (app.pids_refused, app.wants_processes) = (refused, wants_processes);
        self.tell(&ShimEvent::Metrics(AppMetrics {
            app: id,
            cpu_ns: used.cpu_ns,
            memory_used_bytes: used.memory_used_bytes,
            memory_peak_bytes: used.memory_peak_bytes,
            memory_limit_bytes: used.memory_limit_bytes,
            pids: used.pids,
        }));
        if is_news {
            self.tell_status();
        }
    }

    /// run that does not read is being restarted and gets the status with its new channel.
    fn tell(&mut self, event: &ShimEvent) {
        if let Some(channel) = &self.run
            && let Err(error) = channel.try_send(event, &[])
        {
            service::log::debug(format_args!("run not told: {error}"));
        }
    }
}
