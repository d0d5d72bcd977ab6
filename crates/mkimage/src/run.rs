// SPDX-License-Identifier: Apache-2.0
//! Runs an image under QEMU with UEFI. Hardware virtualization only where a guest was seen to run: that `/dev/kvm` exists says
//! nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// A guest of three instructions takes milliseconds.
const PROBE_TIME: Duration = Duration::from_secs(5);
const TPM_TIME: Duration = Duration::from_secs(10);
/// What the guest of the probe says is doubled and one is added by QEMU.
const PROBE_SAYS: u8 = 0x10;
const PROBE_STATUS: i32 = (PROBE_SAYS as i32) * 2 + 1;
/// Firmware and its variables, as distributions install them.
const FIRMWARE: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// The firmware that lets nobody but itself write variables.
const SECURE_FIRMWARE: &[&str] =
    &["/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd"];

/// End of the name of an installation medium.
const MEDIUM: &str = "iso";

/// What to run.
#[derive(Clone, Debug)]
pub struct Machine {
    pub image: PathBuf,
    /// How an installation medium (.iso) is put in. Beside it the box has an empty disk.
    pub medium: Medium,
    /// More disks, written to as they are.
    pub more_disks: Vec<PathBuf>,
    /// All that is written to the box's disk, in order, in the format of dm-log-writes.
    pub record: Option<PathBuf>,
    /// Directory for the disk, the firmware's variables and the TPM: what the box keeps. The image itself stays as it is.
    pub state: PathBuf,
    pub disk_gib: u32,
    pub memory_mib: u32,
    pub cpus: u32,
    /// Ports of this machine, on the loopback, and of the guest.
    pub forwards: Vec<(u16, u16)>,
    /// Serial console into this file instead of the terminal.
    pub serial: Option<PathBuf>,
    /// Control socket of QEMU.
    pub monitor: Option<PathBuf>,
    /// Variables with keys: the firmware starts only what is signed by them.
    pub secure_boot: Option<PathBuf>,
    pub tpm: Tpm,
    pub serial_number: Option<String>,
    /// Ends when the guest restarts.
    pub is_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Cd,
    Usb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tpm {
    None,
    /// By swtpm, where it is installed.
    Emulated,
}

/// Makes what the machine keeps and gives the command that runs it.
pub fn command(machine: &Machine) -> anyhow::Result<Command> {
    let (code, variables) = firmware(machine)?;
    let image = fs::canonicalize(&machine.image)
        .with_context(|| format!("cannot find image {}", machine.image.display()))?;
    fs::create_dir_all(&machine.state).with_context(|| format!("cannot make {}", machine.state.display()))?;
    let state = fs::canonicalize(&machine.state)?;
    let (disk, kept) = (state.join("disk.qcow2"), state.join("variables.fd"));
    let is_medium = image.extension().is_some_and(|end| end == MEDIUM);
    if !disk.exists() {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if !is_medium {
            create.args(["-F", format(&image), "-b"]).arg(&image);
        }
        create.arg(&disk);
        crate::tools::run(create.arg(format!("{}G", machine.disk_gib)), "qemu-img")?;
    }
    if !kept.exists() {
        fs::copy(&variables, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    }
    let mut forward = String::new();
    for (host, guest) in &machine.forwards {
        forward.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    }
    let mut command = Command::new("qemu-system-x86_64");
    if is_kvm_working(&state)? {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
    }
    if machine.secure_boot.is_some() {
        command.args(["-machine", "q35,smm=on"]);
        command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
    } else {
        command.args(["-machine", "q35"]);
    }
    command
        .args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()])
        .args(["-nodefaults", "-display", "none", "-vga", "std", "-device", "virtio-rng-pci"])
        .args(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}")])
        .args(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", kept.display())])
        .args(["-drive", &disk_of(machine, &disk)?])
        .args(["-nic", &format!("user,model=virtio-net-pci{forward}")])
        .args(["-device", "i6300esb", "-action", "watchdog=reset"]);
    if is_medium {
        command
            .args(["-drive", &format!("if=none,id=medium,format=raw,readonly=on,file={}", image.display())]);
        match machine.medium {
            Medium::Cd => command.args(["-device", "ide-cd,drive=medium"]),
            Medium::Usb => command.args(["-device", "qemu-xhci", "-device", "usb-storage,drive=medium"]),
        };
    }
    for path in &machine.more_disks {
        let what = format!("if=virtio,format={},file={}", format(path), path.display());
        command.args(["-drive", &what]);
    }
    match &machine.serial {
        Some(path) => command.args(["-serial", &format!("file:{}", path.display())]),
        None => command.args(["-serial", "stdio"]),
    };
    if let Some(path) = &machine.monitor {
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", path.display())]);
    }
    if let Some(number) = &machine.serial_number {
        command.args(["-smbios", &format!("type=1,serial={number}")]);
    }
    if machine.tpm == Tpm::Emulated {
        start_tpm(&state, &mut command)?;
    }
    if machine.is_once {
        command.arg("-no-reboot");
    }
    Ok(command)
}

/// The disk of the box, as QEMU is told of it.
fn disk_of(machine: &Machine, disk: &Path) -> anyhow::Result<String> {
    let Some(record) = &machine.record else {
        return Ok(format!("if=virtio,format=qcow2,discard=unmap,file={}", disk.display()));
    };
    fs::File::create(record).with_context(|| format!("cannot make {}", record.display()))?;
    Ok(format!(
        "if=virtio,driver=blklogwrites,log.driver=file,log.filename={},file.driver=qcow2,file.file.driver=file,file.file.filename={}",
        record.display(),
        disk.display()
    ))
}

/// As QEMU calls it.
fn format(disk: &Path) -> &'static str {
    if disk.extension().is_some_and(|end| end == "qcow2") { "qcow2" } else { "raw" }
}

