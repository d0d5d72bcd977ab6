// SPDX-License-Identifier: Apache-2.0
//! What happens between clone and exec, in the child: joining the control group, the new root, ids and capabilities.
//!
//! Order matters. Everything that needs the host (control group, mounts) comes first; then the root is left for ever;
//! then, in this order, user namespace, bounding set, groups, ids, capabilities. Nothing comes back from here.

use std::convert::Infallible;
use std::fmt::Display;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ipc::boot::{INIT_FD, RETURN_FD};
use ipc::frame::Channel;
use rustix::process::{Resource, Rlimit, setrlimit, setsid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{Cage, OWN_ID_INSIDE, Word, above_standard, root};

/// init answers at once.
const WORD_TIMEOUT: Duration = Duration::from_secs(20);
/// Open files: sockets to all others, blobs and layers; ample.
const OPEN_FILES: u64 = 4096;
/// The exit status that nobody sees: the words came before.
const FAILED_STATUS: i32 = 126;

/// What the child has of init.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) control: OwnedFd,
    /// init's end of the same pair, for a process that outlives init.
    pub(super) returned: Option<OwnedFd>,
    pub(super) output: OwnedFd,
    pub(super) words: Channel,
}

/// A step that failed.
struct StepError(String);

fn failed<E: Display>(step: &'static str) -> impl FnOnce(E) -> StepError {
    move |error| StepError(format!("{step}: {error}"))
}

pub(super) fn become_service(cage: &Cage, inherited: Inherited) -> ! {
    let Err(StepError(what)) = build_and_exec(cage, &inherited);
    // When init cannot be told it sees the end of the pair and then of the process.
    let _ = inherited.words.send(&Word::Failed(what), &[], WORD_TIMEOUT);
    // SAFETY: the child of a fork leaves without running init's exit hooks.
    unsafe { libc::_exit(FAILED_STATUS) }
}

fn build_and_exec(cage: &Cage, inherited: &Inherited) -> Result<Infallible, StepError> {
    // Away from the terminal: its signals are for init.
    setsid().map_err(failed("setsid"))?;
    unblock_signals();
    for path in &cage.cgroup_procs {
        fs::write(path, "0").map_err(failed("control group"))?;
    }
    let null = fs::File::open("/dev/null").map_err(failed("/dev/null"))?;
    root::build(cage).map_err(StepError)?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(failed("core limit"))?;
    let files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, files).map_err(failed("file limit"))?;
    if cage.has_user_namespace {
        enter_user_namespace(inherited)?;
    }
    drop_privileges(cage)?;
    place_descriptors(&null.into(), inherited).map_err(failed("descriptors"))?;
    close_the_rest(inherited.returned.is_some()).map_err(failed("descriptors"))?;
    let argv = [cage.arg0.as_ptr(), std::ptr::null()];
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: both arrays end with a null pointer and outlive the call; the strings are CStrings of the cage.
    unsafe { libc::execve(cage.exec.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(failed("exec")(std::io::Error::last_os_error()))
}

/// init blocks the signals it reads from a descriptor.
fn unblock_signals() {
    // SAFETY: an empty set is made and set; no pointer outlives the calls.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn enter_user_namespace(inherited: &Inherited) -> Result<(), StepError> {
    // SAFETY: only the user namespace is left; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(failed("user namespace"))?;
    inherited.words.send(&Word::Map, &[], WORD_TIMEOUT).map_err(failed("id map"))?;
    match inherited.words.recv::<Word>(WORD_TIMEOUT).map_err(failed("id map"))? {
        (Word::Mapped, _) => Ok(()),
        (other, _) => Err(StepError(format!("id map: unexpected {other:?}"))),
    }
}

fn drop_privileges(cage: &Cage) -> Result<(), StepError> {
    let wanted = cage.capabilities.iter().fold(0_u64, |set, number| set | 1 << number);
    let wanted = CapabilitySet::from_bits_retain(wanted);
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !wanted.contains(one) {
            match remove_capability_from_bounding_set(one) {
                // Behind the last one that this kernel has.
                Err(rustix::io::Errno::INVAL) => break,
                result => result.map_err(failed("bounding set"))?,
            }
        }
    }
    let id = if cage.has_user_namespace { OWN_ID_INSIDE } else { cage.uid };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[]).map_err(failed("groups"))?;
    set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("gid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("uid"))?;
    let sets = CapabilitySets { effective: wanted, permitted: wanted, inheritable: wanted };
    set_capabilities(None, sets).map_err(failed("capabilities"))?;
    for one in wanted.iter() {
        configure_capability_in_ambient_set(one, true).map_err(failed("ambient set"))?;
    }
    set_no_new_privs(true).map_err(failed("no_new_privs"))
}

/// 0 nothing, 1 and 2 the output, 3 the channel to init, 4 its other end where it is to be kept; everything else closes
/// on exec.
fn place_descriptors(null: &OwnedFd, inherited: &Inherited) -> Result<(), rustix::io::Errno> {
    let null = above_standard(null)?;
    let output = above_standard(&inherited.output)?;
    let control = above_standard(&inherited.control)?;
    let returned = inherited.returned.as_ref().map(above_standard).transpose()?;
    let returned = returned.as_ref().map(|fd| (fd, RETURN_FD));
    for (from, to) in
        [(&null, 0), (&output, 1), (&output, 2), (&control, INIT_FD)].into_iter().chain(returned)
    {
        // SAFETY: dup2 onto a number takes two open descriptors at most; what was at 0..=4 is not used any more, except
        // by an owner that never drops: this process execs or leaves by _exit.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(from), to) } < 0 {
            return Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::BADF));
        }
    }
    Ok(())
}

/// Closes on exec whatever else is open: also what init itself was started with by mistake.
fn close_the_rest(is_end_returned: bool) -> std::io::Result<()> {
    let first = if is_end_returned { RETURN_FD } else { INIT_FD } as libc::c_uint + 1;
    // SAFETY: nothing is closed now; only flags of descriptors change.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
