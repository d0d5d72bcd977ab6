// SPDX-License-Identifier: Apache-2.0
//! The executor against the kernel: what a started app looks like from inside and through /proc.
//!
//! Needs root, a static busybox, and cgroup v1 memory or cgroup v2 for the test of the memory limit.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use model::observed::Exit;
use node_run::container::cgroup::Gauges;
use node_run::container::{
    Cgroup, Container, IdRange, Late, Netns, RootFs, Running, Starting, StepError, seccomp::Filter,
};

const APPLETS: &[&str] = &[
    "sh", "cat", "chmod", "chown", "dd", "echo", "env", "grep", "id", "kill", "ls", "mkdir", "mknod",
    "mount", "mv", "pwd", "readlink", "rm", "setpriv", "sleep", "stat", "tail", "true", "umount", "unshare",
    "wc",
];
const SOON: Duration = Duration::from_secs(20);

/// The executor forks, which only a single-threaded process may: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A tree of a store: one layer with busybox, a second one over it, and a volume.
struct World {
    dir: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let world = World { dir, _alone: alone };
        let low = world.path("low");
        for sub in ["bin", "etc", "tmp", "hidden", "kept"] {
            fs::create_dir_all(low.join(sub)).unwrap();
        }
        fs::copy(busybox(), low.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", low.join("bin").join(applet)).unwrap();
        }
        fs::write(low.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n")
            .unwrap();
        fs::write(low.join("etc/group"), "root:x:0:\nweb:x:102:\ndisk:x:6:web\n").unwrap();
        symlink("/run/not/there", low.join("etc/resolv.conf")).unwrap();
        fs::write(low.join("hidden/low"), "").unwrap();
        fs::write(low.join("gone"), "").unwrap();
        let high = world.path("high");
        fs::create_dir_all(high.join("hidden")).unwrap();
        fs::write(high.join("hidden/high"), "").unwrap();
        run("mknod", &[high.join("gone").to_str().unwrap(), "c", "0", "0"]);
        rustix::fs::setxattr(
            high.join("hidden"),
            "user.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        for sub in ["volume/upper", "volume/work"] {
            fs::create_dir_all(world.path(sub)).unwrap();
        }
        give_to_apps(world.dir.path());
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn container(&self, args: &[&str]) -> Container {
        Container {
            hostname: "tested".into(),
            volumes: vec![],
            root: RootFs::Overlay {
                layers: vec![self.path("low"), self.path("high")],
                upper: self.path("volume/upper"),
                work: self.path("volume/work"),
                at: self.path("volume"),
            },
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![],
            working_dir: String::new(),
            user: String::new(),
            ids: IdRange { base: APP_UID_BASE, count: APP_UID_COUNT },
        }
    }

    fn script(&self, script: &str) -> Done {
        finish(start(&self.container(&["sh", "-c", script]), &Cgroup::None, &late()).unwrap())
    }
}

struct Done {
    exit: Exit,
    stdout: String,
    stderr: String,
}

fn busybox() -> PathBuf {
    if let Some(path) = std::env::var_os("SELVEDGE_BUSYBOX") {
        return PathBuf::from(path);
    }
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists()).unwrap()
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn give_to_apps(dir: &Path) {
    run("chown", &["-hR", &format!("{APP_UID_BASE}:{APP_UID_BASE}"), dir.to_str().unwrap()]);
}

fn late() -> Late {
    Late {
        hosts: "127.0.0.1 localhost\n".into(),
        resolv_conf: "nameserver 10.1.0.1\n".into(),
        untrusted_user_data: None,
    }
}

/// The test's own thread enters the app's network namespace and has to stay: an app dies with the thread that made it.
fn start(container: &Container, cgroup: &Cgroup, late: &Late) -> Result<Running, StepError> {
    let filter = Filter::compile().unwrap();
    Netns::enter_new()?;
    Starting::begin(container, cgroup, &filter)?.complete(late)
}

fn read_all(fd: &OwnedFd) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 64 * 1024];
    while let Ok(count @ 1..) = rustix::io::read(fd, &mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn wait(running: &mut Running) -> Exit {
    let deadline = Instant::now() + SOON;
    loop {
        let mut fds =
            [rustix::event::PollFd::from_borrowed_fd(running.pidfd(), rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&second)).unwrap();
        if let Some(ended) = running.wait().unwrap() {
            return ended.0;
        }
        assert!(Instant::now() < deadline, "still runs");
    }
}

fn finish(mut running: Running) -> Done {
    let exit = wait(&mut running);
    Done { exit, stdout: read_all(&running.stdout), stderr: read_all(&running.stderr) }
}

/// Waits for a line of the app, so that it is known to have come so far.
fn wait_for_output(running: &Running, want: &str) {
    let deadline = Instant::now() + SOON;
    let mut seen = String::new();
    while !seen.contains(want) {
        let mut fds = [rustix::event::PollFd::new(&running.stdout, rustix::event::PollFlags::IN)];
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&second)).unwrap();
        seen.push_str(&read_all(&running.stdout));
        assert!(Instant::now() < deadline, "only {seen:?}");
    }
}

