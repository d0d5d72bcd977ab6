// SPDX-License-Identifier: Apache-2.0
//! From "start" said to a shim until the app's program speaks, against `crun run` of the same bundle.
//!
//! Both start a static busybox that says one word, in new namespaces of every kind, of the same root file system and the
//! same range of user ids, in control groups of its own, without capabilities of the host. Ours installs its system call
//! filter and closes its files behind it; umoci's bundle asks crun for no filter.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use tests::command::{output, root, run};
use tests::progress::step;

use super::{Bench, Bound, Figure, Kind, median};

pub(super) const NAME: &str = "start-of-crun";

const ROUNDS: usize = 10;
const STARTS: usize = 10;
/// Controllers of cgroup v1 that a shim puts its app into.
const V1_CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "devices"];
const PROGRAM: [&str; 3] = ["/bin/busybox", "echo", "x"];
const GROUP: &str = "selvedge-bench";
/// crun makes control groups of this name and takes them away.
const CRUN_ID: &str = "selvedge-bench-crun";

#[derive(clap::Args)]
pub(crate) struct TimeArgs {
    times: usize,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a command again and again and prints the milliseconds from its start to its first output of each.
pub(crate) fn time_starts(args: &TimeArgs) -> anyhow::Result<()> {
    let [program, rest @ ..] = &args.command[..] else { bail!("no command") };
    for _ in 0..args.times {
        let start = Instant::now();
        // A pipe and not the null device, whose owner a runtime may change.
        let mut child = Command::new(program)
            .args(rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let mut said = [0];
        let count = child.stdout.as_mut().context("the output is a pipe")?.read(&mut said)?;
        let took = start.elapsed();
        let status = child.wait()?;
        if count == 0 || !status.success() {
            bail!("{program} said nothing and ended with {status}");
        }
        println!("{:.3}", took.as_secs_f64() * 1_000.0);
    }
    Ok(())
}

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    step("measuring starts");
    let bundle = Bundle::make(bench)?;
    let groups = Groups::create()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // One round to warm up counts for nothing.
    for round in 0..=ROUNDS {
        let (a, b) = (start_ours(bench, &bundle.0, &groups)?, start_crun(&bundle.0)?);
        if round > 0 {
            ours.extend(a);
            theirs.extend(b);
        }
    }
    let (ours_ms, theirs_ms) = (median(&ours), median(&theirs));
    Ok(vec![Figure {
        name: NAME,
        value: ours_ms / theirs_ms,
        unit: "x",
        bound: Bound::AtMost(2.0),
        kind: Kind::Ratio,
        how: format!(
            "shim told to first output {ours_ms:.1} ms, crun run {theirs_ms:.1} ms, medians of {} in turns",
            ours.len()
        ),
    }])
}

/// The web server's image, as umoci makes a bundle of it for the range of ids that apps have. It lies where root of a
/// container may go, and is taken away when dropped.
struct Bundle(PathBuf);

impl Bundle {
    fn make(bench: &Bench) -> anyhow::Result<Bundle> {
        let layout = tests::image::web_server(&bench.cache)?;
        let top = Bundle(format!("/var/tmp/{GROUP}-{}", std::process::id()).into());
        let map = format!("0:{APP_UID_BASE}:{APP_UID_COUNT}");
        run(root("umoci")
            .args(["unpack", "--uid-map", &map, "--gid-map", &map])
            .arg("--image")
            .arg(format!("{}:{}", layout.display(), tests::image::TAG))
            .arg(&top.0))?;
        run(root("chmod").arg("711").arg(&top.0))?;
        let path = top.0.join("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&run(root("cat").arg(&path))?)?;
        config["process"]["args"] = serde_json::json!(PROGRAM);
        config["process"]["terminal"] = false.into();
        let changed = bench.fresh("start")?.join("config.json");
        fs::write(&changed, config.to_string())?;
        run(root("cp").arg(&changed).arg(&path))?;
        Ok(top)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = output(root("rm").arg("-rf").arg(&self.0));
    }
}

fn start_ours(bench: &Bench, bundle: &Path, groups: &Groups) -> anyhow::Result<Vec<f64>> {
    let mut command = root(bench.example("run_bundle"));
    for dir in &groups.0 {
        command.arg("--cgroup").arg(dir);
    }
    command.args(["--times", &STARTS.to_string()]).arg(bundle.join("rootfs")).args(PROGRAM);
    let out = output(&mut command)?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() {
        bail!("run_bundle ended with {}: {text}", out.status);
    }
    // until it runs, and until it spoke
    numbers(text.lines().filter_map(|line| line.split_whitespace().nth(1)))
}

/// Inside one mount namespace without the unified control groups of a hybrid host, which Debian's crun takes for
/// the only ones.
fn start_crun(bundle: &Path) -> anyhow::Result<Vec<f64>> {
    const HIDE: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
    let mut command = root("unshare");
    command.args(["-m", "sh", "-c", HIDE, "sh"]).arg(std::env::current_exe()?);
    command.args(["time-starts", &STARTS.to_string(), "crun", "run", "--bundle"]).arg(bundle).arg(CRUN_ID);
    let text = run(&mut command)?;
    numbers(text.lines())
}

fn numbers<'a>(words: impl Iterator<Item = &'a str>) -> anyhow::Result<Vec<f64>> {
    let numbers: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>()?;
    if numbers.len() != STARTS {
        bail!("{} times were printed for {STARTS} starts", numbers.len());
    }
    Ok(numbers)
}

/// Control groups, taken away when dropped.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn create() -> anyhow::Result<Groups> {
        let top = Path::new("/sys/fs/cgroup");
        let is_v2 = top.join("cgroup.controllers").exists();
        let parents: Vec<PathBuf> = match is_v2 {
            true => vec![top.to_owned()],
            false => V1_CONTROLLERS.iter().map(|name| top.join(name)).filter(|dir| dir.exists()).collect(),
        };
        let groups = Groups(parents.iter().map(|parent| parent.join(GROUP)).collect());
        for dir in &groups.0 {
            run(root("mkdir").arg("-p").arg(dir))?;
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = output(root("rmdir").arg(dir));
        }
    }
}
