// SPDX-License-Identifier: Apache-2.0
//! The few requests that have no system call of their own: partitions of a disk, size of an ext4, watchdog, loopback.

use std::ffi::CString;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use disk::gpt::Partition;
use rustix::io::Errno;

const BLKPG: libc::c_ulong = 0x1269;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;

/// What is done with a partition in the kernel's view of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Add = 1,
    Resize = 3,
}

#[repr(C)]
struct BlockPage {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlockPagePartition,
}

#[repr(C)]
struct BlockPagePartition {
    start: i64,
    length: i64,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// Tells the kernel of a partition that the table has; others stay in use.
pub(super) fn change_partition(
    disk: &File,
    change: Change,
    number: u32,
    partition: &Partition,
    sector_bytes: u32,
) -> Result<(), Errno> {
    let bytes = |sectors: u64| i64::try_from(sectors * u64::from(sector_bytes)).map_err(|_| Errno::FBIG);
    let mut data = BlockPagePartition {
        start: bytes(partition.first)?,
        length: bytes(partition.sectors())?,
        number: libc::c_int::try_from(number).map_err(|_| Errno::INVAL)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let length = size_of::<BlockPagePartition>() as libc::c_int;
    let request = BlockPage { operation: change as libc::c_int, flags: 0, length, data: &raw mut data };
    // SAFETY: both structures are those of linux/blkpg.h and live until the call is over.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const request) })
}

/// Makes a mounted ext4 as large as its partition.
pub(super) fn resize_ext4(mounted: &File, blocks: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads one number of 64 bits, which lives until the call is over.
    check(unsafe { libc::ioctl(mounted.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
}

pub(super) fn set_watchdog(watchdog: &File, timeout_s: i32) -> Result<(), Errno> {
    let mut timeout_s: libc::c_int = timeout_s;
    // SAFETY: the kernel reads and writes one int, which lives until the call is over.
    check(unsafe { libc::ioctl(watchdog.as_raw_fd(), WDIOC_SETTIMEOUT as _, &raw mut timeout_s) })
}

/// Sets a link up that needs nothing else.
pub(super) fn set_up(link: &str) -> Result<(), Errno> {
    let mut request = of_link(link)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is complete and lives until the call is over.
    check(unsafe { libc::ioctl(socket()?.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}

/// The first IPv4 address of a link.
pub(super) fn address(link: &str) -> Option<Ipv4Addr> {
    let mut request = of_link(link).ok()?;
    // SAFETY: the request is complete and lives until the call is over; the kernel fills in an address.
    let result = unsafe { libc::ioctl(socket().ok()?.as_raw_fd(), libc::SIOCGIFADDR as _, &raw mut request) };
    check(result).ok()?;
    // SAFETY: the kernel has just filled in this part. An IPv4 address lies behind two bytes of a port.
    let bytes = unsafe { request.ifr_ifru.ifru_addr.sa_data };
    let [a, b, c, d] =
        [bytes[2], bytes[3], bytes[4], bytes[5]].map(|byte: libc::c_char| byte.cast_unsigned());
    Some(Ipv4Addr::new(a, b, c, d))
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let kind = rustix::net::SocketType::DGRAM;
    rustix::net::socket_with(rustix::net::AddressFamily::INET, kind, flags, None)
}

fn of_link(link: &str) -> Result<libc::ifreq, Errno> {
    let name = CString::new(link).map_err(|_| Errno::INVAL)?;
    // SAFETY: a structure of plain numbers; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = byte.cast_signed();
    }
    Ok(request)
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
