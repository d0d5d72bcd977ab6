// SPDX-License-Identifier: Apache-2.0
//! The tries, by name. The same ones for services and for apps; where one makes no sense it ends in an errno too.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::mem::size_of_val;
use std::ptr::null;

use crate::child::{attempt, errno, result};

/// Things outside that a try needs to know.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// `IP:PORT` by name, where something listens.
    addresses: BTreeMap<String, String>,
    /// A process of the machine that is none of ours.
    victim: i32,
    /// Who started this one.
    pub(crate) parent: i32,
    /// Abstract name of a unix socket that listens in the network of the node.
    unix: String,
}

impl Target {
    pub(crate) fn of_settings(settings: &BTreeMap<String, String>) -> Target {
        let words: Vec<String> = settings
            .iter()
            .filter_map(|(key, value)| Some(format!("{}={value}", key.strip_prefix("attack.")?)))
            .collect();
        Target::of_words(&words)
    }

    /// `tcp.NAME=IP:PORT`, `victim=PID`, `unix=NAME`.
    pub(crate) fn of_words(words: &[String]) -> Target {
        let mut target = Target {
            victim: 1,
            parent: rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get()),
            ..Target::default()
        };
        for (key, value) in words.iter().filter_map(|word| word.split_once('=')) {
            match key {
                "victim" => target.victim = value.parse().unwrap(),
                "unix" => target.unix = value.into(),
                _ => {
                    target.addresses.insert(key.into(), value.into());
                }
            }
        }
        target
    }
}

/// Tries told in one line: few lines, that no queue on their way overflows while the one that writes them down waits.
const TRIES_PER_LINE: usize = 20;

/// Traces without stopping: what is allowed to be traced goes on.
const PTRACE_SEIZE: i64 = 0x4206;

type Try<'t> = Box<dyn Fn() -> Result<(), i32> + 't>;

