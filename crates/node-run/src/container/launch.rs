// SPDX-License-Identifier: Apache-2.0
//! The parent's side of a start: clone, id maps, the moment the app runs, and its end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use model::observed::Exit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::cgroup::Cgroup;
use super::child::{self, Inherited};
use super::netns::last_errno;
use super::step::{Step, StepError};
use super::{Container, IdRange, Late, seccomp};

/// A cold disk may need long for the first files of an image; beyond this something hangs.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A failure and its longest subject.
const MAX_MESSAGE_BYTES: usize = 1024;

/// A child that is on its way. Dropped before [`Starting::complete`], it dies.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    control: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    ids: IdRange,
}

/// An app that runs. Dropped, it dies.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Reading ends of its output, not blocking.
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// How it ended; whether for memory is for the control group to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(pub Exit);

#[derive(Debug)]
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    is_reaped: bool,
}

impl Starting {
    /// Makes the child and lets it run until it needs [`Late`].
    pub fn begin(
        container: &Container,
        cgroup: &Cgroup,
        filter: &seccomp::Filter,
    ) -> Result<Starting, StepError> {
        let failed = |what: &'static str| StepError::at(Step::Clone, what);
        let (control, childs_control) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(failed("socketpair"))?;
        let (stdout, childs_stdout) = output_pipe(container.ids)?;
        let (stderr, childs_stderr) = output_pipe(container.ids)?;
        let inherited = Inherited {
            container,
            cgroup,
            filter,
            control: childs_control.as_fd(),
            stdout: childs_stdout.as_fd(),
            stderr: childs_stderr.as_fd(),
        };
        match clone_child(cgroup.v2()).map_err(failed("clone3"))? {
            Some(child) => Ok(Starting { child, control, stdout, stderr, ids: container.ids }),
            None => child::run(&inherited),
        }
    }

    /// Gives the child its ids and what it waits for; returns when its program runs.
    pub fn complete(self, late: &Late) -> Result<Running, StepError> {
        let deadline = Instant::now() + START_TIMEOUT;
        match self.receive(deadline)?.split_first() {
            Some((&child::READY, [])) => {}
            message => return Err(failure(message)),
        }
        let range = format!("0 {} {}\n", self.ids.base, self.ids.count);
        for map in ["uid_map", "gid_map"] {
            write_map(self.child.pid, map, &range).map_err(StepError::at(Step::UserNamespace, map))?;
        }
        self.send(late)?;
        match self.receive(deadline)?.split_first() {
            None => {}
            message => return Err(failure(message)),
        }
        // The end of file also comes when the child is killed; then it shows in how it ended.
        let Starting { child, stdout, stderr, .. } = self;
        Ok(Running { child, stdout, stderr })
    }

    fn send(&self, late: &Late) -> Result<(), StepError> {
        let lost = |errno| StepError::at(Step::Channel, "")(errno);
        let body = postcard::to_allocvec(late).map_err(|_| StepError::new(Step::Channel, "late"))?;
        let mut message = (body.len() as u32).to_le_bytes().to_vec();
        message.extend_from_slice(&body);
        let mut rest = &message[..];
        while !rest.is_empty() {
            match rustix::net::send(&self.control, rest, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                // It failed and has said why.
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(errno) => return Err(lost(errno)),
            }
        }
        Ok(())
    }

    /// One message of the child; empty when it closed the channel.
    fn receive(&self, deadline: Instant) -> Result<Vec<u8>, StepError> {
        let lost = |errno| StepError::at(Step::Channel, "")(errno);
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            match poll(&mut [PollFd::new(&self.control, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(StepError::new(Step::TimedOut, "")),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(lost(errno)),
            }
            match rustix::io::read(&self.control, &mut buffer) {
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                // Closed before it read all of ours.
                Err(Errno::CONNRESET) => return Ok(Vec::new()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(lost(errno)),
            }
        }
    }
}

fn failure(message: Option<(&u8, &[u8])>) -> StepError {
    match message {
        Some((&child::FAILED, error)) => StepError::decode(error),
        _ => None,
    }
    .unwrap_or_else(|| StepError::new(Step::Channel, ""))
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.pid.as_raw_nonzero().get()
    }

    /// Readable when the app has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Sends a signal to the app's first process. One it has no handler for does nothing, but SIGKILL, which takes
    /// all its processes with it.
    pub fn signal(&self, number: i32) -> Result<(), Errno> {
        self.child.signal(number)
    }

    /// `None` while it runs.
    pub fn wait(&mut self) -> Result<Option<Ended>, Errno> {
        self.child.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }
}

impl Child {
    fn signal(&self, number: i32) -> Result<(), Errno> {
        let null = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open; a null siginfo is allowed.
        let done =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd(), number, null, 0) };
        if done == 0 { Ok(()) } else { Err(last_errno()) }
    }

    fn wait(&mut self, options: WaitIdOptions) -> Result<Option<Ended>, Errno> {
        let Some(status) = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)? else {
            return Ok(None);
        };
        self.is_reaped = true;
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Signal(libc::SIGKILL),
        };
        Ok(Some(Ended(exit)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_reaped && self.signal(libc::SIGKILL).is_ok() {
            let _ = self.wait(WaitIdOptions::EXITED);
        }
    }
}

/// The inode belongs to container root, which may hand it on to the app's user.
fn output_pipe(ids: IdRange) -> Result<(OwnedFd, OwnedFd), StepError> {
    let failed = |what: &'static str| StepError::at(Step::Clone, what);
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
    rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK).map_err(failed("pipe"))?;
    let (uid, gid) = (Uid::from_raw(ids.base), Gid::from_raw(ids.base));
    rustix::fs::fchown(&write, Some(uid), Some(gid)).map_err(failed("pipe"))?;
    Ok((read, write))
}

fn write_map(pid: Pid, map: &str, range: &str) -> Result<(), Errno> {
    let path = format!("/proc/{}/{map}", pid.as_raw_nonzero());
    let fd = rustix::fs::openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, range.as_bytes()).map(drop)
}

/// `None` in the child.
fn clone_child(cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>, Errno> {
    /// `struct clone_args` of the kernel.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let mut pidfd: libc::c_int = -1;
    let mut args = CloneArgs {
        flags: namespaces as u64 | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without a shared address space or stack this is a fork; the arguments live across the call. The caller
    // is single-threaded, so its copy may go on using the allocator.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(None),
        pid if pid > 0 => {
            // SAFETY: the kernel put a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid as i32).ok_or(Errno::INVAL)?;
            Ok(Some(Child { pid, pidfd, is_reaped: false }))
        }
        _ => Err(last_errno()),
    }
}
