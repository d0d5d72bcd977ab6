// SPDX-License-Identifier: Apache-2.0
//! The pair to init, and the lines to other processes that come over it.
//!
//! Any thread that waits for a restarted callee may take init's messages: those for lines and log are done at once,
//! all others wait for the main loop. A ping is answered by the main thread alone, in its loop or while it waits for an
//! answer of another process: the answer says that this very thread goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use ipc::boot::{CallFrame, FromInit, Role, ToInit};
use ipc::frame::{Channel, FrameError, Payload};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{CallError, log};

/// How long one look at a channel may last: after it, a stop or another thread's reply is noticed.
const SLICE: Duration = Duration::from_millis(100);

/// Body and descriptors of an answer.
type Answer = (Vec<u8>, Vec<OwnedFd>);

/// For the main loop.
#[derive(Debug)]
pub(crate) enum Message {
    Channel(Role, Channel),
    Fd(String, OwnedFd),
    Ping,
    Stop,
}

#[derive(Debug)]
pub(crate) struct Control {
    init: Mutex<Init>,
    lines: Mutex<BTreeMap<String, Arc<Line>>>,
    allowed: BTreeSet<String>,
    is_stopping: AtomicBool,
    wake: OwnedFd,
    main_thread: ThreadId,
}

#[derive(Debug)]
struct Init {
    channel: Arc<Channel>,
    messages: VecDeque<Message>,
    is_closed: bool,
}

impl Control {
    /// Made by the main thread.
    pub(crate) fn new(init: Channel, allowed: BTreeSet<String>, wake: OwnedFd) -> Control {
        let init = Init { channel: Arc::new(init), messages: VecDeque::new(), is_closed: false };
        Control {
            init: Mutex::new(init),
            lines: Mutex::default(),
            allowed,
            is_stopping: AtomicBool::new(false),
            wake,
            main_thread: std::thread::current().id(),
        }
    }

    pub(crate) fn line(&self, callee: &str) -> Arc<Line> {
        let mut lines = lock(&self.lines);
        lines
            .entry(callee.to_string())
            .or_insert_with(|| Arc::new(Line::new(self.allowed.contains(callee))))
            .clone()
    }

    pub(crate) fn init_channel(&self) -> Arc<Channel> {
        lock(&self.init).channel.clone()
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.init).is_closed
    }

    /// Sorts in one message of init.
    pub(crate) fn sort(&self, message: FromInit, mut fds: Vec<OwnedFd>) -> Option<Message> {
        match message {
            FromInit::Channel(role) => {
                let channel = Channel::from(fds.pop()?);
                match role {
                    Role::Log => log::install(channel),
                    Role::CallTo { callee } => self.line(&callee).install(channel),
                    role => return Some(Message::Channel(role, channel)),
                }
                None
            }
            FromInit::Fd { name } => Some(Message::Fd(name, fds.pop()?)),
            FromInit::Ping => Some(Message::Ping),
            FromInit::Stop => {
                self.is_stopping.store(true, Ordering::Relaxed);
                Some(Message::Stop)
            }
            FromInit::Launch(_) | FromInit::Go => None,
        }
    }

    /// Takes all that init said. Without init there is nothing to live for: the same as a stop.
    pub(crate) fn pump(&self) {
        let mut init = lock(&self.init);
        while !init.is_closed {
            let message = match init.channel.try_recv::<FromInit>() {
                Ok(Some((message, fds))) => self.sort(message, fds),
                Ok(None) => return,
                Err(FrameError::Closed | FrameError::Os { .. }) => {
                    init.is_closed = true;
                    self.sort(FromInit::Stop, Vec::new())
                }
                Err(error) => {
                    log::error(format_args!("unreadable message from init: {error}"));
                    None
                }
            };
            if matches!(message, Some(Message::Ping)) && self.is_main_thread() {
                pong(&init.channel);
            } else if let Some(message) = message {
                init.messages.push_back(message);
                // The eventfd only wakes the main loop; when it is full it does so anyway.
                let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
            }
        }
    }

    pub(crate) fn pong(&self) {
        pong(&lock(&self.init).channel);
    }

    fn is_main_thread(&self) -> bool {
        std::thread::current().id() == self.main_thread
    }

    /// While the main thread waits for another process it still answers init.
    fn pump_on_main_thread(&self) {
        if self.is_main_thread() {
            self.pump();
        }
    }

    pub(crate) fn take_message(&self) -> Option<Message> {
        lock(&self.init).messages.pop_front()
    }

    pub(crate) fn put_message(&self, message: Message) {
        lock(&self.init).messages.push_back(message);
    }
}

/// Calls to one other process. All threads share it: whoever waits reads the answers of all.
#[derive(Debug)]
pub(crate) struct Line {
    is_allowed: bool,
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    channel: Option<Arc<Channel>>,
    /// Counts channels.
    generation: u64,
    next_id: u64,
    waiting: BTreeSet<u64>,
    answers: BTreeMap<u64, Answer>,
    /// A thread is reading the channel.
    is_read: bool,
}

