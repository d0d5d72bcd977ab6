// SPDX-License-Identifier: Apache-2.0
//! The shim as a process: started as init starts it, told by a run that is this test.
//!
//! Needs root and a static busybox. The test plays init: root of its own, uid and capabilities of the manifest.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use ipc::boot::{FromInit, Launch, LogFrame, LogOrigin, Role, ToInit};
use ipc::frame::Channel;
use ipc::limits::APP_UID_BASE;
use ipc::manifest::{Manifest, capability_number};
use ipc::shim::{ShimEvent, ShimPhase, ShimRequest, ShimStatus, StartApp};
use model::config::{UserData, VirtualizationMode};
use model::desired::{AppDesired, ImageConfig};
use model::id::{AppId, Digest, VolumeId, VolumeKey};
use model::observed::{AppMetrics, Exit};
use model::reason::Reason;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

const SOON: Duration = Duration::from_secs(20);
const APP: &str = "0f6f9f5e-8a44-4d59-9c0d-000000000001";
const LAYER: Digest = Digest([0xab; 32]);

/// A shim, and this test as init, run and log around it.
struct World {
    dir: tempfile::TempDir,
    shim: Child,
    init: Channel,
    run: Channel,
    log: Channel,
    group: Option<PathBuf>,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
        let _ = self.group.as_ref().map(fs::remove_dir);
    }
}

fn app() -> AppId {
    APP.parse().unwrap()
}

fn volume() -> VolumeKey {
    VolumeKey { id: VolumeId(app().0), generation: 3 }
}

fn spec(script: &str) -> AppDesired {
    AppDesired {
        app: app(),
        name: "tested".into(),
        instance: 7,
        mode: VirtualizationMode::NoHyper,
        memory_bytes: 0,
        vcpus: 1,
        root: volume(),
        image: ImageConfig {
            entrypoint: vec!["sh".into(), "-c".into()],
            cmd: vec![script.into()],
            ..ImageConfig::default()
        },
        layers: vec![LAYER],
        vif_count: 0,
        dns: vec![],
        user_data: None,
        root_size_bytes: 0,
        mounts: vec![],
        start_delay_s: 0,
        probe: None,
    }
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        make_store(&dir.path().join("store"));
        let text = include_str!("../../../services/shim.toml");
        let manifest = Manifest::parse(text).unwrap();
        let (init, theirs) = Channel::pair().unwrap();
        let shim = spawn(&manifest, dir.path(), theirs);
        let (run, runs) = Channel::pair().unwrap();
        let (log, logs) = Channel::pair().unwrap();
        let launch =
            Launch { manifest, key: APP.into(), settings: BTreeMap::new(), readers: BTreeMap::new() };
        init.send(&FromInit::Launch(Box::new(launch)), &[], SOON).unwrap();
        let raw = Role::Raw { kind: "run".into(), key: String::new() };
        init.send(&FromInit::Channel(raw), &[runs.as_fd()], SOON).unwrap();
        init.send(&FromInit::Channel(Role::Log), &[logs.as_fd()], SOON).unwrap();
        let (group, name) = make_group();
        let dir_fd: OwnedFd = fs::File::open(&group).unwrap().into();
        init.send(&FromInit::Fd { name: name.into() }, &[dir_fd.as_fd()], SOON).unwrap();
        init.send(&FromInit::Go, &[], SOON).unwrap();
        assert!(matches!(init.recv::<ToInit>(SOON).unwrap(), (ToInit::Ready, _)));
        let world = World { dir, shim, init, run, log, group: Some(group) };
        assert_eq!(world.status().phase, ShimPhase::Idle, "it speaks first");
        world
    }

    fn start(&self, spec: AppDesired) -> ShimStatus {
        let told = StartApp { spec, start: 1 };
        self.tell(&ShimRequest::Start(Box::new(told)));
        assert_eq!(self.status().phase, ShimPhase::Starting);
        self.status()
    }

    fn tell(&self, request: &ShimRequest) {
        self.run.send(request, &[], SOON).unwrap();
    }

    fn status(&self) -> ShimStatus {
        match self.run.recv::<ShimEvent>(SOON).unwrap().0 {
            ShimEvent::Status(status) => status,
            ShimEvent::Metrics(other) => panic!("{other:?}"),
        }
    }

    fn metrics(&self) -> AppMetrics {
        self.tell(&ShimRequest::Metrics);
        match self.run.recv::<ShimEvent>(SOON).unwrap().0 {
            ShimEvent::Metrics(metrics) => metrics,
            ShimEvent::Status(other) => panic!("{other:?}"),
        }
    }

    /// The app's lines up to this one.
    fn lines_until(&self, want: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != want) {
            let (frame, _) =
                self.log.recv::<LogFrame>(SOON).unwrap_or_else(|error| panic!("{error}: {lines:?}"));
            if matches!(frame.origin, LogOrigin::App { name } if name == "tested") {
                lines.push(frame.content);
            }
        }
        lines
    }
}

