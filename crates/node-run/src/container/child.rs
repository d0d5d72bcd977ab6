// SPDX-License-Identifier: Apache-2.0
//! The child's way from the clone to the app's own program.
//!
//! A copy of the single-threaded shim, so it may allocate. It ends in `execve` or in `_exit` after telling its parent
//! where it failed; it never returns into the shim's code.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::AssertUnwindSafe;

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::cgroup::Cgroup;
use super::netns::last_errno;
use super::step::{Step, StepError};
use super::user::{self, Identity};
use super::{Container, Late, files, mounts, privileges, seccomp, volumes};
use crate::userdata::{self, Given};

/// Sent to the parent: the user namespace waits for its maps.
pub(super) const READY: u8 = b'R';
/// Sent to the parent before an encoded [`StepError`].
pub(super) const FAILED: u8 = b'F';
/// Where programs are looked for when the image names no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a child that failed exits with; its parent goes by the message.
const FAILED_EXIT: i32 = 127;

/// What the child got from its parent by being its copy.
#[derive(Debug)]
pub(super) struct Inherited<'a> {
    pub(super) container: &'a Container,
    pub(super) cgroup: &'a Cgroup,
    pub(super) filter: &'a seccomp::Filter,
    pub(super) control: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
}

pub(super) fn run(inherited: &Inherited<'_>) -> ! {
    let error = match std::panic::catch_unwind(AssertUnwindSafe(|| become_app(inherited))) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => error,
        Err(_) => StepError::new(Step::Panic, ""),
    };
    let mut message = vec![FAILED];
    message.extend_from_slice(&error.encode());
    let _ = rustix::io::write(inherited.control, &message);
    // SAFETY: ends the process without running anything of the parent's copy.
    unsafe { libc::_exit(FAILED_EXIT) }
}

