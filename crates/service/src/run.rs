// SPDX-License-Identifier: Apache-2.0
//! The running process: its loop and all it can do from there.
//!
//! One poll over init, bus, calls, raw channels, watched descriptors and the eventfd of worker threads. A call channel
//! is read one question at a time, so that a flood of questions waits in the asker's socket and not in memory here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ipc::boot::Role;
use ipc::calls::Call;
use ipc::client::Topics;
use ipc::frame::{Channel, FrameError};
use ipc::topics::Topic;
use model::log::LogSeverity;
use model::time::{MonoMs, Now};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::bus::Bus;
use crate::call::{Caller, IncomingCall};
use crate::control::{Control, Message};
use crate::flight::{Record, Recorder, Wake};
use crate::start::{Dirs, Launched, StartError, chain};
use crate::{clock, log};

/// Values of worker threads that wait for the main loop; a worker waits when there are more.
const POSTED: usize = 256;
/// Longest sleep: lost wake-ups would end here. None are known.
const LONGEST_POLL_MS: u64 = 60_000;

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
    /// init asks to end: finish and return from main. Said once.
    Stop,
}

/// A raw channel that init made. `kind` names the other side (`shim`, `run`), `key` which one (the app id for shims).
#[derive(Debug)]
pub enum ChannelEvent {
    /// Replaces an older channel of the same kind and key. All channels that stand when the process starts are
    /// reported before anything else.
    Opened { kind: String, key: String, channel: Arc<Channel> },
    /// Take everything with [`Channel::try_recv`]; said again while something waits.
    Readable { kind: String, key: String },
    /// There is room again; only after [`Service::want_write`].
    Writable { kind: String, key: String },
    /// The other end is gone and everything it sent was taken.
    Closed { kind: String, key: String },
}

/// A process of the node. `W` is what its worker threads post to the main loop.
#[derive(Debug)]
pub struct Service<W = ()> {
    launched: Launched,
    bus: Bus,
    changed: BTreeSet<&'static str>,
    incoming: BTreeMap<(String, String), Arc<Channel>>,
    raw: BTreeMap<(String, String), Raw>,
    fds: BTreeMap<String, OwnedFd>,
    watched: BTreeMap<u64, OwnedFd>,
    ready: VecDeque<Event<W>>,
    posted: Receiver<W>,
    poster: Poster<W>,
    /// The last event was a deadline: look at the channels before saying it again.
    said_deadline: bool,
    /// It writes keyframes with a state of its own.
    gives_state: bool,
}

#[derive(Debug)]
struct Raw {
    channel: Arc<Channel>,
    wants_write: bool,
}

/// Gives values of worker threads to the main loop.
pub struct Poster<W> {
    sender: SyncSender<W>,
    wake: Arc<OwnedFd>,
}

impl<W> Clone for Poster<W> {
    fn clone(&self) -> Self {
        Poster { sender: self.sender.clone(), wake: self.wake.clone() }
    }
}

impl<W> std::fmt::Debug for Poster<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poster")
    }
}

impl<W: Send> Poster<W> {
    /// Wakes the main loop with [`Event::Worker`]. Waits while the queue is full; false when the process is ending.
    pub fn post(&self, value: W) -> bool {
        let is_taken = self.sender.send(value).is_ok();
        // The eventfd only wakes; when its counter is full it does so anyway.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
        is_taken
    }
}

/// What a descriptor in the poll belongs to.
enum Source {
    Init,
    Wake,
    Bus,
    Call(String, String),
    Raw(String, String),
    Watched(u64),
}

