// SPDX-License-Identifier: Apache-2.0
//! Taking over the process: the launch message of init, the log, panics, confinement.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ipc::boot::{FromInit, INIT_FD, Launch, RETURN_FD, ToInit};
use ipc::frame::{Channel, FrameError};
use ipc::manifest::Manifest;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::FileType;
use rustix::io::{Errno, FdFlags};

use crate::confine::{ConfineError, confine};
use crate::control::Control;
use crate::{Service, log};

/// init sends all at once before it looks at anything else.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Exit status after a panic, as Rust's runtime has it.
const PANIC_STATUS: i32 = 101;

/// Why the process could not be taken over. Nothing to repair from inside: init starts it again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("not started by init: descriptor {INIT_FD} is no channel")]
    NotLaunched,
    #[error("no launch message from init")]
    Launch(#[from] FrameError),
    #[error("started as {launched} by init, but is {own}")]
    OtherService { launched: String, own: &'static str },
    #[error("cannot be confined")]
    Confine(#[from] ConfineError),
    #[error("no eventfd")]
    Eventfd(#[source] Errno),
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

    fn of(manifest: &Manifest) -> Dirs {
        let named: BTreeMap<String, PathBuf> = manifest
            .files
            .iter()
            .filter(|file| !file.dir_name().is_empty())
            .map(|file| (file.dir_name().to_string(), PathBuf::from(file.inside())))
            .filter(|(_, path)| path.exists())
            .collect();
        Dirs { config: named.get("config").cloned(), state: named.get("state").cloned(), named }
    }
}

/// What init said before the process began.
#[derive(Debug)]
pub struct Launched {
    pub name: &'static str,
    pub launch: Launch,
    pub dirs: Dirs,
    pub(crate) control: Arc<Control>,
    pub(crate) wake: OwnedFd,
    /// init's own end of the pair: held, so that the pair outlives init, and never used.
    _returned: Option<OwnedFd>,
}

impl Launched {
    /// Takes the launch message and everything up to Go, then confines the process.
    pub(crate) fn receive(name: &'static str) -> Result<Launched, StartError> {
        let init = Channel::from(inherited(INIT_FD).ok_or(StartError::NotLaunched)?);
        let returned = inherited(RETURN_FD);
        let (first, _) = init.recv::<FromInit>(LAUNCH_TIMEOUT)?;
        let FromInit::Launch(launch) = first else {
            return Err(FrameError::Malformed { what: "the first is no launch message" }.into());
        };
        if launch.manifest.name != name {
            let launched = launch.manifest.name;
            return Err(StartError::OtherService { launched, own: name });
        }
        log::launched();
        end_on_panic();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(StartError::Eventfd)?;
        let other = rustix::io::fcntl_dupfd_cloexec(&wake, 0).map_err(StartError::Eventfd)?;
        let mut allowed: std::collections::BTreeSet<String> = launch.manifest.calls.iter().cloned().collect();
        allowed.remove(name);
        let control = Arc::new(Control::new(init, allowed, other));
        let channel = control.init_channel();
        loop {
            let (message, fds) = channel.recv::<FromInit>(LAUNCH_TIMEOUT)?;
            if matches!(message, FromInit::Go) {
                break;
            }
            if let Some(message) = control.sort(message, fds) {
                control.put_message(message);
            }
        }
        let dirs = Dirs::of(&launch.manifest);
        confine(&launch.manifest)?;
        channel.send(&ToInit::Ready, &[], LAUNCH_TIMEOUT)?;
        let _returned = returned.filter(|_| launch.manifest.outlives_init());
        Ok(Launched { name, launch: *launch, dirs, control, wake, _returned })
    }
}

/// A descriptor init left, when it is a socket.
fn inherited(number: i32) -> Option<OwnedFd> {
    // SAFETY: the descriptor is only looked at; a closed one is an error of fstat.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    let stat = rustix::fs::fstat(fd).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return None;
    }
    rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and this is called once per number, first in main, before anything else could own it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A panic of any thread is logged and ends the process: init starts it again, half a process helps nobody.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no text");
        match panic.location() {
            Some(at) => log::error(format_args!("panic at {at}: {text}")),
            None => log::error(format_args!("panic: {text}")),
        }
        log::flush();
        // SAFETY: ends the process at once; no destructor must run in a state that no one understands.
        unsafe { libc::_exit(PANIC_STATUS) }
    }));
}

/// What a service's `run` may return.
pub trait Outcome {
    /// Why it failed, if it did.
    fn failure(self) -> Option<String>;
}

impl Outcome for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: std::error::Error> Outcome for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| chain(&error))
    }
}

/// An error and all its sources on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The whole `main` of a service executable.
pub fn main<W: Send + 'static, O: Outcome>(
    name: &'static str,
    run: impl FnOnce(Service<W>) -> O,
) -> ExitCode {
    let failure = match Service::start(name) {
        Ok(service) => run(service).failure(),
        Err(error) => Some(chain(&error)),
    };
    match failure {
        None => ExitCode::SUCCESS,
        Some(text) => {
            log::error(format_args!("{text}"));
            ExitCode::FAILURE
        }
    }
}