impl Line {
    fn new(is_allowed: bool) -> Line {
        Line { is_allowed, state: Mutex::default(), changed: Condvar::new() }
    }

    fn install(&self, channel: Channel) {
        let mut state = lock(&self.state);
        state.channel = Some(Arc::new(channel));
        state.generation += 1;
        self.changed.notify_all();
    }

    pub(crate) fn call(
        &self,
        control: &Control,
        callee: &'static str,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        if !self.is_allowed {
            return Err(CallError::NotAllowed { callee });
        }
        let deadline = Instant::now() + timeout;
        let id = {
            let mut state = lock(&self.state);
            state.next_id += 1;
            let id = state.next_id;
            state.waiting.insert(id);
            id
        };
        let result = self.ask_until_answered(control, callee, id, body, fds, deadline);
        let mut state = lock(&self.state);
        state.waiting.remove(&id);
        state.answers.remove(&id);
        result
    }

    fn ask_until_answered(
        &self,
        control: &Control,
        callee: &'static str,
        id: u64,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<Answer, CallError> {
        let payload = Payload::encode(&CallFrame { id, body: body.into() })
            .map_err(|source| CallError::Frame { callee, source })?;
        loop {
            let (channel, generation) = self.connected(control, callee, deadline)?;
            match self.send(&channel, &payload, fds, deadline) {
                Ok(()) => {}
                Err(FrameError::Closed) => {
                    self.broken(generation);
                    continue;
                }
                Err(FrameError::TimedOut) => return Err(CallError::TimedOut { callee }),
                Err(source) => return Err(CallError::Frame { callee, source }),
            }
            if let Some(answer) = self.answered(control, callee, id, &channel, generation, deadline)? {
                return Ok(answer);
            }
        }
    }

    /// The present channel; waits for one while the callee is being restarted.
    fn connected(
        &self,
        control: &Control,
        callee: &'static str,
        deadline: Instant,
    ) -> Result<(Arc<Channel>, u64), CallError> {
        loop {
            {
                let state = lock(&self.state);
                if let Some(channel) = &state.channel {
                    return Ok((channel.clone(), state.generation));
                }
            }
            if control.is_stopping.load(Ordering::Relaxed) {
                return Err(CallError::Stopping);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::TimedOut { callee });
            }
            // The main loop may be this very thread: take init's messages here.
            wait_readable(control.init_channel().as_fd(), left.min(SLICE));
            control.pump();
        }
    }

    fn send(
        &self,
        channel: &Channel,
        payload: &Payload,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), FrameError> {
        while !channel.try_send_payload(payload, fds)? {
            channel.wait(PollFlags::OUT, deadline)?;
        }
        Ok(())
    }

    /// The answer, or nothing when the channel broke and the question must be asked again.
    fn answered(
        &self,
        control: &Control,
        callee: &'static str,
        id: u64,
        channel: &Channel,
        generation: u64,
        deadline: Instant,
    ) -> Result<Option<Answer>, CallError> {
        let mut state = lock(&self.state);
        loop {
            if let Some(answer) = state.answers.remove(&id) {
                return Ok(Some(answer));
            }
            if state.generation != generation || state.channel.is_none() {
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::TimedOut { callee });
            }
            if state.is_read {
                let slice = left.min(SLICE);
                drop(self.changed.wait_timeout(state, slice).unwrap_or_else(PoisonError::into_inner));
                control.pump_on_main_thread();
                state = lock(&self.state);
                continue;
            }
            state.is_read = true;
            drop(state);
            wait_readable(channel.as_fd(), left.min(SLICE));
            control.pump_on_main_thread();
            let received = channel.try_recv_payload();
            state = lock(&self.state);
            state.is_read = false;
            self.changed.notify_all();
            match received.and_then(|received| received.map(decode_answer).transpose()) {
                Ok(Some((to, body, fds))) => {
                    if state.waiting.contains(&to) {
                        state.answers.insert(to, (body, fds));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    if !matches!(error, FrameError::Closed) {
                        log::error(format_args!("unreadable answer of {callee}: {error}"));
                    }
                    if state.generation == generation {
                        state.channel = None;
                    }
                }
            }
        }
    }

    fn broken(&self, generation: u64) {
        let mut state = lock(&self.state);
        if state.generation == generation {
            state.channel = None;
        }
    }
}

/// An init that does not read is dying; its next one asks again.
fn pong(init: &Channel) {
    let _ = init.try_send(&ToInit::Pong, &[]);
}

fn decode_answer(
    (payload, fds): (Payload, Vec<OwnedFd>),
) -> Result<(u64, Vec<u8>, Vec<OwnedFd>), FrameError> {
    let bytes = payload.bytes()?;
    let frame: CallFrame<'_> = postcard::from_bytes(&bytes)?;
    Ok((frame.id, frame.body.into_owned(), fds))
}

fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) {
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    // An interrupted wait is a short one; the caller looks again.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
