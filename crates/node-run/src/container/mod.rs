// SPDX-License-Identifier: Apache-2.0
//! The container executor: from a description to a running process, after the OCI runtime specification.
//!
//! Owns the order of system calls by which a process becomes a container. Never reads an image's config, talks to
//! another service or decides whether to start. One [`Container`] is started once:
//!
//! ```text
//! Starting::begin ── clone3 ──▶ child: cgroup, mounts, pivot_root, user namespace
//!        │                                     │ ready
//! Starting::complete(late) ── id maps, late ──▶ files, user, capabilities, seccomp, exec
//!        ▼
//!     Running ── pidfd readable ── wait() ──▶ Ended
//! ```
//!
//! The caller is single-threaded and holds `CAP_SYS_ADMIN` and what copying up files needs until the app runs;
//! afterwards [`Running`] needs nothing but to be the user who owns the app's user namespace.

pub mod cgroup;
mod child;
mod files;
mod launch;
mod mounts;
mod netns;
mod privileges;
pub mod seccomp;
pub mod signal;
pub(crate) mod step;
mod syscalls;
pub(crate) mod user;
mod volumes;

use std::path::PathBuf;

pub use cgroup::Cgroup;
pub(crate) use files::FileToWrite;
pub use launch::{Ended, Running, Starting};
pub use netns::Netns;
pub use step::{Step, StepError};

/// What is to be run, complete but for [`Late`].
#[derive(Clone, Debug)]
pub struct Container {
    /// At most 64 bytes.
    pub hostname: String,
    pub root: RootFs,
    pub volumes: Vec<VolumeMount>,
    /// Program and arguments; the program is looked up in `PATH` when it holds no slash.
    pub args: Vec<String>,
    /// `KEY=VALUE`; a later one wins.
    pub env: Vec<String>,
    /// Absolute; made if it is missing.
    pub working_dir: String,
    /// As an image says it: empty, `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    pub ids: IdRange,
}

/// The host ids that container ids 0.. are mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub base: u32,
    pub count: u32,
}

/// Where the root file system comes from. All of it belongs to the [`IdRange`].
#[derive(Clone, Debug)]
pub enum RootFs {
    /// Layers, lowest first, under a writable layer; mounted over `at`, which holds `upper` and `work`.
    Overlay { layers: Vec<PathBuf>, upper: PathBuf, work: PathBuf, at: PathBuf },
    /// A directory as it is.
    Directory(PathBuf),
}

/// A volume and where the app finds it.
#[derive(Clone, Debug)]
pub struct VolumeMount {
    pub source: VolumeSource,
    /// Absolute paths inside the container; made where they are missing.
    pub targets: Vec<String>,
    pub is_read_only: bool,
}

/// What a volume is on the node.
#[derive(Clone, Debug)]
pub enum VolumeSource {
    Directory(PathBuf),
    File(PathBuf),
    /// As in [`RootFs::Overlay`].
    Overlay {
        layers: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        at: PathBuf,
    },
    /// Layers, lowest first, that nobody writes; mounted over `at`.
    Layers {
        layers: Vec<PathBuf>,
        at: PathBuf,
    },
}

impl VolumeSource {
    fn is_file(&self) -> bool {
        matches!(self, VolumeSource::File(_))
    }
}

/// What becomes known while the child is already making its mounts.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Late {
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Text of `/etc/hosts`.
    pub hosts: String,
    /// As its user wrote it, see [`crate::userdata`]. It is read by the child once it is nothing but container root.
    pub untrusted_user_data: Option<String>,
}

impl std::fmt::Debug for Late {
    /// User data may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Late").finish_non_exhaustive()
    }
}
