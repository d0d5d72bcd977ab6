// SPDX-License-Identifier: Apache-2.0
//! Starting a process in its cage.
//!
//! init clones itself into new mount, IPC and UTS namespaces (and an empty network namespace where the manifest says
//! so); the child builds the cage ([`child`]), tells what failed over a pair that exec closes, and becomes the service.
//! init waits for that: some milliseconds, bounded by [`BUILD_TIMEOUT`].

mod child;
mod root;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::frame::{Channel, FrameError};
use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use ipc::manifest::{Manifest, Mode, Network, capability_number};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

/// The cage is built in milliseconds; on a busy machine in a second.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);
/// Id of the service itself inside a user namespace over the apps' ids, right behind them.
const OWN_ID_INSIDE: u32 = APP_UID_COUNT;

/// Roots of the node, as on the command line.
#[derive(Clone, Debug)]
pub struct Roots {
    pub config: PathBuf,
    pub persist: PathBuf,
    pub run: PathBuf,
}

/// Everything the child needs, worked out before the clone.
#[derive(Debug)]
pub(crate) struct Cage {
    name: String,
    /// Empty directory to mount the new root on.
    mount_point: PathBuf,
    binds: Vec<Bind>,
    /// Path inside.
    exec: CString,
    arg0: CString,
    uid: u32,
    capabilities: Vec<u32>,
    has_user_namespace: bool,
    /// It gets a duplicate of init's own end of the pair, for the next init.
    outlives_init: bool,
    cgroup_procs: Vec<PathBuf>,
}

/// One thing that is visible inside.
#[derive(Debug)]
pub(crate) struct Bind {
    what: What,
    /// Absolute, inside.
    inside: PathBuf,
    mode: Mode,
    is_optional: bool,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A file or directory of the host.
    Path(PathBuf),
    /// The same, and it may be executed.
    Program(PathBuf),
    /// A device node of the host.
    Device(PathBuf),
    /// Copies of the files of a directory, readable by this process alone: CONFIG belongs to someone else.
    Copies(PathBuf),
    /// A view of the kernel.
    Proc,
    Sys,
}

/// What the child says before it execs.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// In a new user namespace: map its ids.
    Map,
    Mapped,
    Failed(String),
}

