// SPDX-License-Identifier: Apache-2.0
//! The app's network namespace: made by the shim, owned by the host's user namespace, furnished by the net process.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use super::step::{Step, StepError};

/// Every container user may listen below 1024 and send pings: what the network capabilities of an ordinary container
/// allow, which mean nothing here because the namespace does not belong to the app's user namespace.
const SYSCTLS: &[(&str, &str)] = &[
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // A DHCP server is heard before there is a way back to it.
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
];

/// What the net process needs to furnish the namespace.
#[derive(Debug)]
pub struct Netns {
    pub namespace: OwnedFd,
    /// A route socket opened inside: works there whoever holds it.
    pub route: OwnedFd,
    /// So does this one: net asks with it for an address, as the app itself cannot.
    pub datagrams: OwnedFd,
}

impl Netns {
    /// Moves the calling thread into a new network namespace and prepares it; its children start in there.
    pub fn enter_new() -> Result<Netns, StepError> {
        // SAFETY: a network namespace changes no memory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(StepError::at(Step::Network, "unshare"))?;
        Netns::prepare_own()
    }

    /// Prepares the namespace the caller was born into, which has to be empty and its own: loopback up, and what
    /// apps may do there.
    pub fn prepare_own() -> Result<Netns, StepError> {
        let failed = |what: &'static str| StepError::at(Step::Network, what);
        for (path, value) in SYSCTLS {
            let fd = rustix::fs::openat(CWD, *path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed(path))?;
            rustix::io::write(&fd, value.as_bytes()).map_err(failed(path))?;
        }
        loopback_up().map_err(failed("lo"))?;
        // Protocol 0 of this family is NETLINK_ROUTE.
        let route =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
                .map_err(failed("route socket"))?;
        let datagrams =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(failed("datagram socket"))?;
        let namespace =
            rustix::fs::openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed("/proc/self/ns/net"))?;
        Ok(Netns { namespace, route, datagrams })
    }
}

fn loopback_up() -> rustix::io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd());
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    match unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// The reason of the C call that just failed.
pub(super) fn last_errno() -> rustix::io::Errno {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    rustix::io::Errno::from_raw_os_error(code)
}
