// SPDX-License-Identifier: Apache-2.0
//! Landlock and seccomp from the manifest, put on the process by itself, for ever.
//!
//! init has taken away everything else before (mounts, uid, capabilities, network). Order: landlock, then three
//! seccomp filters; the kernel takes the strictest answer of the three, so each is simple:
//!
//! 1. `clone3` is said not to exist: its flags lie in memory where no filter can see them, and libc then uses `clone`;
//! 2. a call of [`ipc::syscalls::DANGEROUS`] that the manifest does not name ends the process;
//! 3. a call the manifest does not allow fails with EPERM.

use std::collections::BTreeMap;

use ipc::manifest::{Manifest, Mode};
use ipc::syscalls::DANGEROUS;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    Scope, path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::numbers;

/// The newest landlock this knows; an older kernel enforces what it has.
const LANDLOCK: ABI = ABI::V6;

/// Any namespace: forbidden in `clone`.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What the runtime asks of any descriptor: terminal or not, non-blocking, bytes waiting.
const IOCTLS: [u64; 4] = [libc::TCGETS, libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD];
/// Where the type of a socket stands beside its flags.
const SOCKET_TYPE: u64 = 0xf;
/// Nothing, TCP or UDP: other protocols of these families are rarely used kernel code.
const INET_PROTOCOLS: [u64; 3] = [0, libc::IPPROTO_TCP as u64, libc::IPPROTO_UDP as u64];
/// Links and routes; packet rules.
const NETLINK_PROTOCOLS: [u64; 2] = [libc::NETLINK_ROUTE as u64, libc::NETLINK_NETFILTER as u64];
/// Names of threads and of anonymous memory.
const PRCTLS: [u64; 3] = [libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, libc::PR_SET_VMA as u64];

/// Why the process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("landlock refused")]
    Landlock(#[from] landlock::RulesetError),
    #[error("the seccomp filter cannot be made")]
    Filter(#[from] seccompiler::BackendError),
    #[error("seccomp refused")]
    Seccomp(#[from] seccompiler::Error),
    #[error("no filter for this kind of processor")]
    Processor,
}

/// Confines the calling process, of one thread, to what the manifest says, for ever. [`crate::Service::start`] does it
/// with the manifest init sent; on its own it serves tests of confinement.
pub fn confine(manifest: &Manifest) -> Result<(), ConfineError> {
    if manifest.is_exempt() {
        return Ok(());
    }
    let filters = filters(manifest)?;
    restrict_files(manifest)?;
    for filter in &filters {
        seccompiler::apply_filter_all_threads(filter)?;
    }
    Ok(())
}

fn restrict_files(manifest: &Manifest) -> Result<(), ConfineError> {
    let all = AccessFs::from_all(LANDLOCK);
    let read = AccessFs::from_read(LANDLOCK) & !BitFlags::from(AccessFs::Execute);
    let write = all & !BitFlags::from(AccessFs::Execute);
    let access = |mode| if mode == Mode::Rw { write } else { read };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    for file in &manifest.files {
        ruleset = ruleset.add_rules(path_beneath_rules([file.inside()], access(file.mode)))?;
    }
    for device in &manifest.devices {
        let access = access(device.mode) | AccessFs::IoctlDev;
        ruleset = ruleset.add_rules(path_beneath_rules([&device.path], access))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filters(manifest: &Manifest) -> Result<[BpfProgram; 3], ConfineError> {
    let allowed = manifest.allowed_syscalls();
    let mut allow = Rules::new();
    for name in &allowed {
        // A call that is allowed as a whole needs no guard.
        if name.split_once('.').is_some_and(|(whole, _)| allowed.contains(whole)) {
            continue;
        }
        let (name, rules) = match *name {
            "ioctl.base" => ("ioctl", one_of(1, &IOCTLS)?),
            "prctl.base" => ("prctl", one_of(0, &PRCTLS)?),
            "clone.thread" => ("clone", vec![SeccompRule::new(vec![no_namespace()?])?]),
            "socket.inet" => ("socket", inet()?),
            "socket.netlink" => (
                "socket",
                sockets(libc::AF_NETLINK, &[libc::SOCK_RAW, libc::SOCK_DGRAM], &NETLINK_PROTOCOLS)?,
            ),
            "socketpair.stream" => {
                ("socketpair", sockets(libc::AF_UNIX, &[libc::SOCK_STREAM, libc::SOCK_SEQPACKET], &[0])?)
            }
            name => (name, Vec::new()),
        };
        // A name without a number does not exist on this kind of processor.
        if let Some(number) = numbers::number(name) {
            allow.entry(number).or_default().extend(rules);
        }
    }
    let missing: Rules = numbers::number("clone3").map(|n| (n, Vec::new())).into_iter().collect();
    let deadly: Rules = DANGEROUS
        .iter()
        .filter(|name| !allowed.contains(*name))
        .filter_map(|name| numbers::number(name))
        .map(|number| (number, Vec::new()))
        .collect();
    let errno = |number: i32| SeccompAction::Errno(number as u32);
    Ok([
        program(missing, SeccompAction::Allow, errno(libc::ENOSYS))?,
        program(deadly, SeccompAction::Allow, SeccompAction::KillProcess)?,
        program(allow, errno(libc::EPERM), SeccompAction::Allow)?,
    ])
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|_| ConfineError::Processor)?;
    Ok(SeccompFilter::new(rules, otherwise, on_match, arch)?.try_into()?)
}

fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, ConfineError> {
    let rule = |value: &u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)?;
        Ok(SeccompRule::new(vec![condition])?)
    };
    values.iter().map(rule).collect()
}

fn inet() -> Result<Vec<SeccompRule>, ConfineError> {
    let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM];
    let mut rules = sockets(libc::AF_INET, &kinds, &INET_PROTOCOLS)?;
    rules.extend(sockets(libc::AF_INET6, &kinds, &INET_PROTOCOLS)?);
    Ok(rules)
}