fn run_program(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn make_store(store: &Path) {
    let layer = store.join("layers").join("ab".repeat(32));
    for sub in ["bin", "etc"] {
        fs::create_dir_all(layer.join(sub)).unwrap();
    }
    let busybox = std::env::var_os("SELVEDGE_BUSYBOX").map(PathBuf::from);
    let installed =
        || ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    fs::copy(busybox.or_else(installed).unwrap(), layer.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "echo", "sleep", "env", "dd"] {
        symlink("busybox", layer.join("bin").join(applet)).unwrap();
    }
    for sub in ["upper", "work"] {
        fs::create_dir_all(store.join("volumes").join(volume().to_string()).join(sub)).unwrap();
    }
    run_program("chown", &["-hR", &format!("{APP_UID_BASE}:{APP_UID_BASE}"), store.to_str().unwrap()]);
}

/// A control group for the app, and what init calls its directory.
fn make_group() -> (PathBuf, &'static str) {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let memory = Path::new("/sys/fs/cgroup/memory");
    let (parent, name) =
        if memory.exists() { (memory, "cgroup.memory") } else { (Path::new("/sys/fs/cgroup"), "cgroup") };
    if name == "cgroup" {
        // as init does it
        fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    let group = parent.join(format!("selvedge-test-shim-{}-{n}", std::process::id()));
    fs::create_dir(&group).unwrap();
    (group, name)
}

/// As init does it: a root that holds what the manifest names, the manifest's uid and capabilities, descriptor 3.
fn spawn(manifest: &Manifest, dir: &Path, channel: Channel) -> Child {
    let root = dir.join("root");
    for sub in ["proc", "dev", "store", "bin"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    fs::copy(env!("CARGO_BIN_EXE_selvedge-shim"), root.join("bin/selvedge-shim")).unwrap();
    let wanted = manifest.capabilities.iter().map(|c| 1_u64 << capability_number(&c.name).unwrap());
    let own = rustix::thread::capabilities(None).unwrap().permitted;
    // Some machines of tests lack SYS_RESOURCE; then limits are not raised.
    let set = CapabilitySet::from_bits_retain(wanted.fold(0, |all, bit| all | bit)) & own;
    let (store, uid, at) = (dir.join("store"), manifest.uid, root.clone());
    let channel: OwnedFd = channel.into();
    let mut command = Command::new("/bin/selvedge-shim");
    command.stdin(Stdio::null()).current_dir("/");
    let prepare = move || -> std::io::Result<()> {
        // SAFETY: the forked child has one thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount_bind(&at, &at)?;
        rustix::mount::mount_bind(&store, at.join("store"))?;
        for sub in ["proc", "dev"] {
            rustix::mount::mount_bind_recursive(format!("/{sub}"), at.join(sub))?;
        }
        rustix::process::chdir(&at)?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&channel);
        if fd == 3 {
            rustix::io::fcntl_setfd(&channel, rustix::io::FdFlags::empty())?;
        // SAFETY: descriptor 3 is the child's to give; nothing of this closure is used after exec.
        } else if unsafe { libc::dup2(fd, 3) } != 3 {
            return Err(std::io::Error::last_os_error());
        }
        rustix::thread::set_keep_capabilities(true)?;
        let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)?;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: set, permitted: set, inheritable: set },
        )?;
        for capability in set.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls; what little it allocates is safe after a fork of this C library.
    unsafe { command.pre_exec(prepare) };
    command.spawn().unwrap()
}

fn status_of(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.into(), v.into())).collect()
}

