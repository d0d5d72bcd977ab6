// SPDX-License-Identifier: Apache-2.0
//! Runs one program in a container of its own, without the rest of the node: for trying the executor and for measuring it.
//!
//!     run_bundle [--overlay DIR --layer DIR]... [--user USER] [--cwd DIR] [--env K=V]... [--cgroup DIR]... [--times N] ROOTFS PROGRAM [ARG]...
//!
//! Needs root. ROOTFS belongs to the host ids from 1,000,000 on (see `ipc::limits`). With `--overlay` the layers (lowest first)
//! lie under DIR/upper and ROOTFS is only where they are mounted. `--cgroup` is a directory of cgroup v2, or several of v1. `--times` prints to standard error the milliseconds of each
//! start until the program ran, and until it said something first.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use model::observed::Exit;
use node_run::container::{
    Cgroup, Container, IdRange, Late, Netns, RootFs, Running, Starting, seccomp::Filter,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (mut overlay, mut layers, mut env, mut groups) = (None, Vec::new(), Vec::new(), Vec::new());
    let (mut user, mut working_dir, mut times) = (String::new(), String::new(), 1_u32);
    let is_measured = std::env::args().any(|arg| arg == "--times");
    let rootfs = loop {
        let arg = args.next().ok_or("no rootfs")?;
        let mut value = || args.next().ok_or("an option without its value");
        match arg.as_str() {
            "--overlay" => overlay = Some(PathBuf::from(value()?)),
            "--layer" => layers.push(PathBuf::from(value()?)),
            "--cgroup" => groups.push(OwnedFd::from(std::fs::File::open(value()?)?)),
            "--env" => env.push(value()?),
            "--user" => user = value()?,
            "--cwd" => working_dir = value()?,
            "--times" => times = value()?.parse()?,
            _ => break PathBuf::from(arg),
        }
    };
    let root = match overlay {
        Some(dir) => RootFs::Overlay { layers, upper: dir.join("upper"), work: dir.join("work"), at: rootfs },
        None => RootFs::Directory(rootfs),
    };
    let is_v2 = rustix::fs::open("/sys/fs/cgroup/cgroup.controllers", OFlags::PATH, Mode::empty()).is_ok();
    let cgroup = match groups.pop() {
        None => Cgroup::None,
        Some(dir) if is_v2 => Cgroup::V2(dir),
        Some(dir) => Cgroup::V1(groups.into_iter().chain([dir]).collect()),
    };
    let container = Container {
        hostname: "bundle".into(),
        root,
        volumes: Vec::new(),
        args: args.collect(),
        env,
        working_dir,
        user,
        ids: IdRange { base: APP_UID_BASE, count: APP_UID_COUNT },
    };
    let mut exit = Exit::Code(0);
    for _ in 0..times {
        // What a shim does before it is told to start.
        let filter = Filter::compile()?;
        let told = Instant::now();
        let _netns = Netns::enter_new()?;
        let starting = Starting::begin(&container, &cgroup, &filter)?;
        let hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        let running = starting.complete(&Late { hosts, ..Late::default() })?;
        let ran = told.elapsed();
        let (ended, spoke) = follow(running)?;
        exit = ended;
        if is_measured {
            let spoke = spoke.map_or(f64::NAN, |at| at.duration_since(told).as_secs_f64());
            eprintln!("{:.3} {:.3}", ran.as_secs_f64() * 1000.0, spoke * 1000.0);
        }
    }
    match exit {
        Exit::Code(code) => std::process::exit(code),
        Exit::Signal(number) => std::process::exit(128 + number),
        Exit::OutOfMemory => std::process::exit(137),
    }
}

/// Copies its output until it has ended; also says when the first came.
fn follow(mut running: Running) -> Result<(Exit, Option<Instant>), Failure> {
    let mut buffer = [0; 64 * 1024];
    let mut spoke = None;
    let mut is_ended = false;
    loop {
        let mut fds = [
            PollFd::new(&running.stdout, PollFlags::IN),
            PollFd::new(&running.stderr, PollFlags::IN),
            PollFd::from_borrowed_fd(running.pidfd(), PollFlags::IN),
        ];
        if !is_ended {
            poll(&mut fds, None)?;
            is_ended = !fds[2].revents().is_empty();
        }
        while let Ok(count @ 1..) = rustix::io::read(&running.stdout, &mut buffer) {
            spoke.get_or_insert_with(Instant::now);
            std::io::stdout().write_all(&buffer[..count])?;
        }
        while let Ok(count @ 1..) = rustix::io::read(&running.stderr, &mut buffer) {
            std::io::stderr().write_all(&buffer[..count])?;
        }
        if is_ended && let Some(ended) = running.wait()? {
            return Ok((ended.0, spoke));
        }
    }
}