impl<W: Send + 'static> Service<W> {
    /// Takes over the process: launch message, log, landlock and seccomp of the manifest. Call it first in main,
    /// before any thread.
    pub fn start(name: &'static str) -> Result<Service<W>, StartError> {
        let launched = Launched::receive(name)?;
        let wake = rustix::io::fcntl_dupfd_cloexec(&launched.wake, 0).map_err(StartError::Eventfd)?;
        let (sender, posted) = sync_channel(POSTED);
        let mut service = Service {
            launched,
            bus: Bus::default(),
            changed: BTreeSet::new(),
            incoming: BTreeMap::new(),
            raw: BTreeMap::new(),
            fds: BTreeMap::new(),
            watched: BTreeMap::new(),
            ready: VecDeque::new(),
            posted,
            poster: Poster { sender, wake: Arc::new(wake) },
            said_deadline: false,
            gives_state: false,
        };
        service.bus.recorder = Recorder::open(service.launched.dirs.state.as_deref(), name);
        service.take_messages();
        Ok(service)
    }

    pub fn now(&self) -> Now {
        clock::now()
    }

    pub fn dirs(&self) -> &Dirs {
        &self.launched.dirs
    }

    /// What init said about the node: `mode` (`hosted`), `instance`, and what `--set key=value` said.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.launched.launch.settings
    }

    /// Which instance of a template this is: the app id of a shim, else empty.
    pub fn key(&self) -> &str {
        &self.launched.launch.key
    }

    /// The launch message, for what is not in this interface.
    pub fn launched(&self) -> &Launched {
        &self.launched
    }

    /// A descriptor init handed over by name: for shims `cgroup` (v2) or `cgroup.memory`, `cgroup.cpu`,
    /// `cgroup.pids` (v1): the directories of the app's control group.
    pub fn fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.fds.get(name).map(AsFd::as_fd)
    }

    pub fn subscribe<T: Topic>(&mut self) {
        if !self.launched.launch.manifest.reads.iter().any(|topic| topic == T::NAME) {
            log::error(format_args!("topic {} is not in the manifest: never seen", T::NAME));
        }
        self.bus.subscribe(T::NAME);
    }

    /// No-op when unchanged.
    pub fn publish<T: Topic>(&mut self, key: &str, value: &T::Value) {
        if !self.is_writer::<T>() {
            return;
        }
        match postcard::to_allocvec(value) {
            Ok(value) => self.bus.publish(T::NAME, key, value),
            Err(error) => log::error(format_args!("cannot encode {}: {error}", T::NAME)),
        }
    }

    pub fn remove<T: Topic>(&mut self, key: &str) {
        if self.is_writer::<T>() {
            self.bus.remove(T::NAME, key);
        }
    }

    /// All my keys stand: unseen keys of an older epoch go now.
    pub fn synced<T: Topic>(&mut self) {
        if self.is_writer::<T>() {
            self.bus.synced(T::NAME);
        }
    }

    pub fn get<T: Topic>(&self, key: &str) -> Option<T::Value> {
        self.bus.value(T::NAME, key).and_then(decode::<T>)
    }

    pub fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        let values = self.bus.values(T::NAME);
        values.filter_map(|(key, value)| Some((key.clone(), decode::<T>(value)?))).collect()
    }

    /// The writer has said synced in its present or an earlier epoch: absent is really absent.
    pub fn is_synced<T: Topic>(&self) -> bool {
        self.bus.is_synced(T::NAME)
    }

    pub fn caller<C: Call>(&self) -> Caller<C> {
        Caller::new(self.control())
    }

    pub fn poster(&self) -> Poster<W> {
        self.poster.clone()
    }

    /// [`Event::Readable`] with this token whenever the descriptor can be read. Replaces an older one of the token.
    pub fn watch(&mut self, token: u64, fd: OwnedFd) {
        self.watched.insert(token, fd);
    }

    pub fn unwatch(&mut self, token: u64) -> Option<OwnedFd> {
        self.ready.retain(|event| !matches!(event, Event::Readable(other) if *other == token));
        self.watched.remove(&token)
    }

    /// [`ChannelEvent::Writable`] once this raw channel has room again.
    pub fn want_write(&mut self, kind: &str, key: &str) {
        if let Some(raw) = self.raw.get_mut(&(kind.to_string(), key.to_string())) {
            raw.wants_write = true;
        }
    }

    pub fn log(&self, severity: LogSeverity, text: impl std::fmt::Display) {
        log::write(severity, format_args!("{text}"));
    }

    /// Gives the flight recorder this service's own state, when it begins a new file. Call it before
    /// [`Service::next`], where decisions can be made again from the state and what comes then.
    pub fn keyframe(&mut self, state: impl FnOnce() -> Vec<u8>) {
        self.gives_state = true;
        self.bus.keyframe(clock::now(), || Some(state()));
    }

    /// Records an input of a machine before it is handled. No clear secrets.
    pub fn record_input<T: Serialize>(&mut self, now: Now, input: &T) {
        if let Ok(input) = postcard::to_allocvec(input) {
            self.bus.recorder.record(&Record::Input { now, input });
            self.bus.recorder.flush();
        }
    }

    /// Records an order of a machine. No clear secrets.
    pub fn record_order<T: Serialize>(&mut self, order: &T) {
        if let Ok(order) = postcard::to_allocvec(order) {
            self.bus.recorder.record(&Record::Order { order });
        }
    }

    /// The next thing to do; [`Event::Deadline`] when nothing came before the deadline.
    pub fn next(&mut self, deadline: Option<MonoMs>) -> Event<W> {
        if !self.gives_state {
            self.bus.keyframe(clock::now(), || None);
        }
        let event = self.next_event(deadline);
        let recorder = &mut self.bus.recorder;
        recorder.record(&Record::Woken { now: clock::now(), by: wake_of(&event) });
        // On the file before it is handed over: it may be what the process dies of.
        recorder.flush();
        event
    }

    fn next_event(&mut self, deadline: Option<MonoMs>) -> Event<W> {
        loop {
            let is_due = deadline.is_some_and(|deadline| deadline <= clock::mono());
            if is_due && !self.said_deadline {
                self.said_deadline = true;
                return Event::Deadline;
            }
            self.said_deadline = false;
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            if let Some(topic) = self.changed.pop_first() {
                return Event::Topics(topic);
            }
            self.wait(deadline);
        }
    }

    fn control(&self) -> &Arc<Control> {
        &self.launched.control
    }

    fn is_writer<T: Topic>(&self) -> bool {
        let is_writer = T::WRITER == self.launched.name;
        if !is_writer {
            log::error(format_args!("topic {} is written by {}", T::NAME, T::WRITER));
        }
        is_writer
    }

    /// Waits for one round of whatever comes and sorts it into `ready` and `changed`.
    fn wait(&mut self, deadline: Option<MonoMs>) {
        log::flush();
        self.bus.flush();
        let left = deadline.map_or(LONGEST_POLL_MS, |at| at.since_ms(clock::mono()));
        // A full log is looked at again soon; its channel is not in the poll.
        let left = if log::is_waiting() { left.min(100) } else { left.min(LONGEST_POLL_MS) };
        let timeout = Timespec { tv_sec: (left / 1000) as _, tv_nsec: (left % 1000 * 1_000_000) as _ };
        for (source, flags) in self.poll(&timeout) {
            self.serve(source, flags);
        }
        self.take_messages();
    }

    fn poll(&self, timeout: &Timespec) -> Vec<(Source, PollFlags)> {
        let init = self.control().init_channel();
        let mut sources = vec![Source::Wake];
        let mut fds = vec![PollFd::new(&self.launched.wake, PollFlags::IN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if !self.control().is_closed() {
            add(Source::Init, init.as_fd(), PollFlags::IN);
        }
        if let Some(fd) = self.bus.fd() {
            let flags = if self.bus.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
            add(Source::Bus, fd, flags | PollFlags::IN);
        }
        for ((service, key), channel) in &self.incoming {
            let source = Source::Call(service.clone(), key.clone());
            add(source, channel.as_fd(), PollFlags::IN);
        }
        for ((kind, key), raw) in &self.raw {
            let flags = if raw.wants_write { PollFlags::OUT } else { PollFlags::empty() };
            let source = Source::Raw(kind.clone(), key.clone());
            add(source, raw.channel.as_fd(), flags | PollFlags::IN);
        }
        for (token, fd) in &self.watched {
            add(Source::Watched(*token), fd.as_fd(), PollFlags::IN);
        }
        match poll(&mut fds, Some(timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Vec::new(),
            Ok(_) => {
                let flags: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
                let hits = sources.into_iter().zip(flags);
                hits.filter(|(_, flags)| !flags.is_empty()).collect()
            }
            Err(error) => {
                log::error(format_args!("poll failed: {error}"));
                Vec::new()
            }
        }
    }

    fn serve(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Wake => {
                let mut counter = [0; 8];
                // Only empties the counter.
                let _ = rustix::io::read(&self.launched.wake, &mut counter);
                self.ready.extend(self.posted.try_iter().map(Event::Worker));
            }
            Source::Init => self.control().pump(),
            Source::Bus => {
                self.bus.take(&mut self.changed);
                self.bus.flush();
            }
            Source::Call(service, key) => self.take_call(service, key),
            Source::Raw(kind, key) => self.look_at_raw(kind, key, flags),
            Source::Watched(token) => self.ready.push_back(Event::Readable(token)),
        }
    }

    fn take_call(&mut self, service: String, key: String) {
        let at = (service, key);
        let Some(channel) = self.incoming.get(&at) else { return };
        match IncomingCall::receive(&at.0, &at.1, channel) {
            Ok(Some(call)) => self.ready.push_back(Event::Call(call)),
            Ok(None) => {}
            Err(FrameError::Closed) => {
                self.incoming.remove(&at);
            }
            Err(error) => {
                log::error(format_args!("unreadable call of {}: {}", at.0, chain(&error)));
                if matches!(error, FrameError::Os { .. }) {
                    self.incoming.remove(&at);
                }
            }
        }
    }

    fn look_at_raw(&mut self, kind: String, key: String, flags: PollFlags) {
        let at = (kind, key);
        let Some(raw) = self.raw.get_mut(&at) else { return };
        if flags.contains(PollFlags::OUT) && raw.wants_write {
            raw.wants_write = false;
            let (kind, key) = at.clone();
            self.ready.push_back(Event::Channel(ChannelEvent::Writable { kind, key }));
        }
        let is_closed = raw.channel.is_closed();
        if is_closed {
            self.raw.remove(&at);
        }
        let (kind, key) = at;
        if is_closed {
            self.ready.push_back(Event::Channel(ChannelEvent::Closed { kind, key }));
        } else if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.ready.push_back(Event::Channel(ChannelEvent::Readable { kind, key }));
        }
    }

    fn take_messages(&mut self) {
        while let Some(message) = self.control().take_message() {
            match message {
                Message::Stop => self.ready.push_back(Event::Stop),
                Message::Ping => self.control().pong(),
                Message::Fd(name, fd) => {
                    self.fds.insert(name, fd);
                }
                Message::Channel(role, channel) => self.install(role, channel),
            }
        }
    }

    fn install(&mut self, role: Role, channel: Channel) {
        match role {
            Role::Bus => self.bus.install(channel),
            Role::CallFrom { service, key } => {
                self.incoming.insert((service, key), Arc::new(channel));
            }
            Role::Raw { kind, key } => {
                let channel = Arc::new(channel);
                let raw = Raw { channel: channel.clone(), wants_write: false };
                self.raw.insert((kind.clone(), key.clone()), raw);
                self.ready.push_back(Event::Channel(ChannelEvent::Opened { kind, key, channel }));
            }
            // Done where they arrived.
            Role::Log | Role::CallTo { .. } => {}
        }
    }
}