fn become_app(inherited: &Inherited<'_>) -> Result<Infallible, StepError> {
    let container = inherited.container;
    // The shim's hook would end the process before its parent is told.
    drop(std::panic::take_hook());
    reset_signals();
    inherited.cgroup.join().map_err(StepError::at(Step::Cgroup, ""))?;
    let failed = |what: &'static str| StepError::at(Step::Namespaces, what);
    // After joining: the group is the root of the new namespace.
    unshare(UnshareFlags::NEWCGROUP).map_err(failed("cgroup"))?;
    rustix::process::setsid().map_err(failed("session"))?;
    rustix::system::sethostname(container.hostname.as_bytes()).map_err(failed("hostname"))?;
    leave_keyring();
    mounts::make_private()?;
    let taken = volumes::take(&container.volumes)?;
    let devices = mounts::enter_root(&container.root)?;
    mounts::mount_kernel_fs(devices, container.ids, inherited.cgroup.is_v2())?;
    volumes::mount(taken, &container.volumes, container.ids)?;
    privileges::set_limits()?;

    // From here on only root of its own user namespace.
    unshare(UnshareFlags::NEWUSER).map_err(StepError::at(Step::UserNamespace, ""))?;
    let late = wait_for_late(inherited.control)?;
    privileges::become_container_root().map_err(StepError::at(Step::UserNamespace, "become root"))?;
    let given = match &late.untrusted_user_data {
        Some(text) => {
            userdata::parse(text).map_err(|error| StepError::new(Step::UserData, error.to_string()))?
        }
        None => Given::default(),
    };
    let identity = write_files(container, &late, &given)?;
    give_output(inherited, &identity)?;
    let env = environment(container, given.env, &identity);
    for ignored in &given.ignored {
        // For the app's log; nothing depends on it.
        let _ = rustix::io::write(inherited.stderr, format!("user data: {ignored} ignored\n").as_bytes());
    }

    privileges::drop_to(&identity)?;
    // Not before: changing the user clears it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(StepError::at(Step::Privileges, "parent death signal"))?;
    rustix::process::chdir(working_dir(container))
        .map_err(StepError::at(Step::WorkingDir, working_dir(container)))?;
    close_others_on_exec();
    inherited.filter.install()?;
    execute(&container.args, &env)
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: this process has one thread and shares nothing with another; memory is not concerned.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// The shim ignores or blocks some; an app starts with none ignored and none blocked.
fn reset_signals() {
    /// `struct sigaction` of the kernel with the default disposition; the C library's hides two signals it keeps.
    const DEFAULT: [u64; 4] = [0; 4];
    const SET_BYTES: usize = 8;
    for number in 1..=64 {
        let nothing = std::ptr::null_mut::<u64>();
        // SAFETY: the default disposition runs no code of ours. The two signals that are refused need no reset.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, DEFAULT.as_ptr(), nothing, SET_BYTES) };
    }
    // SAFETY: all-zero bytes are a valid empty set, filled by sigemptyset all the same.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// A session keyring of its own. Kernels without keyrings have nothing to leave.
fn leave_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Tells the parent to write the id maps and takes what it sends after that.
fn wait_for_late(control: BorrowedFd<'_>) -> Result<Late, StepError> {
    let lost = StepError::at(Step::Channel, "");
    rustix::io::write(control, &[READY]).map_err(lost)?;
    let mut length = [0; 4];
    read_exact(control, &mut length)?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    read_exact(control, &mut bytes)?;
    postcard::from_bytes(&bytes).map_err(|_| StepError::new(Step::Channel, "late"))
}

fn read_exact(control: BorrowedFd<'_>, mut into: &mut [u8]) -> Result<(), StepError> {
    while !into.is_empty() {
        match rustix::io::read(control, &mut *into) {
            Ok(0) => return Err(StepError::new(Step::Channel, "")),
            Ok(count) => into = &mut into[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StepError::at(Step::Channel, "")(errno)),
        }
    }
    Ok(())
}

/// Everything the app finds on its disk, and who it is.
fn write_files(container: &Container, late: &Late, given: &Given) -> Result<Identity, StepError> {
    let root = files::open_root()?;
    let root = root.as_fd();
    let etc = files::make_dirs(root, "/etc").map_err(StepError::at(Step::Files, "/etc"))?;
    files::write_own(etc.as_fd(), "hostname", format!("{}\n", container.hostname).as_bytes())?;
    files::write_own(etc.as_fd(), "hosts", late.hosts.as_bytes())?;
    files::write_own(etc.as_fd(), "resolv.conf", late.resolv_conf.as_bytes())?;
    let passwd = files::read_account_file(root, "/etc/passwd")?;
    let group = files::read_account_file(root, "/etc/group")?;
    let no_user = |error: user::UserError| StepError::new(Step::User, error.to_string());
    let identity = user::resolve(&container.user, &passwd, &group, container.ids.count).map_err(no_user)?;
    for file in &given.files {
        let owner = user::resolve_owner(&file.owner, &passwd, &group, container.ids.count)
            .map_err(|error| StepError::new(Step::Files, format!("{}: owner {error}", file.path)))?;
        files::write_file(root, file, owner)?;
    }
    let dir = working_dir(container);
    files::make_dirs(root, dir).map_err(StepError::at(Step::WorkingDir, dir))?;
    Ok(identity)
}

fn working_dir(container: &Container) -> &str {
    if container.working_dir.is_empty() { "/" } else { &container.working_dir }
}

/// Standard input is empty, output goes to the shim's pipes; they belong to the app's user, or `/dev/stdout` could not
/// be opened by it.
fn give_output(inherited: &Inherited<'_>, identity: &Identity) -> Result<(), StepError> {
    let failed = |what: &'static str| StepError::at(Step::Devices, what);
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    for pipe in [inherited.stdout, inherited.stderr] {
        rustix::fs::fchown(pipe, Some(uid), Some(gid)).map_err(failed("output"))?;
    }
    let null: OwnedFd = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("/dev/null"))?;
    for (number, fd) in [(0, null.as_fd()), (1, inherited.stdout), (2, inherited.stderr)] {
        // SAFETY: the standard descriptors belong to no object of this process.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } != number {
            return Err(failed("standard descriptors")(last_errno()));
        }
    }
    Ok(())
}

