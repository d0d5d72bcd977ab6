// SPDX-License-Identifier: Apache-2.0
//! A hosted node inside a chroot: the kernel refuses user namespaces to whoever is chrooted (user_namespaces(7)).
//!
//! init then makes a mount namespace of its own whose root is the very tree it was chrooted to. It gains nothing by
//! that: it is root, and the tree stays the same. Single-threaded; called before anything else is started.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::thread::UnshareFlags;

/// Directories above the root that are climbed at most.
const DEPTH_MAX: usize = 256;

/// Why the mount namespace could not be made.
#[derive(Debug, thiserror::Error)]
#[error("leaving the chroot: {step}")]
pub struct AnchorError {
    step: &'static str,
    source: Errno,
}

fn failed(step: &'static str) -> impl FnOnce(Errno) -> AnchorError {
    move |source| AnchorError { step, source }
}

/// Does nothing where user namespaces can be had.
pub fn leave_chroot() -> Result<(), AnchorError> {
    if !is_refused_user_namespaces() {
        return Ok(());
    }
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = rustix::process::getcwd(Vec::new()).map_err(failed("working directory"))?;
    // SAFETY: one thread; only the mount namespace is left, no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("mount namespace"))?;
    let tree: OwnedFd = rustix::fs::open("/", directory, Mode::empty()).map_err(failed("open the root"))?;
    climb_to_the_top(&tree)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("private mounts"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_EMPTY_PATH;
    let copy =
        open_tree(&tree, "", flags | OpenTreeFlags::OPEN_TREE_CLOEXEC).map_err(failed("copy the tree"))?;
    move_mount(
        &copy,
        "",
        &tree,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .map_err(failed("mount the tree"))?;
    rustix::process::fchdir(&copy).map_err(failed("enter the tree"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("leave the rest"))?;
    rustix::process::chdir(&here).map_err(failed("return to the working directory"))
}

/// From below a narrower root the parents of the working directory lead to the namespace's own root.
fn climb_to_the_top(tree: &OwnedFd) -> Result<(), AnchorError> {
    let below = ["/proc", "/etc", "/dev"].into_iter().find(|path| rustix::process::chroot(*path).is_ok());
    below.ok_or(Errno::NOENT).map_err(failed("narrow the root"))?;
    rustix::process::fchdir(tree).map_err(failed("enter the tree"))?;
    for _ in 0..DEPTH_MAX {
        rustix::process::chdir("..").map_err(failed("climb"))?;
    }
    rustix::process::chroot(".").map_err(failed("widen the root"))
}

/// Tried by a child that ends at once.
fn is_refused_user_namespaces() -> bool {
    const REFUSED: i32 = 1;
    // SAFETY: one thread; the child makes two system calls and leaves without running anything of ours.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            let failed = libc::unshare(libc::CLONE_NEWUSER) != 0 && *libc::__errno_location() == libc::EPERM;
            libc::_exit(if failed { REFUSED } else { 0 })
        }
    }
    let pid = if child > 0 { rustix::process::Pid::from_raw(child) } else { None };
    let ended =
        pid.and_then(|pid| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).ok());
    ended.flatten().and_then(|(_, status)| status.exit_status()) == Some(REFUSED)
}