/// The firmware and its first variables.
fn firmware(machine: &Machine) -> anyhow::Result<(&'static str, PathBuf)> {
    let is_there = |path: &str| Path::new(path).exists();
    let found = match &machine.secure_boot {
        Some(variables) => {
            SECURE_FIRMWARE.iter().find(|code| is_there(code)).map(|code| (*code, variables.clone()))
        }
        None => {
            let mut all = FIRMWARE.iter();
            let found = all.find(|(code, variables)| is_there(code) && is_there(variables));
            found.map(|(code, variables)| (*code, PathBuf::from(variables)))
        }
    };
    found.context("there is no UEFI firmware for QEMU: install the package ovmf")
}

/// Starts an emulated TPM that ends with its machine.
fn start_tpm(state: &Path, machine: &mut Command) -> anyhow::Result<()> {
    let (kept, socket) = (state.join("tpm"), state.join("tpm.socket"));
    fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    let _ = fs::remove_file(&socket);
    let started = Command::new("swtpm")
        .args(["socket", "--tpm2", "--terminate", "--tpmstate", &format!("dir={}", kept.display())])
        .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if started.is_err() {
        crate::step(format_args!("no TPM: install the package swtpm to have one"));
        return Ok(());
    }
    let end = Instant::now() + TPM_TIME;
    while !socket.exists() {
        if Instant::now() > end {
            bail!("the emulated TPM does not start");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.args(["-chardev", &format!("socket,id=tpm,path={}", socket.display())]).args([
        "-tpmdev",
        "emulator,id=tpm,chardev=tpm",
        "-device",
        "tpm-crb,tpmdev=tpm",
    ]);
    Ok(())
}

/// Runs a guest that says one byte and ends.
fn is_kvm_working(state: &Path) -> anyhow::Result<bool> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(false);
    }
    let rom = state.join("probe.rom");
    let mut code = vec![0xf4_u8; 64 * 1024];
    // mov al, PROBE_SAYS; out 0xf4, al; hlt
    code[0xfff0..0xfff5].copy_from_slice(&[0xb0, PROBE_SAYS, 0xe6, 0xf4, 0xf4]);
    fs::write(&rom, code)?;
    let child = Command::new("qemu-system-x86_64")
        .args([
            "-machine",
            "pc,accel=kvm",
            "-cpu",
            "host",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-bios"])
        .arg(&rom)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        bail!("there is no qemu-system-x86_64: install the package qemu-system-x86");
    };
    let end = Instant::now() + PROBE_TIME;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status.code(),
            None if Instant::now() > end => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    fs::remove_file(&rom)?;
    Ok(status == Some(PROBE_STATUS))
}
