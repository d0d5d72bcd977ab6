// SPDX-License-Identifier: Apache-2.0
//! What the app may do: ids, capabilities, limits. Applied by the child, last thing before exec.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::step::{Step, StepError};
use super::user::Identity;

/// The bounded set of an ordinary container, less what the user namespace makes void (mknod). All of them reach no
/// further than the app's own user namespace.
pub(super) const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Open files: enough for any server, and a soft limit that programs which walk all descriptors still survive.
const OPEN_FILES_SOFT: u64 = 65_536;
const OPEN_FILES_HARD: u64 = 1_048_576;
/// An app dies before any service of the node.
const OOM_SCORE: &[u8] = b"500";

/// While still privileged on the host: limits may be raised.
pub(super) fn set_limits() -> Result<(), StepError> {
    let failed = |what: &'static str| StepError::at(Step::Limits, what);
    set_open_files().map_err(failed("nofile"))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(failed("core"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let fd = rustix::fs::open(
        "/proc/self/oom_score_adj",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(failed("oom_score_adj"))?;
    rustix::io::write(&fd, OOM_SCORE).map(drop).map_err(failed("oom_score_adj"))
}

/// The shim may not raise the hard limit; what init has is what apps can have.
fn set_open_files() -> Result<(), Errno> {
    let wanted = Rlimit { current: Some(OPEN_FILES_SOFT), maximum: Some(OPEN_FILES_HARD) };
    match rustix::process::setrlimit(Resource::Nofile, wanted) {
        Err(Errno::PERM) => {
            let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
            let soft = hard.map_or(OPEN_FILES_SOFT, |hard| hard.min(OPEN_FILES_SOFT));
            rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: hard })
        }
        done => done,
    }
}

/// Becomes root of the user namespace the process is in. Needs its full capabilities.
pub(super) fn become_container_root() -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&[])?;
    let (gid, uid) = (rustix::fs::Gid::ROOT, rustix::fs::Uid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// From container root to the app's user with its bounded capabilities, and no way back.
pub(super) fn drop_to(identity: &Identity) -> Result<(), StepError> {
    let failed = |what: &'static str| StepError::at(Step::Privileges, what);
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if CAPABILITIES.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last capability this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(failed("bounding set")(errno)),
        }
    }
    rustix::thread::clear_ambient_capability_set().map_err(failed("ambient set"))?;
    let groups: Vec<_> = identity.groups.iter().map(|gid| rustix::fs::Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed("groups"))?;
    let gid = rustix::fs::Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("group"))?;
    let uid = rustix::fs::Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("user"))?;
    let kept = if identity.uid == 0 { CAPABILITIES } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed("capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(failed("no_new_privs"))
}