/// One rule for each kind and protocol of a family.
fn sockets(family: i32, kinds: &[i32], protocols: &[u64]) -> Result<Vec<SeccompRule>, ConfineError> {
    use SeccompCmpArgLen::Dword;
    use SeccompCmpOp::{Eq, MaskedEq};
    let pairs = kinds.iter().flat_map(|kind| protocols.iter().map(move |protocol| (*kind, *protocol)));
    let rule = |(kind, protocol): (i32, u64)| {
        Ok(SeccompRule::new(vec![
            SeccompCondition::new(0, Dword, Eq, family as u64)?,
            SeccompCondition::new(1, Dword, MaskedEq(SOCKET_TYPE), kind as u64)?,
            SeccompCondition::new(2, Dword, Eq, protocol)?,
        ])?)
    };
    pairs.map(rule).collect()
}

fn no_namespace() -> Result<SeccompCondition, ConfineError> {
    Ok(SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(syscalls: &str) -> Manifest {
        Manifest::parse(&format!(
            r#"
            name = "vault"
            bin = "x"
            job = "x"
            uid = 900003
            network = "none"
            syscalls = {syscalls}
            limits = {{ memory_max_mib = 16, pids_max = 8 }}
            "#
        ))
        .unwrap()
    }

    #[test]
    fn every_group_makes_filters() {
        let manifest = manifest(r#"{ groups = ["base", "thread", "net", "netlink", "fs"] }"#);
        assert!(filters(&manifest).unwrap().iter().all(|filter| !filter.is_empty()));
    }

    /// Runs the body in a child and says how it ended.
    fn in_child(body: impl FnOnce() -> bool) -> rustix::process::WaitStatus {
        // SAFETY: the child makes system calls only, and leaves by _exit.
        match unsafe { libc::fork() } {
            0 => {
                let code = i32::from(!body());
                // SAFETY: ends the child without running the test harness's exit hooks.
                unsafe { libc::_exit(code) }
            }
            pid => {
                let pid = rustix::process::Pid::from_raw(pid);
                let waited = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
                waited.unwrap().unwrap().1
            }
        }
    }

    fn apply(filters: &[BpfProgram; 3]) -> bool {
        rustix::thread::set_no_new_privs(true).is_ok()
            && filters.iter().all(|filter| seccompiler::apply_filter(filter).is_ok())
    }

    #[test]
    fn a_call_that_is_not_allowed_fails_and_a_dangerous_one_kills() {
        let filters = filters(&manifest(r#"{ groups = ["base"] }"#)).unwrap();
        let refused = in_child(|| {
            apply(&filters)
                // SAFETY: no pointer is passed.
                && unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) } == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
        });
        assert_eq!(refused.exit_status(), Some(0));
        let killed = in_child(|| {
            apply(&filters)
                // SAFETY: no pointer is passed.
                && unsafe { libc::unshare(libc::CLONE_NEWUSER) } == 0
        });
        assert_eq!(killed.terminating_signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn only_sockets_of_the_families_granted_can_be_made() {
        let can = |groups: &'static str, family: i32, kind: i32, protocol: i32| {
            let filters = filters(&manifest(groups)).unwrap();
            let status = in_child(|| {
                apply(&filters)
                    // SAFETY: no pointer is passed.
                    && unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) } >= 0
            });
            status.exit_status() == Some(0)
        };
        let (net, netlink) =
            (r#"{ groups = ["base", "net"] }"#, r#"{ groups = ["base", "net", "netlink"] }"#);
        for (family, kind, protocol, with_net, with_netlink) in [
            (libc::AF_INET, libc::SOCK_STREAM, 0, true, true),
            (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP, true, true),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP, false, false),
            (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, false, false),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE, false, true),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC, false, false),
            (libc::AF_UNIX, libc::SOCK_STREAM, 0, false, false),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0, false, false),
            (libc::AF_ALG, libc::SOCK_SEQPACKET, 0, false, false),
        ] {
            let what = format!("family {family}, kind {kind}, protocol {protocol}");
            assert_eq!(can(net, family, kind, protocol), with_net, "{what}");
            assert_eq!(can(netlink, family, kind, protocol), with_netlink, "{what} with netlink");
        }
    }

    #[test]
    fn threads_start_but_namespaces_do_not() {
        let filters = filters(&manifest(r#"{ groups = ["base", "thread"] }"#)).unwrap();
        let threads =
            in_child(|| apply(&filters) && std::thread::spawn(|| 7).join().is_ok_and(|seven| seven == 7));
        assert_eq!(threads.exit_status(), Some(0));
        let namespace = in_child(|| {
            apply(&filters)
                // SAFETY: fork-like clone without a stack; it must fail.
                && unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) } == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
        });
        assert_eq!(namespace.exit_status(), Some(0));
    }
}