/// Later ones win; what every program expects is added where the image does not say it.
fn environment(container: &Container, given: Vec<String>, identity: &Identity) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(container.env.len() + given.len() + 3);
    let key_of = |entry: &str| entry.split('=').next().unwrap_or("").to_owned();
    for entry in container.env.iter().cloned().chain(given) {
        let key = key_of(&entry);
        env.retain(|earlier| key_of(earlier) != key);
        env.push(entry);
    }
    let home = identity.home.as_deref().unwrap_or("/");
    for (key, value) in [("PATH", DEFAULT_PATH), ("HOME", home), ("HOSTNAME", &container.hostname)] {
        if !env.iter().any(|entry| key_of(entry) == key) {
            env.push(format!("{key}={value}"));
        }
    }
    env
}

/// Every descriptor is closed on exec anyway; this holds even if one was made without the flag.
fn close_others_on_exec() {
    // SAFETY: marks descriptors, closes none.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

fn execute(args: &[String], env: &[String]) -> Result<Infallible, StepError> {
    let c_strings = |strings: &[String]| {
        strings.iter().map(|text| CString::new(text.as_bytes())).collect::<Result<Vec<_>, _>>()
    };
    let program = args.first().map(String::as_str).unwrap_or_default();
    let (Ok(args), Ok(environment)) = (c_strings(args), c_strings(env)) else {
        return Err(StepError::new(
            Step::Exec,
            format!("{program}: a zero byte in arguments or environment"),
        ));
    };
    let pointers = |strings: &[CString]| {
        let ends = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]);
        ends.collect::<Vec<_>>()
    };
    let (args, environment) = (pointers(&args), pointers(&environment));
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    // As a shell does: a place that may not be entered is remembered, but the search goes on.
    let mut reason = Errno::NOENT;
    for candidate in candidates(program, path) {
        let Ok(file) = CString::new(candidate) else { continue };
        // SAFETY: all pointers are to C strings that live across the call, both lists end in null.
        unsafe { libc::execve(file.as_ptr(), args.as_ptr(), environment.as_ptr()) };
        match last_errno() {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => reason = Errno::ACCESS,
            other => return Err(StepError::at(Step::Exec, program)(other)),
        }
    }
    Err(StepError::at(Step::Exec, program)(reason))
}

fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        Vec::new()
    } else if program.contains('/') {
        vec![program.to_owned()]
    } else {
        let dirs = path.split(':').map(|dir| if dir.is_empty() { "." } else { dir });
        dirs.map(|dir| format!("{dir}/{program}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{IdRange, RootFs};

    #[test]
    fn later_environment_wins_and_expected_names_are_added() {
        let container = Container {
            hostname: "web".into(),
            root: RootFs::Directory("/".into()),
            volumes: vec![],
            args: vec![],
            env: vec!["A=1".into(), "B=2".into(), "A=3".into()],
            working_dir: String::new(),
            user: String::new(),
            ids: IdRange { base: 0, count: 1 },
        };
        let identity = Identity { uid: 0, gid: 0, groups: vec![], home: Some("/root".into()) };
        let env = environment(&container, vec!["B=x=y".into(), "PATH=/bin".into()], &identity);
        assert_eq!(env, ["A=3", "B=x=y", "PATH=/bin", "HOME=/root", "HOSTNAME=web"]);
    }

    #[test]
    fn programs_without_a_slash_are_looked_up() {
        assert_eq!(candidates("sh", "/usr/bin::/bin"), ["/usr/bin/sh", "./sh", "/bin/sh"]);
        assert_eq!(candidates("./run", "/bin"), ["./run"]);
        assert!(candidates("", "/bin").is_empty());
    }
}