fn wake_of<W>(event: &Event<W>) -> Wake {
    match event {
        Event::Topics(topic) => Wake::Topic((*topic).into()),
        Event::Call(call) => Wake::Call { from: call.from().into() },
        Event::Channel(
            ChannelEvent::Opened { kind, key, .. }
            | ChannelEvent::Readable { kind, key }
            | ChannelEvent::Writable { kind, key }
            | ChannelEvent::Closed { kind, key },
        ) => Wake::Channel { kind: kind.clone(), key: key.clone() },
        Event::Worker(_) => Wake::Worker,
        Event::Readable(token) => Wake::Readable(*token),
        Event::Deadline => Wake::Deadline,
        Event::Stop => Wake::Stop,
    }
}

impl<W: Send + 'static> Topics for Service<W> {
    fn subscribe<T: Topic>(&mut self) {
        Service::subscribe::<T>(self);
    }
    fn publish<T: Topic>(&mut self, key: &str, value: &T::Value) {
        Service::publish::<T>(self, key, value);
    }
    fn remove<T: Topic>(&mut self, key: &str) {
        Service::remove::<T>(self, key);
    }
    fn synced<T: Topic>(&mut self) {
        Service::synced::<T>(self);
    }
    fn get<T: Topic>(&self, key: &str) -> Option<T::Value> {
        Service::get::<T>(self, key)
    }
    fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        Service::all::<T>(self)
    }
    fn is_synced<T: Topic>(&self) -> bool {
        Service::is_synced::<T>(self)
    }
}

fn decode<T: Topic>(bytes: &[u8]) -> Option<T::Value> {
    let value = postcard::from_bytes(bytes);
    if let Err(error) = &value {
        log::error(format_args!("unreadable value of {}: {error}", T::NAME));
    }
    value.ok()
}