pub(crate) fn run_all(target: &Target, confine: &dyn Fn()) {
    let mut all: Vec<(String, Try<'_>)> = Vec::new();
    files(&mut all);
    processes(&mut all, target);
    kernel(&mut all);
    identities(&mut all);
    namespaces(&mut all);
    sockets(&mut all, target);
    for some in all.chunks(TRIES_PER_LINE) {
        let told: Vec<String> =
            some.iter().map(|(name, body)| format!("{name} = {}", attempt(confine, body))).collect();
        crate::tell!("attack {}", told.join("; "));
    }
}

fn path(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn open(name: &str, flags: i32) -> Result<i32, i32> {
    let name = path(name);
    // SAFETY: a C string that lives across the call.
    let fd = unsafe { libc::openat(libc::AT_FDCWD, name.as_ptr(), flags | libc::O_CLOEXEC, 0o600) };
    if fd < 0 { Err(errno()) } else { Ok(fd) }
}

fn read(name: &str) -> Result<(), i32> {
    let fd = open(name, libc::O_RDONLY)?;
    let mut byte = [0_u8; 1];
    // SAFETY: one byte of room.
    match unsafe { libc::read(fd, byte.as_mut_ptr().cast(), 1) } {
        1 => Ok(()),
        0 => Err(libc::ENODATA),
        _ => Err(errno()),
    }
}

fn write(name: &str, bytes: &[u8], flags: i32) -> Result<(), i32> {
    let fd = open(name, libc::O_WRONLY | flags)?;
    // SAFETY: the bytes live across the call.
    result(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as i64)
}

fn call(number: i64, arguments: &[i64]) -> Result<(), i32> {
    let a = |at: usize| arguments.get(at).copied().unwrap_or(0);
    // SAFETY: callers pass pointers that live across the call, or none.
    result(unsafe { libc::syscall(number, a(0), a(1), a(2), a(3), a(4), a(5)) })
}

fn files(all: &mut Vec<(String, Try<'_>)>) {
    for name in [
        "/etc/shadow",
        "/proc/self/status",
        "/proc/1/environ",
        "/proc/1/root/etc/hostname",
        "/proc/kcore",
        "/proc/keys",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/kernel/core_pattern",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/config/server",
        "/etc/resolv.conf",
        "/ca-certificates",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/vda",
        "/dev/kvm",
        "/dev/net/tun",
        "/dev/urandom",
        "/run/docker.sock",
        "/var/run",
    ] {
        all.push((format!("read {name}"), Box::new(move || read(name))));
    }
    for name in ["/", "/proc", "/state/..", "/store", "/persist", "/sys"] {
        all.push((
            format!("list {name}"),
            Box::new(move || open(name, libc::O_RDONLY | libc::O_DIRECTORY).map(drop)),
        ));
    }
    for name in [
        "/x",
        "/bin/x",
        "/etc/x",
        "/proc/x",
        "/dev/x",
        "/sys/x",
        "/config/x",
        "/tmp/x",
        "/state/x",
        "/store/x",
    ] {
        all.push((
            format!("create {name}"),
            Box::new(move || open(name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).map(drop)),
        ));
    }
    for name in [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/self/oom_score_adj",
        "/proc/1/oom_score_adj",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/kernel/mm/ksm/run",
        "/sys/power/state",
        "/etc/resolv.conf",
        "/dev/sda",
    ] {
        // A byte that none of them takes for a value: only whether it may be written counts.
        all.push((
            format!("write {name}"),
            Box::new(move || match open(name, libc::O_WRONLY) {
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            }),
        ));
    }
    all.push((
        "device node".into(),
        Box::new(|| {
            let name = path(if open("/state", libc::O_PATH).is_ok() { "/state/node" } else { "/tmp/node" });
            // SAFETY: a C string that lives across the call.
            result(unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) }.into())
        }),
    ));
    all.push((
        "link out".into(),
        Box::new(|| {
            let (from, to) = (path("/etc/shadow"), path("/state/link"));
            // SAFETY: C strings that live across the calls.
            result(unsafe { libc::symlink(from.as_ptr(), to.as_ptr()) }.into())?;
            read("/state/link")
        }),
    ));
    all.push((
        "run what it wrote".into(),
        Box::new(|| {
            write("/state/program", b"#!/bin/x", libc::O_CREAT)?;
            // Readable is enough to map it, unless its place forbids programs.
            let fd = open("/state/program", libc::O_RDONLY)?;
            // SAFETY: a private mapping where the kernel likes.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE, fd, 0) };
            if at == libc::MAP_FAILED { Err(errno()) } else { Ok(()) }
        }),
    ));
}

fn processes(all: &mut Vec<(String, Try<'_>)>, target: &Target) {
    let parent = i64::from(target.parent);
    let victim = i64::from(target.victim);
    for (who, pid) in [("its parent", parent), ("process 1", 1), ("a stranger", victim)] {
        // Inside its own world process 1 and the parent may be its own.
        all.push((format!("signal {who}"), Box::new(move || call(libc::SYS_kill, &[pid, 0]))));
        all.push((
            format!("signal a thread of {who}"),
            Box::new(move || call(libc::SYS_tgkill, &[pid, pid, 0])),
        ));
        all.push((format!("open {who}"), Box::new(move || call(libc::SYS_pidfd_open, &[pid, 0]))));
        all.push((
            format!("trace {who}"),
            Box::new(move || call(libc::SYS_ptrace, &[PTRACE_SEIZE, pid, 0, 0])),
        ));
        all.push((
            format!("limit {who}"),
            Box::new(move || {
                let limit = [64_u64, 64];
                call(libc::SYS_prlimit64, &[pid, 7, limit.as_ptr() as i64, 0])
            }),
        ));
        all.push((
            format!("read memory of {who}"),
            Box::new(move || {
                let mut byte = [0_u8];
                let own = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
                call(
                    libc::SYS_process_vm_readv,
                    &[pid, &raw const own as i64, 1, &raw const own as i64, 1, 0],
                )
            }),
        ));
        all.push((
            format!("pin {who}"),
            Box::new(move || {
                let mask = 1_u64;
                call(libc::SYS_sched_setaffinity, &[pid, 8, &raw const mask as i64])
            }),
        ));
    }
    all.push(("signal all".into(), Box::new(|| call(libc::SYS_kill, &[-1, 0]))));
    all.push((
        "run a program".into(),
        Box::new(|| {
            let program = path("/proc/self/exe");
            let arguments: [*const libc::c_char; 2] = [program.as_ptr(), null()];
            call(libc::SYS_execve, &[program.as_ptr() as i64, arguments.as_ptr() as i64, 0])
        }),
    ));
    all.push((
        "run memory".into(),
        Box::new(|| {
            let empty = c"";
            call(libc::SYS_execveat, &[1, empty.as_ptr() as i64, 0, 0, i64::from(libc::AT_EMPTY_PATH)])
        }),
    ));
}

fn kernel(all: &mut Vec<(String, Try<'_>)>) {
    let x = c"/";
    let at = x.as_ptr() as i64;
    let one = 1_i64;
    for (name, number, arguments) in [
        ("keyctl", libc::SYS_keyctl, vec![0, -3, 0]),
        ("add_key", libc::SYS_add_key, vec![c"user".as_ptr() as i64, at, at, 1, -3]),
        ("request_key", libc::SYS_request_key, vec![c"user".as_ptr() as i64, at, 0, -3]),
        ("bpf", libc::SYS_bpf, vec![0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, vec![0, 0, -1, -1, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, vec![1, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, vec![one]),
        ("init_module", libc::SYS_init_module, vec![0, 0, at]),
        ("finit_module", libc::SYS_finit_module, vec![0, at, 0]),
        ("delete_module", libc::SYS_delete_module, vec![at, 0]),
        ("kexec_load", libc::SYS_kexec_load, vec![0, 0, 0, 0]),
        ("reboot", libc::SYS_reboot, vec![0xfee1_dead, 672_274_793, 0]),
        ("mount", libc::SYS_mount, vec![at, at, c"tmpfs".as_ptr() as i64, 0, 0]),
        ("bind mount", libc::SYS_mount, vec![at, at, 0, 4096, 0]),
        ("umount", libc::SYS_umount2, vec![at, 2]),
        ("pivot_root", libc::SYS_pivot_root, vec![at, at]),
        ("fsopen", libc::SYS_fsopen, vec![c"tmpfs".as_ptr() as i64, 0]),
        ("open_tree", libc::SYS_open_tree, vec![-100, at, 1]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, vec![-100, at, 0]),
        ("swapon", libc::SYS_swapon, vec![at, 0]),
        ("sethostname", libc::SYS_sethostname, vec![at, 1]),
        ("settimeofday", libc::SYS_settimeofday, vec![at, 0]),
        ("acct", libc::SYS_acct, vec![0]),
        ("syslog", libc::SYS_syslog, vec![3, at, 0]),
        ("quotactl", libc::SYS_quotactl, vec![0, 0, 0, 0]),
        ("lookup_dcookie", 212, vec![0, at, 1]),
    ] {
        all.push((name.into(), Box::new(move || call(number, &arguments))));
    }
    all.push((
        "set the clock".into(),
        Box::new(|| {
            let now = libc::timespec { tv_sec: 1, tv_nsec: 0 };
            call(libc::SYS_clock_settime, &[0, &raw const now as i64])
        }),
    ));
    all.push((
        "bend the clock".into(),
        Box::new(|| {
            // SAFETY: all zero is a valid request; the mode asks for a change.
            let mut request: libc::timex = unsafe { std::mem::zeroed() };
            request.modes = libc::ADJ_FREQUENCY;
            call(libc::SYS_adjtimex, &[&raw const request as i64])
        }),
    ));
    all.push((
        "type into a terminal".into(),
        Box::new(|| {
            let letter = b"x";
            call(libc::SYS_ioctl, &[1, libc::TIOCSTI as i64, letter.as_ptr() as i64])
        }),
    ));
    #[cfg(target_arch = "x86_64")]
    all.push(("call of a 32-bit program".into(), Box::new(|| {
        let mut number: i64 = 20;
        // SAFETY: getpid of the old gate: no memory is touched; the gate may not be there, which ends the child.
        unsafe { std::arch::asm!("int 0x80", inout("rax") number, out("r8") _, out("r9") _, out("r10") _, out("r11") _) };
        if number < 0 { Err(-number as i32) } else { Ok(()) }
    })));
}

fn identities(all: &mut Vec<(String, Try<'_>)>) {
    let zero = 0_i64;
    // The ids of the machine's root are not mapped in a container: there 0 is its own.
    for (name, number, arguments) in [
        ("setuid of the machine", libc::SYS_setuid, vec![900_003]),
        ("setresuid of the machine", libc::SYS_setresuid, vec![900_003; 3]),
        ("setgid of the machine", libc::SYS_setgid, vec![900_003]),
        ("setuid 0", libc::SYS_setuid, vec![zero]),
        ("setgroups", libc::SYS_setgroups, vec![1, [27_u32].as_ptr() as i64]),
        ("no_new_privs off", libc::SYS_prctl, vec![libc::PR_SET_NO_NEW_PRIVS.into(), 0, 0, 0, 0]),
        ("seccomp off", libc::SYS_prctl, vec![libc::PR_SET_SECCOMP.into(), 0, 0]),
        ("bounding set", libc::SYS_prctl, vec![libc::PR_CAPBSET_DROP.into(), 0, 0]),
    ] {
        all.push((name.into(), Box::new(move || call(number, &arguments))));
    }
    all.push((
        "raise capabilities".into(),
        Box::new(|| {
            let header = [0x2008_0522_u32, 0];
            let everything = [u32::MAX; 6];
            call(libc::SYS_capset, &[header.as_ptr() as i64, everything.as_ptr() as i64])
        }),
    ));
    all.push((
        "ambient capability".into(),
        Box::new(|| call(libc::SYS_prctl, &[libc::PR_CAP_AMBIENT.into(), 2, 21, 0, 0])),
    ));
}

fn namespaces(all: &mut Vec<(String, Try<'_>)>) {
    for (name, flag) in [
        ("user", libc::CLONE_NEWUSER),
        ("mount", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", 0x80),
    ] {
        all.push((format!("unshare {name}"), Box::new(move || call(libc::SYS_unshare, &[flag.into()]))));
        // 0x80 would be part of the signal here.
        if flag != 0x80 {
            all.push((
                format!("clone {name}"),
                Box::new(move || {
                    // SAFETY: a fork; the child ends at once.
                    match unsafe { libc::syscall(libc::SYS_clone, flag | libc::SIGCHLD, 0, 0, 0, 0) } {
                        // SAFETY: ends the child.
                        0 => unsafe { libc::_exit(0) },
                        other => result(other),
                    }
                }),
            ));
        }
        all.push((
            format!("join {name} of process 1"),
            Box::new(move || {
                let file = if name == "mount" { "mnt" } else { name };
                let fd = open(&format!("/proc/1/ns/{file}"), libc::O_RDONLY).unwrap_or(0);
                call(libc::SYS_setns, &[fd.into(), 0])
            }),
        ));
    }
    all.push(("clone3".into(), Box::new(|| call(libc::SYS_clone3, &[0, 0]))));
    all.push(("chroot".into(), Box::new(|| call(libc::SYS_chroot, &[c"/".as_ptr() as i64]))));
}

fn sockets<'t>(all: &mut Vec<(String, Try<'t>)>, target: &'t Target) {
    for (name, family, kind, protocol) in [
        ("tcp", libc::AF_INET, libc::SOCK_STREAM, 0),
        ("udp", libc::AF_INET, libc::SOCK_DGRAM, 0),
        ("tcp6", libc::AF_INET6, libc::SOCK_STREAM, 0),
        ("raw ip", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("raw ip6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ("mptcp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("netlink route", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        ("netlink netfilter", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ("netlink generic", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
        ("netlink audit", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 768),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("key", libc::AF_KEY, libc::SOCK_RAW, 2),
        ("can", libc::AF_CAN, libc::SOCK_RAW, 1),
        ("bluetooth", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
        ("tipc", libc::AF_TIPC, libc::SOCK_RDM, 0),
    ] {
        all.push((
            format!("socket {name}"),
            Box::new(move || {
                // SAFETY: no pointer is passed.
                result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }.into())
            }),
        ));
    }
    for (name, address) in &target.addresses {
        all.push((
            format!("connect {name}"),
            Box::new(move || {
                let address: std::net::SocketAddr = address.parse().unwrap();
                let patience = std::time::Duration::from_millis(1500);
                let connected = std::net::TcpStream::connect_timeout(&address, patience);
                connected.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::ETIMEDOUT))
            }),
        ));
    }
    all.push((
        "bind port 80".into(),
        Box::new(|| {
            let bound = std::net::TcpListener::bind("0.0.0.0:80");
            bound.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))
        }),
    ));
    let unix = target.unix.clone();
    all.push((
        "connect unix of the node".into(),
        Box::new({
            let unix = unix.clone();
            move || {
                // SAFETY: no pointer is passed.
                let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
                result(socket.into())?;
                let (address, length) = abstract_name(&unix);
                // SAFETY: an address of the length given.
                result(unsafe { libc::connect(socket, (&raw const address).cast(), length) }.into())
            }
        }),
    ));
    all.push((
        "send to unix of the node".into(),
        Box::new(move || {
            let mut pair = [0; 2];
            // SAFETY: room for two descriptors.
            let made = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) };
            result(made.into())?;
            let (address, length) = abstract_name(&format!("{unix}.d"));
            // SAFETY: an address of the length given.
            result(unsafe {
                libc::sendto(pair[0], [0_u8].as_ptr().cast(), 1, 0, (&raw const address).cast(), length)
            } as i64)
        }),
    ));
    all.push((
        "foreign source address".into(),
        Box::new(|| {
            // SAFETY: no pointer is passed.
            let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
            result(socket.into())?;
            let on = 1_i32;
            // SAFETY: an int that lives across the call.
            result(
                unsafe {
                    libc::setsockopt(
                        socket,
                        libc::SOL_IP,
                        libc::IP_TRANSPARENT,
                        (&raw const on).cast(),
                        size_of_val(&on) as u32,
                    )
                }
                .into(),
            )
        }),
    ));
    all.push((
        "change an address".into(),
        Box::new(|| {
            // SAFETY: no pointer is passed.
            let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
            result(socket.into())?;
            // SAFETY: all zero is a valid request.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
                *to = *from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = 0;
            // SAFETY: reads one ifreq, which lives across the call.
            result(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request) }.into())
        }),
    ));
}

fn abstract_name(name: &str) -> (libc::sockaddr_un, u32) {
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (to, from) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    (address, (2 + 1 + name.len()) as u32)
}
