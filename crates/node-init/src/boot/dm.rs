// SPDX-License-Identifier: Apache-2.0
//! The device mapper: the root, checked by dm-verity block by block as it is read, and parts of a disk that the kernel shows no
//! partitions of.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::io::Errno;

use super::{BootError, at};

const CONTROL: &str = "/dev/mapper/control";
/// `_IOWR(0xfd, number, struct dm_ioctl)`.
const CREATE: libc::c_ulong = request(3);
const SUSPEND: libc::c_ulong = request(6);
const LOAD: libc::c_ulong = request(9);
const READ_ONLY: u32 = 1;
const HEAD_BYTES: usize = 312;
const SPEC_BYTES: usize = 40;
const SECTOR: u64 = 512;

const fn request(number: libc::c_ulong) -> libc::c_ulong {
    (3 << 30) | ((HEAD_BYTES as libc::c_ulong) << 16) | (0xfd << 8) | number
}

/// What a device is made of: one line of its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) kind: &'a str,
    pub(super) sectors: u64,
    pub(super) parameters: &'a str,
    pub(super) access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// The device of a root that is checked as it is read.
pub(super) fn verity(name: &str, data_blocks: u64, parameters: &str) -> Result<String, BootError> {
    let sectors = data_blocks * disk::verity::BLOCK_BYTES as u64 / SECTOR;
    make(name, Target { kind: "verity", sectors, parameters, access: Access::ReadOnly })
}

/// Makes a device and gives the kernel's name of it.
pub(super) fn make(name: &str, what: Target<'_>) -> Result<String, BootError> {
    let control = File::options().read(true).write(true).open(CONTROL).map_err(at("cannot open", CONTROL))?;
    let failed = |what: &'static str| move |source| BootError::Call { what, source };
    let created =
        ask(&control, CREATE, name, 0, &[]).map_err(failed("making a device of the device mapper"))?;
    let mut target = vec![0; SPEC_BYTES];
    target[8..16].copy_from_slice(&what.sectors.to_ne_bytes());
    target[24..24 + what.kind.len()].copy_from_slice(what.kind.as_bytes());
    target.extend_from_slice(what.parameters.as_bytes());
    target.resize((target.len() + 1).next_multiple_of(8), 0);
    let length = target.len() as u32;
    target[20..24].copy_from_slice(&length.to_ne_bytes());
    let flags = if what.access == Access::ReadOnly { READ_ONLY } else { 0 };
    ask(&control, LOAD, name, flags, &target).map_err(failed("loading the table of a device"))?;
    ask(&control, SUSPEND, name, 0, &[]).map_err(failed("starting a device"))?;
    // the kernel's own form of a device number: minor bits on both sides of the major ones
    let minor = (created & 0xff) | ((created >> 12) & 0xfff00);
    Ok(format!("dm-{minor}"))
}

/// One request; `target` is a table of one line. Gives the number of the device.
fn ask(control: &File, request: libc::c_ulong, name: &str, flags: u32, target: &[u8]) -> Result<u64, Errno> {
    let mut buffer = vec![0; HEAD_BYTES + target.len()];
    let length = buffer.len() as u32;
    for (place, value) in
        [(0, 4_u32), (12, length), (16, HEAD_BYTES as u32), (20, u32::from(!target.is_empty())), (28, flags)]
    {
        buffer[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    buffer[48..48 + name.len()].copy_from_slice(name.as_bytes());
    buffer[HEAD_BYTES..].copy_from_slice(target);
    // SAFETY: the buffer is a dm_ioctl with its length in it, and lives until the call is over; the kernel writes no more
    // than that length.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&buffer[40..48]);
    Ok(u64::from_ne_bytes(number))
}
