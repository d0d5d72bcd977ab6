// SPDX-License-Identifier: Apache-2.0
//! One process: running with its channel to init and its output, or waiting to be started again.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::boot::{FromInit, Launch, Role, ToInit};
use ipc::frame::{Channel, FrameError};
use ipc::limits::MAX_LOG_LINE_BYTES;
use model::time::MonoMs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use service::clock;

use crate::adopt::Found;
use crate::backoff::{self, Death};
use crate::facts;
use crate::heartbeat::{Finding, Heartbeat, SERVICE_SILENT_MS, SHIM_SILENT_MS};
use crate::spawn::Spawned;

/// Reads of a process's output in one round: a process that writes without end does not stop init.
const OUTPUT_READS: usize = 8;
/// Messages taken from a process in one round, for the same reason: it has one to say.
const HEARD: usize = 16;

/// A process of the node.
#[derive(Debug, Default)]
pub(super) struct Process {
    running: Option<Running>,
    /// When it is to be started; nothing for one that is running or never again.
    start_at: Option<MonoMs>,
    deaths: Vec<Death>,
    /// When the one that ran last was ready.
    was_ready: Option<MonoMs>,
    restarts: u32,
}

/// A process that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) started: MonoMs,
    /// Since when; nothing before.
    ready: Option<MonoMs>,
    heartbeat: Heartbeat,
    control: Option<Channel>,
    queue: VecDeque<(FromInit, Option<OwnedFd>)>,
    output: Option<OwnedFd>,
    line: Vec<u8>,
}

impl Process {
    pub(super) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    pub(super) fn running_mut(&mut self) -> Option<&mut Running> {
        self.running.as_mut()
    }

    pub(super) fn start_at(&self) -> Option<MonoMs> {
        self.start_at
    }

    pub(super) fn restarts(&self) -> u32 {
        self.restarts
    }

    pub(super) fn started(&mut self, running: Running) {
        if !self.deaths.is_empty() {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.start_at = None;
        self.running = Some(running);
    }

    /// When it is started again.
    pub(super) fn died(&mut self, now: MonoMs, backoff_ms: u32) -> MonoMs {
        backoff::forget(&mut self.deaths, now);
        self.deaths.push(Death::new(now, self.was_ready.take()));
        let at = backoff::restart_at(&self.deaths, backoff_ms);
        self.start_at = Some(at);
        at
    }

    pub(super) fn flush(&mut self) {
        if let Some(running) = &mut self.running {
            running.flush();
        }
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            // It may be gone already.
            let _ = pidfd_send_signal(&running.pidfd, signal);
        }
    }

    /// How it ended, if it did.
    pub(super) fn reap(&mut self) -> Option<String> {
        let running = self.running.as_ref()?;
        let mut ended = [PollFd::new(&running.pidfd, PollFlags::IN)];
        if !poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0) {
            return None;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let how = match waitid(WaitId::PidFd(running.pidfd.as_fd()), options) {
            Ok(None) | Err(Errno::INTR) => return None,
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "unknown end".into(),
            },
            // A shim of an init before this one: another process learns how it ended.
            Err(Errno::CHILD) => "its end was not ours to see".into(),
            Err(error) => format!("unknown end: {error}"),
        };
        self.was_ready = self.running.take().and_then(|running| running.ready);
        Some(how)
    }
}

impl Running {
    pub(super) fn new(spawned: Spawned, started: MonoMs) -> Running {
        Running {
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            started,
            ready: None,
            heartbeat: Heartbeat::new(started, SERVICE_SILENT_MS),
            control: Some(spawned.control),
            queue: VecDeque::new(),
            output: Some(spawned.output),
            line: Vec::new(),
        }
    }

    /// A shim that an init before this one started. That it is ready is known when it answers.
    pub(super) fn adopted(found: Found, now: MonoMs) -> Running {
        Running {
            pid: found.pid,
            pidfd: found.pidfd,
            started: now,
            ready: None,
            heartbeat: Heartbeat::new(now, SHIM_SILENT_MS),
            control: Some(found.control),
            queue: VecDeque::new(),
            output: found.output,
            line: Vec::new(),
        }
    }

    /// A shim may be silent for longer than a service.
    pub(super) fn keeps_an_app(mut self) -> Running {
        self.heartbeat = Heartbeat::new(self.started, SHIM_SILENT_MS);
        self
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    pub(super) fn deadline(&self) -> MonoMs {
        self.heartbeat.deadline()
    }

    /// Asks whether it goes on, when it is time; says what is wrong with one that does not answer.
    pub(super) fn look(&mut self, now: MonoMs) -> Finding {
        let pid = self.pid.as_raw_nonzero().get();
        let finding = self.heartbeat.look(now, || facts::state_of(pid));
        if finding == Finding::Ask {
            self.say(FromInit::Ping, None);
        }
        finding
    }

    pub(super) fn control(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn launch(&mut self, launch: Launch) {
        self.say(FromInit::Launch(Box::new(launch)), None);
    }

    pub(super) fn channel(&mut self, role: Role, channel: Channel) {
        self.say(FromInit::Channel(role), Some(channel.into()));
    }

    pub(super) fn fd(&mut self, name: String, fd: OwnedFd) {
        self.say(FromInit::Fd { name }, Some(fd));
    }

    pub(super) fn go(&mut self) {
        self.say(FromInit::Go, None);
    }

    pub(super) fn stop(&mut self) {
        self.say(FromInit::Stop, None);
    }

    fn say(&mut self, message: FromInit, fd: Option<OwnedFd>) {
        self.queue.push_back((message, fd));
        self.flush();
    }

    fn flush(&mut self) {
        while let (Some(control), Some((message, fd))) = (&self.control, self.queue.front()) {
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            match control.try_send(message, &fds) {
                Ok(true) => {
                    self.queue.pop_front();
                }
                Ok(false) => return,
                // It is dying; its end comes by the pidfd.
                Err(_) => {
                    self.control = None;
                    self.queue.clear();
                }
            }
        }
    }

    pub(super) fn hear(&mut self) {
        for _ in 0..HEARD {
            let Some(control) = &self.control else { return };
            match control.try_recv::<ToInit>() {
                Ok(Some((ToInit::Ready | ToInit::Pong, _))) => {
                    let now = clock::mono();
                    self.ready.get_or_insert(now);
                    self.heartbeat.heard(now);
                }
                Ok(None) => return,
                Err(FrameError::Codec(_)) => {}
                Err(_) => self.control = None,
            }
        }
    }

    /// Whole lines of what it wrote; a long one in pieces.
    pub(super) fn read_output(&mut self, mut each: impl FnMut(&str)) {
        let mut buffer = [0; 4096];
        for _ in 0..OUTPUT_READS {
            let Some(output) = &self.output else { return };
            let count = match rustix::io::read(output, &mut buffer) {
                Ok(count) => count,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(_) => 0,
            };
            if count == 0 {
                self.output = None;
            }
            for &byte in &buffer[..count] {
                if byte != b'\n' {
                    self.line.push(byte);
                }
                if byte == b'\n' || self.line.len() >= MAX_LOG_LINE_BYTES {
                    each(String::from_utf8_lossy(&self.line).trim_end());
                    self.line.clear();
                }
            }
        }
    }
}