fn status(pid: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.into(), v.into())).collect()
}

#[test]
#[ignore = "needs root"]
fn a_running_app_is_confined_as_promised() {
    let world = World::new();
    let mut running =
        start(&world.container(&["sh", "-c", "echo up; exec sleep 100"]), &Cgroup::None, &late()).unwrap();
    wait_for_output(&running, "up");
    let pid = running.pid().to_string();
    // the shell plays with its own signals until it has become the program
    let deadline = Instant::now() + SOON;
    while fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() != "sleep" {
        assert!(Instant::now() < deadline, "the shell does not become sleep");
        std::thread::yield_now();
    }
    let status = status(&pid);
    for (key, want) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", "00000000a00425fb"),
        ("CapPrm", "00000000a00425fb"),
        ("CapBnd", "00000000a00425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Uid", "1000000\t1000000\t1000000\t1000000"),
        ("Gid", "1000000\t1000000\t1000000\t1000000"),
        ("Groups", " "),
        ("Umask", "0022"),
        ("SigBlk", "0000000000000000"),
        ("SigIgn", "0000000000000000"),
    ] {
        assert_eq!(status[key].trim(), want.trim(), "{key}");
    }
    for map in ["uid_map", "gid_map"] {
        let map = fs::read_to_string(format!("/proc/{pid}/{map}")).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"]);
    }
    for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid), of("self"), "{namespace}");
    }
    let fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|fd| fd.unwrap().file_name().into_string().unwrap().parse::<u32>().unwrap())
        // The shell's own, above what it was given.
        .filter(|fd| *fd < 10)
        .collect();
    assert_eq!(fds.len(), 3, "{fds:?}");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!mounts.contains(world.dir.path().to_str().unwrap()), "paths of the node show: {mounts}");
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "{mounts}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size") && line.contains(" 0 ")));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
    // The first process ignores what it does not handle; SIGKILL takes all with it.
    running.signal(libc::SIGKILL).unwrap();
    assert_eq!(wait(&mut running), Exit::Signal(9));
}

#[test]
#[ignore = "needs root"]
fn what_an_app_sees_of_the_machine_is_masked_or_read_only() {
    let done = World::new().script(
        "cd /; for f in /proc/keys /proc/timer_list /proc/kcore /proc/interrupts /proc/sched_debug; do \
             [ ! -s $f ] && [ -z \"$(cat $f 2>/dev/null)\" ] || echo LEAK $f; done; \
         for d in /sys/firmware /proc/acpi /proc/scsi; do [ -z \"$(ls $d 2>/dev/null)\" ] || echo LEAK $d; done; \
         for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /sys/kernel/mm/ksm/run /sys/power/state; do \
             (echo x > $f) 2>/dev/null && echo WRITES $f; done; \
         mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTS; \
         umount /proc/sys 2>/dev/null && echo UMOUNTS; \
         unshare -U true 2>/dev/null && echo UNSHARES; \
         mknod /tmp/sda b 8 0 2>/dev/null && echo DEVICE; \
         [ \"$(ls /sys/class/net)\" = lo ] || echo NETWORK; \
         ls /dev; echo x > /dev/null; head -c1 /dev/zero | wc -c; echo shm > /dev/shm/x && cat /dev/shm/x",
    );
    let bad = ["LEAK", "WRITES", "MOUNTS", "UMOUNTS", "UNSHARES", "DEVICE", "NETWORK"];
    assert!(!bad.iter().any(|word| done.stdout.contains(word)), "{}{}", done.stdout, done.stderr);
    for device in
        ["full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    {
        assert!(done.stdout.lines().any(|line| line == device), "{device}: {}", done.stdout);
    }
    assert!(done.stdout.ends_with("shm\n"), "{}", done.stdout);
}

