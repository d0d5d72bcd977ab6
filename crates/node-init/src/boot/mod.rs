// SPDX-License-Identifier: Apache-2.0
//! init as the first process of a box: from the kernel's start to the supervisor, and the end of the machine.
//!
//! ```text
//! first stage   initrd: storage drivers ─▶ the partitions whose ids are the root hash ─▶ dm-verity ─▶ erofs ─▶ leave the initrd
//! second stage  verified root: drivers ─▶ CONFIG into memory ─▶ P3 ─▶ supervisor ─▶ stop ─▶ power off or restart
//! ```
//! The root hash stands on the command line of the signed kernel image; nothing that could be changed on the disk has a say in
//! what is run. What cannot go on says why on the console and restarts: the boot loader counts the tries.

mod dm;
mod first;
mod glob;
mod install;
mod ioctl;
mod machine;
pub mod modules;
mod persist;
mod screen;
mod second;
mod slots;
mod storage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::system::RebootCommand;

pub use machine::{Ending, Machine};
pub(crate) use screen::Health;
pub(crate) use slots::Written;

/// Where the executable of the second stage lies in the root.
const SECOND_STAGE: &str = "/usr/lib/selvedge/selvedge-init";
/// Time to read what went wrong.
const SHOWN: Duration = Duration::from_secs(10);

/// Why the box does not start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("{what} {}", path.display())]
    Path { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{what}")]
    Call { what: &'static str, source: rustix::io::Errno },
    #[error("the kernel's command line has no {0}: this is not our kernel image")]
    CommandLine(&'static str),
    #[error("no disk has the root {hash}: looked at {looked}")]
    NoRoot { hash: String, looked: String },
    #[error("{0} carry the same disk, and it cannot be told which one was started: take all but one away")]
    SameDisks(String),
    #[error("partition table of {disk}: {what}")]
    Table { disk: String, what: String },
    #[error("module {0}")]
    Module(String),
    #[error("{program} says: {what}")]
    Program { program: &'static str, what: String },
    #[error(
        "P3 of {0} holds something that is not ours: nothing is changed; take it away by hand or install again"
    )]
    ForeignPersist(String),
    #[error(transparent)]
    Init(#[from] crate::supervise::InitError),
}

fn at(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> BootError {
    let path = path.as_ref().to_path_buf();
    move |source| BootError::Path { what, path, source }
}

fn call(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> BootError {
    move |source| BootError::Call { what, source }
}

/// Whether this process was started by the kernel, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// As the first process, in the initrd.
    First,
    /// By the first stage, in the verified root.
    Second,
    /// By the kernel, to load a module.
    ForModule,
    /// By anybody else.
    Ordinary,
}

pub fn started(arg0: &str, arg1: Option<&str>) -> Started {
    let is_first_process = rustix::process::getpid() == rustix::process::Pid::INIT;
    match (is_first_process, arg0.rsplit('/').next(), arg1) {
        (true, _, Some(second::ARGUMENT)) => Started::Second,
        (true, Some("init"), _) => Started::First,
        (false, Some("modprobe"), _) => Started::ForModule,
        _ => Started::Ordinary,
    }
}

/// Runs the first stage. Comes back only when it failed.
pub fn first() -> ! {
    let Err(error) = first::run();
    give_up(&error)
}

/// Runs the box until it is switched off.
pub fn second(arguments: &[String]) -> ! {
    match second::run(arguments) {
        Ok(Ending::PowerOff) => end(RebootCommand::PowerOff),
        Ok(Ending::Restart) => end(RebootCommand::Restart),
        Err(error) => give_up(&error),
    }
}

fn give_up(error: &BootError) -> ! {
    eprintln!("selvedge: cannot start: {}", crate::supervise::chain(error));
    eprintln!("selvedge: the box starts again in {} s", SHOWN.as_secs());
    std::thread::sleep(SHOWN);
    end(RebootCommand::Restart)
}

fn end(how: RebootCommand) -> ! {
    rustix::fs::sync();
    let result = rustix::system::reboot(how);
    // The first process must not end; it has nothing else to do.
    eprintln!("selvedge: the kernel does not end the machine: {result:?}");
    loop {
        std::thread::sleep(SHOWN);
    }
}
