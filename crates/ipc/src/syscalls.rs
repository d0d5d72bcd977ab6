// SPDX-License-Identifier: Apache-2.0
//! Names of system calls: the groups manifests speak of, and those that no service ever has a reason to make.
//!
//! Names only; crate `service` has the numbers. A call that is not allowed fails with EPERM, so that a library's
//! probe does not end the process; one of [`DANGEROUS`] ends it at once, since only an intruder would try.

/// Every process: memory, time, signals of its own, what it does with descriptors it already has.
const BASE: &[&str] = &[
    "brk",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "close_range",
    "dup",
    "dup3",
    "eventfd2",
    "exit",
    "exit_group",
    "fcntl",
    "fstat",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "getrandom",
    "getrusage",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "lseek",
    "madvise",
    "memfd_create",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "pipe2",
    "poll",
    "ppoll",
    "pread64",
    "preadv",
    "prlimit64",
    "pwrite64",
    "pwritev",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "shutdown",
    "sigaltstack",
    "sysinfo",
    "tgkill",
    "uname",
    "write",
    "writev",
    "adjtimex",
    // Guarded by arguments: only what the runtime needs (thread names; is it a terminal, non-blocking), and pairs whose
    // ends cannot speak to anyone else, as those of datagram sockets could.
    "ioctl.base",
    "prctl.base",
    "socketpair.stream",
];

/// Worker threads; no new namespace.
const THREAD: &[&str] = &[
    "clone.thread",
    "clone3",
    "membarrier",
    "rseq",
    "sched_getparam",
    "sched_getscheduler",
    "sched_setaffinity",
    "set_tid_address",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "timerfd_create",
    "timerfd_settime",
];

/// Sockets of its own, for processes in the network of the node: TCP and UDP and no other family.
const NET: &[&str] = &[
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "listen",
    "recvmmsg",
    "sendmmsg",
    "setsockopt",
    "socket.inet",
];

/// Speaking with the kernel about links, routes and packet rules; with [`NET`].
const NETLINK: &[&str] = &["socket.netlink"];

/// Files below what landlock and the mounts leave.
const FS: &[&str] = &[
    "access",
    "chdir",
    "copy_file_range",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fdatasync",
    "flock",
    "fstatfs",
    "fsync",
    "ftruncate",
    "getcwd",
    "getdents64",
    "link",
    "linkat",
    "lstat",
    "mkdir",
    "mkdirat",
    "open",
    "openat",
    "openat2",
    "readlink",
    "readlinkat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync_file_range",
    "syncfs",
    "truncate",
    "umask",
    "unlink",
    "unlinkat",
    "utimensat",
];

/// Group and its calls.
pub const GROUPS: &[(&str, &[&str])] =
    &[("base", BASE), ("thread", THREAD), ("net", NET), ("netlink", NETLINK), ("fs", FS)];

/// What a manifest may name besides the groups.
const EXTRA: &[&str] = &[
    "capget",
    "capset",
    "chmod",
    "chown",
    "clone",
    "fchown",
    "fchownat",
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "getgroups",
    "getxattr",
    "inotify_add_watch",
    "inotify_init1",
    "ioctl",
    "kill",
    "lchown",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "mincore",
    "mknod",
    "mknodat",
    "mlock",
    "mlock2",
    "msync",
    "munlock",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "removexattr",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "setxattr",
    "signalfd4",
    "tee",
    "vmsplice",
    "wait4",
    "waitid",
];

/// Ends the process that tries, unless its manifest names the call with a reason. Not here: `seccomp`, by which the
/// filters themselves come; more filters only forbid more.
pub const DANGEROUS: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "delete_module",
    "execve",
    "execveat",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

/// The calls of a group.
pub fn group(name: &str) -> Option<&'static [&'static str]> {
    GROUPS.iter().find(|(group, _)| *group == name).map(|(_, calls)| *calls)
}

/// A manifest may name it.
pub fn is_known(name: &str) -> bool {
    !name.contains('.')
        && (GROUPS.iter().any(|(_, calls)| calls.contains(&name))
            || EXTRA.contains(&name)
            || DANGEROUS.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_group_holds_a_dangerous_call() {
        for (group, calls) in GROUPS {
            for call in *calls {
                assert!(!DANGEROUS.contains(call), "{group}: {call}");
            }
        }
    }
}
