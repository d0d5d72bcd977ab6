// SPDX-License-Identifier: Apache-2.0
//! What a shim gives up once its app runs: every capability, every file, and all system calls it does not need to read
//! pipes, wait, signal and talk over the channels it has.
//!
//! It stays the owner of the app's user namespace, which is what lets it signal the app without a capability.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// The newest landlock this knows; an older kernel enforces what it has.
const LANDLOCK: ABI = ABI::V6;

/// No open, no socket, no new process, no exec.
pub const ALLOWED: &[i64] = &[
    libc::SYS_adjtimex,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("capabilities cannot be dropped")]
    Capabilities(#[from] rustix::io::Errno),
    #[error("landlock refused")]
    Landlock(#[from] RulesetError),
    #[error("the system call filter cannot be made")]
    Filter(#[from] seccompiler::BackendError),
    #[error("the system call filter cannot be installed")]
    Seccomp(#[from] seccompiler::Error),
}

/// What a shim needs besides to ask its app's probe: streams of its own network, which is the app's.
const PROBING: (i64, i64) = (libc::SYS_connect, libc::SYS_socket);

/// For ever. The calling process has one thread. `probe_port`: the one port it may still connect to.
pub fn confine(probe_port: Option<u16>) -> Result<(), ConfineError> {
    let filter = filter(probe_port.is_some())?;
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    // Everything handled, nothing allowed.
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .create()?
        .add_rules(probe_port.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp))))?
        .restrict_self()?;
    seccompiler::apply_filter(&filter)?;
    Ok(())
}

fn filter(is_probing: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<_>> = ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
    if is_probing {
        let family = libc::AF_INET as u64;
        let is_inet = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, family)?;
        rules.insert(PROBING.0, Vec::new());
        rules.insert(PROBING.1, vec![SeccompRule::new(vec![is_inet])?]);
    }
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_filter_compiles() {
        assert!(super::filter(true).unwrap().len() > super::filter(false).unwrap().len());
    }
}
