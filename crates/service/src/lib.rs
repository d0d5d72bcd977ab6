// SPDX-License-Identifier: Apache-2.0
//! What every process of the node shares: taking over the process from init, the loop, topics, calls, log, confinement.
//!
//! A process is one main loop ([`Service::next`]) and worker threads where something must block; no async runtime.
//! It owns no decision. Its world is what init handed over: channels, directories and settings; it opens no socket.
//!
//! ```text
//! main ─ Service::start ─ launch message, log, landlock, seccomp ─┬─ next() → Event ─ decide ─ publish, call, reply ─┐
//!                                                                └──────────────────────────────────────────────────┘
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ipc::calls::Call;
use ipc::frame::{Channel, FrameError};
use ipc::topics::Topic;
use model::log::LogSeverity;
use model::time::{MonoMs, Now, Wall};

/// A process of the node. `W` is what its worker threads post to the main loop.
#[derive(Debug)]
pub struct Service<W = ()> {
    dirs: Dirs,
    settings: BTreeMap<String, String>,
    workers: PhantomData<W>,
}

/// Why the process could not be taken over. Nothing to repair from inside: init starts it again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("not started by init: descriptor 3 is no channel")]
    NotLaunched,
    #[error("no launch message from init")]
    Launch(#[from] FrameError),
}

/// Directories and files the manifest grants, where they lie inside the process's own root.
#[derive(Clone, Debug, Default)]
pub struct Dirs {
    /// EVE-shaped config directory.
    pub config: Option<PathBuf>,
    /// Own private directory under persist.
    pub state: Option<PathBuf>,
    named: BTreeMap<String, PathBuf>,
}

impl Dirs {
    /// Another path of the manifest, by its name there.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.named.get(name).map(PathBuf::as_path)
    }
}

/// What wakes the main loop.
#[derive(Debug)]
pub enum Event<W> {
    /// Something of this topic changed or it became synced; conflated.
    Topics(&'static str),
    /// Another process asks something.
    Call(IncomingCall),
    /// A raw channel: shims at run's side, run at a shim's side.
    Channel(ChannelEvent),
    /// Posted by a worker thread.
    Worker(W),
    /// A descriptor given to [`Service::watch`] can be read (or is at its end): its token.
    Readable(u64),
    Deadline,
    /// init asks to end: finish and return from main.
    Stop,
}

/// A raw channel that init made. `kind` names the other side (`shim`, `run`), `key` which one (the app id for shims).
#[derive(Debug)]
pub enum ChannelEvent {
    /// Replaces an older channel of the same kind and key. All channels that stand when the process starts are
    /// reported before anything else.
    Opened {
        kind: String,
        key: String,
        channel: Arc<Channel>,
    },
    /// Take everything with [`Channel::try_recv`]; said again while something waits.
    Readable {
        kind: String,
        key: String,
    },
    Closed {
        kind: String,
        key: String,
    },
}

/// A question of another process. Owned: the answer may be given later; none is given when it is dropped.
#[derive(Debug)]
pub struct IncomingCall {
    from: String,
    key: String,
    fds: Vec<OwnedFd>,
}

impl IncomingCall {
    /// Name of the service that asks.
    pub fn from(&self) -> &str {
        &self.from
    }
    /// Which one of them: the app id where a shim asks, else empty.
    pub fn key(&self) -> &str {
        &self.key
    }
    pub fn decode<C: Call>(&self) -> Result<C::Request, FrameError> {
        Err(FrameError::Closed)
    }
    pub fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }
    /// Answers. An error means that the asker is gone; it asks again if it still wants to know.
    pub fn reply<C: Call>(self, _reply: &C::Reply, _fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        Err(FrameError::Closed)
    }
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the manifest does not allow to call {callee}")]
    NotAllowed { callee: &'static str },
    #[error("{callee} did not answer in time")]
    TimedOut { callee: &'static str },
    #[error("the call to {callee} failed")]
    Frame { callee: &'static str, source: FrameError },
    #[error("the process is being stopped")]
    Stopping,
}

/// Asks one other process; may be used from any thread.
pub struct Caller<C> {
    call: PhantomData<fn() -> C>,
}

impl<C> Clone for Caller<C> {
    fn clone(&self) -> Self {
        Caller { call: PhantomData }
    }
}

impl<C: Call> std::fmt::Debug for Caller<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Caller({})", C::CALLEE)
    }
}

impl<C: Call> Caller<C> {
    /// Asks and waits for the answer; asks again when the callee was restarted meanwhile.
    pub fn call(
        &self,
        _req: &C::Request,
        _fds: &[BorrowedFd<'_>],
        _timeout: Duration,
    ) -> Result<(C::Reply, Vec<OwnedFd>), CallError> {
        Err(CallError::Stopping)
    }
}

/// Gives values of worker threads to the main loop.
pub struct Poster<W> {
    workers: PhantomData<fn(W)>,
}

impl<W> Clone for Poster<W> {
    fn clone(&self) -> Self {
        Poster { workers: PhantomData }
    }
}

impl<W> std::fmt::Debug for Poster<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poster")
    }
}

