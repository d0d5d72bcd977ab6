// SPDX-License-Identifier: Apache-2.0
//! One try in a child of its own, so that a try which ends its process ends nothing else.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

/// A try that hangs is ended; the slowest of them wait for nothing.
const TRY_S: u32 = 5;
/// Exit status of a child that could not be confined.
const NOT_CONFINED: i32 = 255;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Errno(i32),
    Signal(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => f.write_str("done"),
            Outcome::Errno(NOT_CONFINED) => f.write_str("not confined"),
            Outcome::Errno(number) => write!(f, "errno {number}"),
            Outcome::Signal(number) => write!(f, "signal {number}"),
        }
    }
}

/// The result of a system call as errno.
pub(crate) fn result(value: i64) -> Result<(), i32> {
    if value >= 0 { Ok(()) } else { Err(errno()) }
}

pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Confines a child as the process it stands for, then has it try.
pub(crate) fn attempt(confine: &dyn Fn(), body: impl FnOnce() -> Result<(), i32>) -> Outcome {
    // SAFETY: one thread, so the child is whole; it leaves by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // SAFETY: a timer of this process, set while it may still be.
                unsafe { libc::alarm(TRY_S) };
                confine();
                body()
            }));
            let status = match done {
                Ok(Ok(())) => 0,
                Ok(Err(number)) => number.clamp(1, NOT_CONFINED - 1),
                Err(_) => NOT_CONFINED,
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(status) }
        }
        pid if pid > 0 => wait(pid),
        _ => Outcome::Errno(errno()),
    }
}

fn wait(pid: i32) -> Outcome {
    let mut status = 0;
    // SAFETY: waits for a child of ours.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {}
    if libc::WIFSIGNALED(status) {
        return Outcome::Signal(libc::WTERMSIG(status));
    }
    match libc::WEXITSTATUS(status) {
        0 => Outcome::Done,
        number => Outcome::Errno(number),
    }
}

/// Numbers above the newest call of any kernel.
const NUMBERS_END: i64 = 480;
/// What marks a call of the x32 kind.
const X32: i64 = 0x4000_0000;

/// Every call number with arguments that mean nothing: `number:outcome`, and for x32 a few.
pub(crate) fn every_call(confine: &dyn Fn()) -> Vec<(i64, Outcome)> {
    let mut numbers: Vec<i64> = (0..NUMBERS_END).collect();
    numbers.extend([X32, X32 + libc::SYS_getpid, X32 + 59, X32 + 512]);
    let mut outcomes = Vec::new();
    while outcomes.len() < numbers.len() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let rest = &numbers[outcomes.len()..];
        let ended = attempt(confine, || {
            for number in rest {
                let said = call(*number).to_le_bytes();
                rustix::io::write(write.as_fd(), &said).map_err(|error| error.raw_os_error())?;
            }
            Ok(())
        });
        drop(write);
        let before = outcomes.len();
        let mut said = [0; 4];
        while rustix::io::read(read.as_fd(), &mut said) == Ok(4) {
            let number = numbers[outcomes.len()];
            let outcome = match i32::from_le_bytes(said) {
                0 => Outcome::Done,
                error => Outcome::Errno(error),
            };
            outcomes.push((number, outcome));
        }
        // The one it ended at.
        if outcomes.len() < numbers.len() {
            let number = numbers[outcomes.len()];
            let is_own_end = number == libc::SYS_exit || number == libc::SYS_exit_group;
            outcomes.push((number, if is_own_end { Outcome::Done } else { ended }));
        }
        assert!(outcomes.len() > before);
    }
    outcomes
}

/// With arguments that no call can use, and that make none of them wait.
fn call(number: i64) -> i32 {
    const NOTHING: i64 = -1;
    // A stop would never end, a fork would go on twice.
    let is_for_two = [libc::SYS_rt_sigreturn];
    #[cfg(target_arch = "x86_64")]
    let waits = [libc::SYS_pause, libc::SYS_fork, libc::SYS_vfork, libc::SYS_alarm, libc::SYS_rt_sigsuspend];
    #[cfg(not(target_arch = "x86_64"))]
    let waits = [libc::SYS_rt_sigsuspend];
    if is_for_two.contains(&number) {
        return 0;
    }
    if waits.contains(&number) {
        return may_be_made(number);
    }
    // SAFETY: no argument is a pointer that could be used.
    match unsafe { libc::syscall(number, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING) } {
        -1 => errno(),
        _ => 0,
    }
}

/// A call that would not come back when it is allowed: in a child that is ended soon after.
fn may_be_made(number: i64) -> i32 {
    let (read, write) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
        Ok(pair) => pair,
        Err(error) => return error.raw_os_error(),
    };
    // SAFETY: the child makes system calls only; where the parent may not fork, neither may it make the call.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        // SAFETY: who may not fork may make none of them: it comes back refused.
        return match unsafe { libc::syscall(number, -1_i64) } {
            -1 => errno(),
            _ => 0,
        };
    }
    if pid == 0 {
        // SAFETY: ends itself in any case.
        unsafe {
            if libc::syscall(number, -1_i64) == -1 {
                let said = errno().to_le_bytes();
                libc::write(write.as_raw_fd(), said.as_ptr().cast(), 4);
            }
            libc::_exit(0)
        }
    }
    drop(write);
    let mut said = [0; 4];
    let waited = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let mut polled = [rustix::event::PollFd::new(&read, rustix::event::PollFlags::IN)];
    let _ = rustix::event::poll(&mut polled, Some(&waited));
    let refused = polled[0].revents().contains(rustix::event::PollFlags::IN)
        && rustix::io::read(read.as_fd(), &mut said) == Ok(4);
    // SAFETY: a child of ours.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    if refused { i32::from_le_bytes(said) } else { 0 }
}
