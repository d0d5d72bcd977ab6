// SPDX-License-Identifier: Apache-2.0
//! The system calls of an app.
//!
//! Two filters: the first allows a list and answers ENOSYS to everything else, so that a C library falls back from
//! what it does not find; the second answers EPERM to what is known and refused. Both are compiled before the app is
//! started and installed last, right before exec. One architecture: calls of another one end the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as ArgLen, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::step::{Step, StepError};
use super::syscalls::{ALLOWED, REFUSED};

/// Both programs, ready to be installed.
#[derive(Debug)]
pub struct Filter {
    allow: BpfProgram,
    refuse: BpfProgram,
}

/// Why no filter could be compiled: a mistake in the lists, or an architecture without one.
#[derive(Debug, thiserror::Error)]
#[error("the system call filter of apps cannot be compiled")]
pub struct FilterError(#[from] seccompiler::Error);

impl From<seccompiler::BackendError> for FilterError {
    fn from(error: seccompiler::BackendError) -> FilterError {
        FilterError(seccompiler::Error::Backend(error))
    }
}

/// Every kind of new namespace; an app is given its namespaces and makes none.
const NEW_NAMESPACES: [i32; 8] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
    // CLONE_NEWTIME shares its bit with the exit signal of clone and only counts in unshare and clone3.
    0,
];
/// Families of sockets an app may open. Packet sockets would need a capability it lacks; all others are rarely used
/// kernel code, or reach past the network namespace (vsock).
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Execution domains that only change how addresses or `uname` look: Linux, Linux with the 2.6 name, and asking.
const PERSONALITIES: [u64; 4] = [0, 0x2_0000, 0x8, 0xffff_ffff];
/// `ioctl` that types into the terminal of another.
const TERMINAL_INJECTION: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

impl Filter {
    pub fn compile() -> Result<Filter, FilterError> {
        let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
            ALLOWED.iter().map(|number| (*number, Vec::new())).collect();
        let all_namespaces = NEW_NAMESPACES.iter().fold(0, |all, flag| all | *flag) as u64;
        allowed.insert(libc::SYS_clone, vec![rule(0, ArgLen::Qword, Op::MaskedEq(all_namespaces), 0)?]);
        let mut refused: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.iter().map(|number| (*number, Vec::new())).collect();
        let new_namespace = NEW_NAMESPACES
            .iter()
            .filter(|flag| **flag != 0)
            .map(|flag| rule(0, ArgLen::Qword, Op::MaskedEq(*flag as u64), *flag as u64))
            .collect::<Result<Vec<_>, _>>()?;
        refused.insert(libc::SYS_clone, new_namespace);
        let not_one_of = |values: Vec<u64>| -> Result<Vec<SeccompRule>, FilterError> {
            let conditions = values
                .into_iter()
                .map(|value| SeccompCondition::new(0, ArgLen::Dword, Op::Ne, value))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(vec![SeccompRule::new(conditions)?])
        };
        let families = not_one_of(FAMILIES.iter().map(|family| *family as u64).collect())?;
        refused.insert(libc::SYS_socketpair, families.clone());
        refused.insert(libc::SYS_socket, families);
        refused.insert(libc::SYS_personality, not_one_of(PERSONALITIES.to_vec())?);
        let injections = TERMINAL_INJECTION.iter().map(|request| rule(1, ArgLen::Dword, Op::Eq, *request));
        refused.insert(libc::SYS_ioctl, injections.collect::<Result<Vec<_>, _>>()?);

        let errno = |number: i32| SeccompAction::Errno(number as u32);
        Ok(Filter {
            allow: program(allowed, errno(libc::ENOSYS), SeccompAction::Allow)?,
            refuse: program(refused, SeccompAction::Allow, errno(libc::EPERM))?,
        })
    }

    /// Puts the calling thread under both. Of two errors the newer filter's is returned, so the refusing one is last.
    pub(super) fn install(&self) -> Result<(), StepError> {
        for program in [&self.allow, &self.refuse] {
            seccompiler::apply_filter(program)
                .map_err(|error| StepError::new(Step::Seccomp, error.to_string()))?;
        }
        Ok(())
    }
}

fn rule(argument: u8, length: ArgLen, op: Op, value: u64) -> Result<SeccompRule, FilterError> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(argument, length, op, value)?])?)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, then, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_lists_compile_and_do_not_contradict_each_other() {
        Filter::compile().unwrap();
        let allowed: BTreeSet<_> = ALLOWED.iter().collect();
        assert_eq!(allowed.len(), ALLOWED.len(), "listed twice");
        for number in REFUSED {
            assert!(!allowed.contains(number), "{number} is allowed and refused");
        }
        assert!(!allowed.contains(&libc::SYS_clone3), "its flags cannot be looked at: fall back to clone");
    }
}