#[test]
#[ignore = "needs root"]
fn layers_lie_over_each_other_and_writes_go_to_the_volume() {
    let world = World::new();
    let done = world.script(
        "ls /hidden; [ -e /gone ] || echo deleted; echo more >> /etc/group; mv /bin/true /bin/yes; \
         chown 5:6 /kept; chmod 2755 /kept; stat -c '%u:%g %a' /kept /; exit 7",
    );
    assert_eq!(done.stdout, "high\ndeleted\n5:6 2755\n0:0 755\n", "{}", done.stderr);
    assert_eq!(done.exit, Exit::Code(7));
    assert!(world.path("volume/upper/etc/group").exists() && world.path("volume/upper/bin/yes").is_symlink());
    assert!(!fs::read_to_string(world.path("low/etc/group")).unwrap().contains("more"));
    // The next start finds it.
    assert_eq!(world.script("tail -n1 /etc/group; readlink /bin/yes").stdout, "more\nbusybox\n");
}

#[test]
#[ignore = "needs root"]
fn many_layers_fit() {
    let world = World::new();
    let mut container = world.container(&["sh", "-c", "ls / | grep -c '^layer-'"]);
    let RootFs::Overlay { layers, .. } = &mut container.root else { unreachable!() };
    for n in 0..125 {
        let layer = world.path(&format!("{n:064}"));
        fs::create_dir_all(layer.join(format!("layer-{n}"))).unwrap();
        layers.push(layer);
    }
    give_to_apps(world.dir.path());
    assert_eq!(finish(start(&container, &Cgroup::None, &late()).unwrap()).stdout, "125\n");
}

#[test]
#[ignore = "needs root"]
fn user_working_directory_environment_and_files_are_as_ordered() {
    let world = World::new();
    let script = "id; pwd; env; cat /etc/hostname /etc/hosts /etc/resolv.conf; cat /srv/config; \
                  stat -c '%u:%g %a' /srv/config /data/work; echo out > /dev/stdout; echo err > /dev/stderr; \
                  grep Cap /proc/self/status";
    let mut container = world.container(&["sh", "-c", script]);
    container.user = "web".into();
    container.working_dir = "/data/work".into();
    container.env = vec!["FROM=image".into(), "GREETING=hello".into()];
    let user_data = "#cloud-config\nwrite_files:\n- path: /srv/config\n  content: secret\n  permissions: '0640'\n  owner: web:disk\n\
                     runcmd:\n- FROM=user data\n- apt update\n";
    let late = Late { untrusted_user_data: Some(user_data.into()), ..late() };
    let done = finish(start(&container, &Cgroup::None, &late).unwrap());
    for want in [
        "uid=101(web) gid=102(web) groups=6(disk)\n/data/work\n",
        "\nFROM=user data\n",
        "\nGREETING=hello\n",
        "\nHOME=/srv\n",
        "\nPATH=/usr/local/sbin:",
        "tested\n127.0.0.1 localhost\nnameserver 10.1.0.1\nsecret",
        "101:6 640\n0:0 755\nout\n",
        "CapEff:\t0000000000000000\n",
        "CapBnd:\t00000000a00425fb\n",
    ] {
        assert!(done.stdout.contains(want), "{want:?} not in {}", done.stdout);
    }
    assert!(!done.stdout.contains("FROM=image"));
    assert_eq!(done.stderr, "user data: runcmd entry 2 ignored\nerr\n");
    assert_eq!(done.exit, Exit::Code(0));
}

