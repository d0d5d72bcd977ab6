// SPDX-License-Identifier: Apache-2.0
//! An emulated machine with Debian 13's kernel and tools: what users have, whatever this machine is. There is cgroup v2
//! and nothing else, all controllers are there, and memory is short.
//!
//! ```text
//! base    kernel, modules, Debian's tools: unpacked once per cache, no script of a package ever runs
//! disk    base + our executables, tests and images at the same paths as here; made anew for each boot
//! initrd  busybox and the driver of the disk
//! ```
//!
//! One boot runs one list of programs. What they say goes to the serial console, with a marker before and after each;
//! the machine is stopped at the last marker, at a panic, or when it has said nothing for too long. Software emulation
//! always: a `/dev/kvm` that exists may still run nothing.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::command::{Background, mortal, root, run};
use crate::debian::Archive;
use crate::progress::{SLOWNESS, step};

/// What tests call besides our own executables.
const TOOLS: &[&str] = &[
    "base-files",
    "bash",
    "busybox-static",
    "coreutils",
    "dhcpcd-base",
    "dnsmasq-base",
    "findutils",
    "grep",
    "iproute2",
    "isc-dhcp-client",
    "kmod",
    "mount",
    "nftables",
    "procps",
    "skopeo",
    "udhcpc",
    "util-linux",
];
/// Never read by a test.
const LEFT_OUT: &[&str] = &["usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"];
/// Large enough for images, logs and swap of all tests; a sparse file.
const DISK: &str = "4G";
/// Beyond what the tests need by little, so that memory can be made short in seconds.
pub const MEMORY_MIB: u32 = 1024;
/// How many times longer than on hardware the tests wait: emulation costs a factor of 10 to 20, their limits have slack.
const SLOWER: u32 = 8;
/// Longest silence on the console: longer than any test waits for one thing.
const SILENCE: Duration = Duration::from_secs(600);
/// Longest time for one program; what hangs is shown and killed.
const JOB: Duration = Duration::from_secs(15 * 60);
/// Longest time for everything.
const TOTAL: Duration = Duration::from_secs(30 * 60);
/// Begins every line of the machine itself on the console.
const MARK: &str = "GUEST:";
/// What a kernel says that goes on no more. (A soft lockup is only a host that is busy.)
const CRASHES: &[&str] = &["Kernel panic", "BUG: unable to handle"];

/// What QEMU and Debian call this architecture.
struct Machine {
    kernel: &'static str,
    qemu: &'static [&'static str],
    console: &'static str,
}

#[cfg(target_arch = "aarch64")]
const MACHINE: Machine = Machine {
    kernel: "linux-image-cloud-arm64",
    qemu: &["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"],
    console: "ttyAMA0",
};
#[cfg(not(target_arch = "aarch64"))]
const MACHINE: Machine = Machine {
    kernel: "linux-image-cloud-amd64",
    qemu: &["qemu-system-x86_64", "-M", "q35", "-cpu", "max"],
    console: "ttyS0",
};

/// One program to run inside.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    /// A path of this machine, which is also the path inside.
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// What a boot takes along.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub jobs: Vec<Job>,
    /// Executables, stripped on the way.
    pub programs: Vec<PathBuf>,
    /// Files and directories as they are.
    pub files: Vec<PathBuf>,
    /// Environment of all jobs.
    pub environment: Vec<(String, String)>,
}