#[test]
#[ignore = "needs root"]
fn an_app_is_started_watched_and_stopped_by_a_confined_shim() {
    let world = World::new();
    let script = "trap 'echo bye; exit 5' TERM; echo \"$GREETING\"; cat /etc/hosts >&2; echo up; while :; do sleep 0.05; done";
    let text = base64::engine::general_purpose::STANDARD.encode("GREETING=hello from user data\n");
    let status = world.start(AppDesired { user_data: Some(UserData::Clear(text)), ..spec(script) });
    assert!(matches!(status.phase, ShimPhase::Running { .. }), "{status:?}");
    assert_eq!((status.app, status.instance, status.start), (app(), 7, 1));
    let mut lines = world.lines_until("up");
    // its two outputs are two pipes: one may be ahead of the other
    let of_hosts = "127.0.1.1\ttested";
    if !lines.iter().any(|line| line == of_hosts) {
        lines.extend(world.lines_until(of_hosts));
    }
    assert!(lines.contains(&"hello from user data".into()), "{lines:?}");
    assert!(world.metrics().memory_used_bytes > 0);

    let shim = status_of(world.shim.id());
    for (key, want) in [
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Threads", "1"),
        ("Uid", "900010\t900010\t900010\t900010"),
    ] {
        assert_eq!(shim[key], want, "{key}");
    }

    // A restarted run is told without asking.
    let (run, runs) = Channel::pair().unwrap();
    let raw = Role::Raw { kind: "run".into(), key: String::new() };
    world.init.send(&FromInit::Channel(raw), &[runs.as_fd()], SOON).unwrap();
    let (ShimEvent::Status(again), _) = run.recv::<ShimEvent>(SOON).unwrap() else { panic!() };
    assert_eq!(again, status);

    run.send(&ShimRequest::Stop { timeout_s: 30 }, &[], SOON).unwrap();
    for want in [ShimPhase::Stopping, ShimPhase::Ended(Exit::Code(5))] {
        let (ShimEvent::Status(status), _) = run.recv::<ShimEvent>(SOON).unwrap() else { panic!() };
        assert_eq!(status.phase, want);
    }
    world.lines_until("bye");
}

#[test]
#[ignore = "needs root"]
fn an_app_that_does_not_listen_is_killed_and_lines_survive_an_absent_log() {
    let mut world = World::new();
    let (log, logs) = Channel::pair().unwrap();
    let old = std::mem::replace(&mut world.log, log);
    drop(old);
    let status = world.start(spec(
        "n=0; while [ $n -lt 1000 ]; do n=$((n+1)); echo line $n; done; echo end; exec sleep 1000",
    ));
    assert!(matches!(status.phase, ShimPhase::Running { .. }), "{status:?}");
    world.init.send(&FromInit::Channel(Role::Log), &[logs.as_fd()], SOON).unwrap();
    let lines = world.lines_until("end");
    assert_eq!(lines.len(), 1001);
    let asked = Instant::now();
    world.tell(&ShimRequest::Stop { timeout_s: 1 });
    assert_eq!(world.status().phase, ShimPhase::Stopping);
    assert_eq!(world.status().phase, ShimPhase::Ended(Exit::Signal(9)));
    assert!(asked.elapsed() >= Duration::from_millis(900));
}

#[test]
#[ignore = "needs root"]
fn a_start_that_fails_is_told_with_its_reason() {
    let world = World::new();
    let mut wrong = spec("true");
    wrong.image.entrypoint = vec!["/none".into()];
    let ShimPhase::Failed(fault) = world.start(wrong).phase else { panic!() };
    assert_eq!(fault.reason, Reason::StartFailed);
    assert!(fault.message.contains("/none"), "{fault}");
    let world = World::new();
    let text = base64::engine::general_purpose::STANDARD.encode("no variable");
    let ShimPhase::Failed(fault) =
        world.start(AppDesired { user_data: Some(UserData::Clear(text)), ..spec("true") }).phase
    else {
        panic!()
    };
    assert_eq!(fault.reason, Reason::UserDataInvalid);
}

#[test]
#[ignore = "needs root"]
fn an_app_over_its_memory_is_reported_as_that() {
    let world = World::new();
    let group = world.group.as_ref().unwrap();
    let limit = ["memory.limit_in_bytes", "memory.max"].map(|name| group.join(name));
    fs::write(limit.iter().find(|file| file.exists()).unwrap(), (16 << 20).to_string()).unwrap();
    let status = world.start(spec("sleep 0.2; exec dd if=/dev/zero of=/dev/null bs=64M count=1"));
    assert!(matches!(status.phase, ShimPhase::Running { .. }), "{status:?}");
    assert_eq!(world.metrics().memory_limit_bytes, 16 << 20);
    assert_eq!(world.status().phase, ShimPhase::Ended(Exit::OutOfMemory));
    assert!(world.dir.path().exists());
}

#[test]
#[ignore = "needs root"]
fn the_app_dies_with_its_shim_and_ends_when_the_node_stops() {
    let mut world = World::new();
    let script = "echo $$; echo up; exec sleep 1000";
    world.start(spec(script));
    world.lines_until("up");
    let procs = fs::read_to_string(world.group.as_ref().unwrap().join("cgroup.procs")).unwrap();
    let pid = PathBuf::from("/proc").join(procs.trim());
    assert!(pid.exists() && !procs.trim().is_empty());
    world.shim.kill().unwrap();
    let deadline = Instant::now() + SOON;
    while pid.exists() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }

    let mut world = World::new();
    world.start(spec("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"));
    world.lines_until("up");
    world.init.send(&FromInit::Stop, &[], SOON).unwrap();
    assert!(world.shim.wait().unwrap().success());
}