impl<W: Send> Poster<W> {
    /// Wakes the main loop with [`Event::Worker`]. Waits while the queue is full; false when the process is ending.
    pub fn post(&self, _value: W) -> bool {
        false
    }
}

impl<W: Send + 'static> Service<W> {
    /// Takes over the process: launch message, log, landlock and seccomp of the manifest. Call it first in main,
    /// before any thread.
    pub fn start(_name: &'static str) -> Result<Service<W>, StartError> {
        Err(StartError::NotLaunched)
    }
    pub fn now(&self) -> Now {
        Now { mono: MonoMs(0), wall: Wall::Unset }
    }
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }
    /// A descriptor init handed over by name: for shims `cgroup` (v2) or `cgroup.memory`, `cgroup.cpu`,
    /// `cgroup.pids` (v1): the directories of the app's control group.
    pub fn fd(&self, _name: &str) -> Option<BorrowedFd<'_>> {
        None
    }
    pub fn subscribe<T: Topic>(&mut self) {}
    /// No-op when unchanged.
    pub fn publish<T: Topic>(&mut self, _key: &str, _value: &T::Value) {}
    pub fn remove<T: Topic>(&mut self, _key: &str) {}
    /// All my keys stand: unseen keys of an older epoch go now.
    pub fn synced<T: Topic>(&mut self) {}
    pub fn get<T: Topic>(&self, _key: &str) -> Option<T::Value> {
        None
    }
    pub fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        BTreeMap::new()
    }
    /// The writer has said synced in its present or an earlier epoch: absent is really absent.
    pub fn is_synced<T: Topic>(&self) -> bool {
        false
    }
    pub fn caller<C: Call>(&self) -> Caller<C> {
        Caller { call: PhantomData }
    }
    pub fn poster(&self) -> Poster<W> {
        Poster { workers: PhantomData }
    }
    /// [`Event::Readable`] with this token whenever the descriptor can be read. Replaces an older one of the token.
    pub fn watch(&mut self, _token: u64, _fd: OwnedFd) {}
    pub fn unwatch(&mut self, _token: u64) -> Option<OwnedFd> {
        None
    }
    /// The next thing to do; [`Event::Deadline`] when nothing came before the deadline.
    pub fn next(&mut self, _deadline: Option<MonoMs>) -> Event<W> {
        Event::Stop
    }
    pub fn log(&self, _severity: LogSeverity, _text: impl std::fmt::Display) {}
}

/// What a service's `run` may return.
pub trait Outcome {
    fn failure(self) -> Option<String>;
}

impl Outcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: std::error::Error> Outcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// The whole `main` of a service executable.
pub fn main<W: Send + 'static, O: Outcome>(
    name: &'static str,
    run: impl FnOnce(Service<W>) -> O,
) -> ExitCode {
    match Service::start(name) {
        Ok(service) => match run(service).failure() {
            None => ExitCode::SUCCESS,
            Some(_) => ExitCode::FAILURE,
        },
        Err(_) => ExitCode::FAILURE,
    }
}

/// Log lines of this process, from any thread.
pub mod log {
    use std::fmt::Arguments;

    use model::log::LogSeverity;

    pub fn write(_severity: LogSeverity, _text: Arguments<'_>) {}
    pub fn error(text: Arguments<'_>) {
        write(LogSeverity::Error, text);
    }
    pub fn warn(text: Arguments<'_>) {
        write(LogSeverity::Warning, text);
    }
    pub fn info(text: Arguments<'_>) {
        write(LogSeverity::Info, text);
    }
    pub fn debug(text: Arguments<'_>) {
        write(LogSeverity::Debug, text);
    }
}