/// Boots the guest, runs all jobs and gives the names of those that failed. The console is kept in `dir/console`.
pub fn boot(cache: &Path, dir: &Path, load: &Load) -> anyhow::Result<Vec<String>> {
    let base = base(cache)?;
    run(root("rm").arg("-rf").arg(dir))?;
    fs::create_dir_all(dir)?;
    step("packing the guest's disk");
    let tree = dir.join("tree");
    run(root("cp").arg("-a").arg("--reflink=auto").arg(base.join("tree")).arg(&tree))?;
    pack(&tree, load)?;
    let disk = dir.join("disk");
    run(root("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(&tree)
        .arg(&disk)
        .arg(DISK))?;
    run(root("rm").arg("-rf").arg(&tree))?;
    run(root("chmod").arg("a+rw").arg(&disk))?;
    step("booting the guest");
    let console = dir.join("console");
    let mut command = mortal(MACHINE.qemu[0]);
    command
        .args(&MACHINE.qemu[1..])
        .args(["-accel", "tcg,thread=single", "-smp", "2", "-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", &format!("file:{}", console.display())])
        .arg("-kernel")
        .arg(base.join("kernel"))
        .arg("-initrd")
        .arg(base.join("initrd"))
        .args(["-append", &format!("console={} loglevel=2 panic=-1 no_timer_check", MACHINE.console)])
        .args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", disk.display())]);
    let mut machine = Background::start("the guest", &dir.join("qemu.log"), &mut command)?;
    let failed = watch(&mut machine, &console);
    machine.stop()?;
    let _ = fs::remove_file(&disk);
    failed
}

/// Shows what the console says until the last job is through.
fn watch(machine: &mut Background, console: &Path) -> anyhow::Result<Vec<String>> {
    let (start, mut heard) = (Instant::now(), Instant::now());
    let (mut shown, mut failed) = (0, Vec::new());
    loop {
        let is_over = machine.check().is_err();
        let text = fs::read(console).unwrap_or_default();
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in String::from_utf8_lossy(&text[shown..end]).lines() {
            eprintln!("  | {}", line.trim_end());
            let said = line.trim().strip_prefix(MARK).map(str::trim);
            match said.and_then(|said| said.split_once(' ')) {
                Some(("failed", name)) => failed.push(name.to_owned()),
                None if said == Some("end") => return Ok(failed),
                Some(_) | None => {}
            }
            if CRASHES.iter().any(|crash| line.contains(crash)) {
                bail!("the guest's kernel crashed: see {}", console.display());
            }
        }
        if end > shown {
            (shown, heard) = (end, Instant::now());
        }
        if is_over {
            bail!("the guest ended before its tests did: see {}\n{}", console.display(), machine.log_tail());
        }
        if heard.elapsed() > SILENCE || start.elapsed() > TOTAL {
            bail!("the guest hangs: see {}", console.display());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Directory with `tree`, `kernel` and `initrd`; made once per cache and list of tools.
fn base(cache: &Path) -> anyhow::Result<PathBuf> {
    let base = cache.join(format!("guest-{}", crate::lab::fingerprint(&TOOLS)));
    if base.join("initrd").exists() {
        return Ok(base);
    }
    step("getting Debian's kernel and tools for the guest");
    run(root("rm").arg("-rf").arg(&base))?;
    let archive = Archive::open(&cache.join("debian"))?;
    let tree = base.join("tree");
    archive.unpack_with_dependencies(TOOLS, &tree)?;
    archive.unpack(&[&archive.newest(MACHINE.kernel)?], &tree)?;
    for path in LEFT_OUT {
        run(root("rm").arg("-rf").arg(tree.join(path)))?;
    }
    let modules = only_entry(&tree.join("usr/lib/modules"))?;
    // the loader of the first driver and the index of all can read no compressed ones
    run(root("find").arg(&modules).args(["-name", "*.xz", "-exec", "xz", "-d", "{}", "+"]))?;
    let version = modules.file_name().context("modules have a version")?.to_owned();
    run(root("chroot").arg(&tree).args(["depmod"]).arg(&version))?;
    let kernel = tree.join(format!("boot/vmlinuz-{}", version.to_string_lossy()));
    run(root("cp").arg(&kernel).arg(base.join("kernel")))?;
    run(root("rm").arg("-rf").arg(tree.join("boot")))?;
    initrd(&base, &tree, &modules.join("kernel/drivers/block/virtio_blk.ko"))?;
    run(root("chmod").arg("a+r").arg(base.join("kernel")))?;
    Ok(base)
}

fn only_entry(dir: &Path) -> anyhow::Result<PathBuf> {
    let entry = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.next();
    Ok(entry.with_context(|| format!("{} is empty", dir.display()))??.path())
}

const FIRST_INIT: &str = "\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
until [ -b /dev/vda ]; do /bin/busybox sleep 0.05; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /sbin/guest-init
";

fn initrd(base: &Path, tree: &Path, driver: &Path) -> anyhow::Result<()> {
    let work = base.join("initrd.work");
    for dir in ["bin", "dev", "root"] {
        fs::create_dir_all(work.join(dir))?;
    }
    let busybox = work.join("bin/busybox");
    fs::copy(tree.join("usr/bin/busybox"), &busybox)?;
    fs::copy(driver, work.join("virtio_blk.ko"))?;
    fs::write(work.join("init"), FIRST_INIT)?;
    fs::set_permissions(work.join("init"), fs::Permissions::from_mode(0o755))?;
    // written under another name first: its presence says that the base is complete
    let made = base.join("initrd.made");
    let pack = "find . | \"$1\" cpio -o -H newc > \"$2\" 2>/dev/null";
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(&busybox).arg(&made).current_dir(&work))?;
    fs::remove_dir_all(&work)?;
    Ok(fs::rename(made, base.join("initrd"))?)
}

/// Mounts what an ordinary system mounts, then runs the jobs.
const INIT: &str = "\
#!/bin/bash
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
mount -t tmpfs -o size=50% tmp /tmp
mount -t tmpfs run /run
ip link set lo up
echo guest > /proc/sys/kernel/hostname
job() {
  name=$1; shift
  echo \"GUEST: begin $name, $(cut -d' ' -f1 /proc/uptime) s\"
  \"$@\" < /dev/null 2>&1 &
  pid=$! left=$JOB_S
  while kill -0 $pid 2> /dev/null; do
    sleep 1
    left=$((left - 1))
    [ $left -gt 0 ] && continue
    echo \"GUEST: hangs $name\"
    ps -eo pid,ppid,stat,wchan:24,args --cols 140
    kill -KILL $pid
    break
  done
  if wait $pid; then echo \"GUEST: ok $name\"; else echo \"GUEST: failed $name\"; fi
}
";

fn pack(tree: &Path, load: &Load) -> anyhow::Result<()> {
    let inside = |path: &Path| tree.join(path.strip_prefix("/").unwrap_or(path));
    for path in load.programs.iter().chain(load.jobs.iter().map(|job| &job.program)) {
        let to = inside(path);
        make_parent(&to)?;
        run(root("strip").arg("-g").arg("-o").arg(&to).arg(path))?;
    }
    for path in &load.files {
        let to = inside(path);
        make_parent(&to)?;
        run(root("cp").arg("-aT").arg(path).arg(&to))?;
    }
    // what scripts of packages would have made
    run(root("ln").args(["-sf", "bash"]).arg(tree.join("usr/bin/sh")))?;
    for (name, line) in [("passwd", "root:x:0:0:root:/root:/usr/bin/sh"), ("group", "root:x:0:")] {
        let local = tree.with_extension(name);
        fs::write(&local, format!("{line}\n"))?;
        run(root("install").args(["-m", "644"]).arg(&local).arg(tree.join("etc").join(name)))?;
    }
    let mut script = INIT.to_owned();
    writeln!(script, "JOB_S={}", JOB.as_secs())?;
    writeln!(script, "export {SLOWNESS}={SLOWER}")?;
    for (name, value) in &load.environment {
        writeln!(script, "export {name}={}", quoted(value))?;
    }
    for job in &load.jobs {
        let words = job.arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        writeln!(script, "job {} {} {words}", quoted(&job.name), quoted(&job.program.to_string_lossy()))?;
    }
    script.push_str("echo \"GUEST: end\"\nsync\nbusybox poweroff -f\n");
    let local = tree.with_extension("init");
    fs::write(&local, script)?;
    let to = tree.join("usr/sbin/guest-init");
    run(root("install").args(["-m", "755"]).arg(&local).arg(&to)).map(drop)
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    run(root("mkdir").arg("-p").arg(parent)).map(drop)
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
