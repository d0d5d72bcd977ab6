// SPDX-License-Identifier: Apache-2.0
//! Apps of an init that was killed: finds their shims, makes sure that they are what they should be, takes them over.
//!
//! A shim holds a duplicate of init's end of its channel ([`ipc::boot::RETURN_FD`]). The next init finds the shim by the
//! control group it was put into, looks at what it is, and takes the duplicate out of it; so there is no name in any
//! file system or network through which anybody else could speak to a shim.
//!
//! A process is a shim of ours when it is in the group of its app in every hierarchy, runs the very file that this init
//! would start, and has the ids of the manifest. Anything else in the node's groups is ended.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipc::boot::RETURN_FD;
use ipc::frame::Channel;
use ipc::manifest::Manifest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::cgroup::Cgroups;
use crate::facts;

/// A child of a killed init that is still building a cage holds its locks for so long at most; usually for milliseconds.
const CLAIM_TRIES: u32 = 100;
const CLAIM_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// A shim that goes on as ours.
#[derive(Debug)]
pub struct Found {
    pub app: String,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub control: Channel,
    /// What it writes to stdout and stderr; what the init before us did not read is still in it.
    pub output: Option<OwnedFd>,
}

/// Why a process is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum NotOurs {
    #[error("it has no shim")]
    NoShim,
    #[error("{count} processes are in the group of its shim")]
    SeveralShims { count: usize },
    #[error("process {pid} runs another executable than {}", expected.display())]
    Executable { pid: i32, expected: PathBuf },
    #[error("process {pid} has other ids than its manifest")]
    Ids { pid: i32 },
    #[error("process {pid} has just ended")]
    Ended { pid: i32 },
    #[error("process {pid} holds no channel to init")]
    NoChannel { pid: i32 },
    #[error("{call} of process {pid} failed")]
    Os { pid: i32, call: &'static str, source: Errno },
}

/// That no other init runs the same node. Ends with this process.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held for its lock")] OwnedFd);

/// Claims a directory, unless another init has it. Its processes have no part in the claim.
pub fn claim(dir: &Path) -> Result<Claim, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    for _ in 0..CLAIM_TRIES {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(CLAIM_PAUSE),
            Err(Errno::INTR) => {}
            result => return result.map(|()| Claim(fd)),
        }
    }
    Err(Errno::WOULDBLOCK)
}

/// Every app that has processes in the node's control groups: its shim, or why it is not taken over.
pub fn find(cgroups: &Cgroups, template: &Manifest, bins: &Path) -> Vec<(String, Result<Found, NotOurs>)> {
    let executable = bins.join(&template.bin);
    let apps = cgroups.children().into_iter().filter_map(|name| Some(name.strip_prefix("app-")?.to_string()));
    apps.filter(|app| !cgroups.is_empty(&format!("app-{app}")))
        .map(|app| {
            let found = find_one(cgroups, &app, template, &executable);
            (app, found)
        })
        .collect()
}

fn find_one(cgroups: &Cgroups, app: &str, template: &Manifest, executable: &Path) -> Result<Found, NotOurs> {
    let members = cgroups.members(&format!("app-{app}/shim"));
    // A child that has not yet left for the app's group is not meant.
    let is_top = |pid: &&i32| facts::parent_of(**pid).is_none_or(|parent| !members.contains(&parent));
    let mut shims = members.iter().filter(is_top);
    let pid = *shims.next().ok_or(NotOurs::NoShim)?;
    let more = shims.count();
    if more > 0 {
        return Err(NotOurs::SeveralShims { count: more + 1 });
    }
    take(cgroups, app, pid, template, executable)
}

fn take(
    cgroups: &Cgroups,
    app: &str,
    number: i32,
    template: &Manifest,
    executable: &Path,
) -> Result<Found, NotOurs> {
    let pid = Pid::from_raw(number).ok_or(NotOurs::Ended { pid: number })?;
    let os = |call: &'static str| move |source| NotOurs::Os { pid: number, call, source };
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(os("pidfd_open"))?;
    // From here on the number means this process, or the process is found to have ended below.
    let is_member = cgroups.members(&format!("app-{app}/shim")).contains(&number);
    let same_file = || {
        let is = std::fs::metadata(format!("/proc/{number}/exe")).ok()?;
        let should = std::fs::metadata(executable).ok()?;
        Some((is.dev(), is.ino()) == (should.dev(), should.ino()))
    };
    if same_file() != Some(true) {
        return Err(NotOurs::Executable { pid: number, expected: executable.to_path_buf() });
    }
    if facts::ids_of(number) != Some([template.uid; 8]) {
        return Err(NotOurs::Ids { pid: number });
    }
    let fd = pidfd_getfd(&pidfd, RETURN_FD, PidfdGetfdFlags::empty()).map_err(os("pidfd_getfd"))?;
    let is_channel = rustix::net::sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && rustix::net::sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET);
    if !is_channel {
        return Err(NotOurs::NoChannel { pid: number });
    }
    // Opening a pipe's writing end for reading gives its reading end, which died with the init before us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let output = rustix::fs::open(format!("/proc/{number}/fd/2"), flags, Mode::empty()).ok();
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if !is_member || poll(&mut ended, Some(&now)) != Ok(0) {
        return Err(NotOurs::Ended { pid: number });
    }
    Ok(Found { app: app.to_string(), pid, pidfd, control: Channel::from(fd), output })
}