/// A process that runs its executable.
#[derive(Debug)]
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub control: Channel,
    /// What it writes to stdout and stderr.
    pub output: OwnedFd,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("its executable {} is missing", .0.display())]
    NoExecutable(PathBuf),
    #[error("cannot prepare {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("no channel")]
    Channel(#[from] FrameError),
    #[error("{call} failed")]
    Os { call: &'static str, source: io::Error },
    #[error("its cage: {0}")]
    Cage(String),
}

/// Makes what the manifest needs on the host and describes the cage.
pub(crate) fn cage(
    manifest: &Manifest,
    roots: &Roots,
    bins: &Path,
    cgroup_procs: Vec<PathBuf>,
) -> Result<Cage, SpawnError> {
    let executable = bins.join(&manifest.bin);
    if !executable.is_file() {
        return Err(SpawnError::NoExecutable(executable));
    }
    let inside = PathBuf::from("/bin").join(&manifest.bin);
    let mut binds = vec![Bind {
        what: What::Program(executable),
        inside: inside.clone(),
        mode: Mode::Ro,
        is_optional: false,
    }];
    for file in &manifest.files {
        let rest = |root: &str| file.path.strip_prefix(root).map(|rest| rest.trim_start_matches('/'));
        let below =
            |root: &Path, rest: &str| if rest.is_empty() { root.to_path_buf() } else { root.join(rest) };
        let what = if let Some(rest) = rest("{config}") {
            What::Copies(below(&roots.config, rest))
        } else if let Some(rest) = rest("{state}") {
            let own = roots.persist.join(&manifest.name);
            private_dir(&own, manifest.uid)?;
            What::Path(below(&own, rest))
        } else if let Some(rest) = rest("{persist}") {
            What::Path(below(&roots.persist, rest))
        } else if let Some(rest) = rest("{run}") {
            What::Path(below(&roots.run, rest))
        } else {
            match file.path.as_str() {
                "/proc" => What::Proc,
                "/sys" => What::Sys,
                path => What::Path(path.into()),
            }
        };
        let (mode, is_optional) = (file.mode, file.optional);
        binds.push(Bind { what, inside: file.inside().into(), mode, is_optional });
    }
    for device in &manifest.devices {
        let what = What::Device(device.path.clone().into());
        let (mode, is_optional) = (device.mode, device.optional);
        binds.push(Bind { what, inside: device.path.clone().into(), mode, is_optional });
    }
    // Outer directories first: a file may lie inside a granted directory.
    binds.sort_by(|a, b| a.inside.cmp(&b.inside));
    let c_string =
        |text: &str| CString::new(text).map_err(|_| SpawnError::Cage("a name with a zero byte".into()));
    Ok(Cage {
        name: manifest.name.clone(),
        mount_point: roots.run.join("root"),
        binds,
        exec: c_string(&inside.to_string_lossy())?,
        arg0: c_string(&manifest.bin)?,
        uid: manifest.uid,
        capabilities: manifest
            .capabilities
            .iter()
            .filter_map(|capability| capability_number(&capability.name))
            .collect(),
        has_user_namespace: manifest.has_user_namespace(),
        outlives_init: manifest.outlives_init(),
        cgroup_procs,
    })
}

/// Starts the process; returns when it runs its own executable.
pub(crate) fn spawn(cage: &Cage, network: Network) -> Result<Spawned, SpawnError> {
    let os =
        |call: &'static str| move |errno: rustix::io::Errno| SpawnError::Os { call, source: errno.into() };
    let (control, child_control) = Channel::pair()?;
    let (words, child_words) = Channel::pair()?;
    let (output, child_output) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(os("pipe"))?;
    rustix::io::ioctl_fionbio(&output, true).map_err(os("ioctl"))?;
    let mut flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_PIDFD | libc::SIGCHLD;
    if network == Network::None {
        flags |= libc::CLONE_NEWNET;
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: a fork: no stack and no shared memory are asked for; the kernel writes the pidfd into a live c_int. This
    // process has one thread, so the child finds no lock held and may use the allocator.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    if pid < 0 {
        return Err(SpawnError::Os { call: "clone", source: io::Error::last_os_error() });
    }
    if pid == 0 {
        let inherited = child::Inherited {
            control: child_control.into(),
            returned: cage.outlives_init.then(|| control.into()),
            output: child_output,
            words: child_words,
        };
        drop((words, output));
        child::become_service(cage, inherited);
    }
    drop((child_control, child_words, child_output));
    let pid = Pid::from_raw(pid as i32).ok_or_else(|| SpawnError::Cage("clone gave no process id".into()))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    match build(&words, pid, cage) {
        Ok(()) => Ok(Spawned { pid, pidfd, control, output }),
        Err(error) => {
            // It may be gone already; it is waited for in either case.
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            Err(error)
        }
    }
}

/// Listens to the child until exec closes its end.
fn build(words: &Channel, pid: Pid, cage: &Cage) -> Result<(), SpawnError> {
    loop {
        match words.recv::<Word>(BUILD_TIMEOUT) {
            Ok((Word::Map, _)) => {
                map_ids(pid, cage.uid)?;
                words.send(&Word::Mapped, &[], BUILD_TIMEOUT)?;
            }
            Ok((Word::Mapped, _)) => {}
            Ok((Word::Failed(what), _)) => return Err(SpawnError::Cage(what)),
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Inside: 0.. are the apps' ids, the one behind them is the service's own.
fn map_ids(pid: Pid, uid: u32) -> Result<(), SpawnError> {
    let map = format!("0 {APP_UID_BASE} {APP_UID_COUNT}\n{OWN_ID_INSIDE} {uid} 1\n");
    for file in ["uid_map", "gid_map"] {
        let path = PathBuf::from(format!("/proc/{}/{file}", pid.as_raw_nonzero()));
        std::fs::write(&path, &map).map_err(|source| SpawnError::Directory { path, source })?;
    }
    Ok(())
}

/// A directory that only this service may enter.
fn private_dir(path: &Path, uid: u32) -> Result<(), SpawnError> {
    let failed = |source| SpawnError::Directory { path: path.to_path_buf(), source };
    if !path.exists() {
        std::fs::create_dir_all(path).map_err(failed)?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(path, mode).map_err(failed)?;
    std::os::unix::fs::chown(path, Some(uid), Some(uid)).map_err(failed)
}

/// A duplicate above the descriptors that the service will find, closed on exec.
fn above_standard(fd: &OwnedFd) -> Result<OwnedFd, rustix::io::Errno> {
    const ABOVE: i32 = 16;
    debug_assert!(fd.as_raw_fd() >= 0);
    rustix::io::fcntl_dupfd_cloexec(fd, ABOVE)
}