#[test]
#[ignore = "needs root"]
fn a_start_that_fails_says_where_and_leaves_no_process() {
    let world = World::new();
    let fails = |change: &dyn Fn(&mut Container), late: &Late| {
        let mut container = world.container(&["true"]);
        change(&mut container);
        start(&container, &Cgroup::None, late).unwrap_err().to_string()
    };
    let error = fails(&|c| c.args = vec!["/bin/none".into()], &late());
    assert!(error.starts_with("cannot execute /bin/none: No such file"), "{error}");
    let error = fails(&|c| c.args = vec!["/etc/passwd".into()], &late());
    assert!(error.starts_with("cannot execute /etc/passwd: Permission denied"), "{error}");
    let error = fails(&|c| c.user = "bob".into(), &late());
    assert_eq!(error, "the image's user cannot be used `bob`: not in the image's /etc/passwd");
    let error = fails(&|c| c.working_dir = "/etc/passwd/x".into(), &late());
    assert!(error.starts_with("cannot enter the working directory"), "{error}");
    let late = Late { untrusted_user_data: Some("no variable".into()), ..late() };
    assert_eq!(fails(&|_| {}, &late), "user data: line 1: not KEY=VALUE");
    drop(world);
    let world = World::new();
    symlink("/etc", world.path("high/proc")).unwrap();
    let error = start(&world.container(&["true"]), &Cgroup::None, &Late::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot mount /proc of the image"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn stop_signals_reach_the_first_process() {
    let world = World::new();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while true; do sleep 0.05; done";
    let mut running = start(&world.container(&["sh", "-c", script]), &Cgroup::None, &late()).unwrap();
    wait_for_output(&running, "up");
    running.signal(libc::SIGTERM).unwrap();
    assert_eq!(wait(&mut running), Exit::Code(5));
    assert_eq!(read_all(&running.stdout), "bye\n");
}

/// A group of its own below the test's, removed at the end.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(limit_bytes: u64) -> (MemoryGroup, bool) {
        let name = format!("selvedge-test-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v1 = v1.exists();
        let parent = if is_v1 { v1 } else { Path::new("/sys/fs/cgroup") };
        if !is_v1 {
            // as init does it
            fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        let dir = parent.join(name);
        fs::create_dir(&dir).unwrap();
        let file = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(dir.join(file), limit_bytes.to_string()).unwrap();
        if !is_v1 {
            fs::write(dir.join("memory.swap.max"), "0").unwrap();
        }
        (MemoryGroup(dir), is_v1)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs root"]
fn an_app_over_its_memory_is_killed_and_it_shows() {
    const LIMIT_BYTES: u64 = 16 << 20;
    let world = World::new();
    let (group, is_v1) = MemoryGroup::new(LIMIT_BYTES);
    let dir: OwnedFd = fs::File::open(&group.0).unwrap().into();
    let cgroup = if is_v1 { Cgroup::V1(vec![dir]) } else { Cgroup::V2(dir) };
    let gauges = Gauges::open(&cgroup);
    let script = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let mut running = start(&world.container(&["sh", "-c", script]), &cgroup, &late()).unwrap();
    assert_eq!(gauges.read().memory_limit_bytes, LIMIT_BYTES);
    assert_eq!(wait(&mut running), Exit::Signal(9));
    assert!(gauges.saw_memory_kill());
    assert!(gauges.read().memory_peak_bytes > LIMIT_BYTES / 2);
}

#[test]
#[ignore = "needs root"]
fn dropping_a_running_app_ends_it() {
    let world = World::new();
    let running = start(&world.container(&["sleep", "1000"]), &Cgroup::None, &late()).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", running.pid()));
    assert!(proc.exists());
    drop(running);
    assert!(!proc.exists());
}
