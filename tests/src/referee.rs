// SPDX-License-Identifier: Apache-2.0
//! The independent referees for the device API: Python programs that share no code with us.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::command::{Background, output, run};
use crate::image;
use crate::lab::Place;
use crate::packages;
use crate::progress::{step, wait_for};
use crate::registry::Registry;

/// Variable that names the directory of the referees.
pub const VARIABLE: &str = "SELVEDGE_REFEREES";

/// The referees, with a Python that has what they need.
#[derive(Debug)]
pub struct Referees {
    dir: PathBuf,
    python: PathBuf,
}

impl Referees {
    /// Finds the referees and makes their virtual environment once, below `cache`.
    pub fn prepare(cache: &Path) -> anyhow::Result<Referees> {
        let dir = std::env::var_os(VARIABLE).map(PathBuf::from).with_context(|| {
            format!("{VARIABLE} is not set: point it to the directory of device.py and controller.py")
        })?;
        let dir = dir.canonicalize().with_context(|| format!("{VARIABLE}={} is not there", dir.display()))?;
        if !dir.join("device.py").is_file() {
            bail!("{VARIABLE}={}: no device.py there", dir.display());
        }
        packages::ensure(packages::REFEREES)?;
        let venv = cache.join("referee-venv");
        let python = venv.join("bin/python");
        if !venv.join(".ready").exists() {
            step("making the referees' Python environment");
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
            let requirements = dir.join("requirements.txt");
            run(Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(requirements))?;
            std::fs::write(venv.join(".ready"), "")?;
        }
        Ok(Referees { dir, python })
    }

    /// `device.py`, `controller.py` or `wait.py`, to be given arguments.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.dir.join(program)).current_dir(&self.dir).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// A program of ours (its path) that is made of the referees' modules.
    pub fn command_with(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(program).env("PYTHONPATH", &self.dir).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// One of the sample configurations beside the referees.
    pub fn sample(&self, name: &str) -> anyhow::Result<Value> {
        let path = self.dir.join(name);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Waits until an event that fulfils all conditions is in the referee controller's log; returns it.
    pub fn wait(&self, events: &Path, conditions: &[&str], timeout_s: u32) -> anyhow::Result<Value> {
        let text = self.wait_raw(events, conditions, &["--timeout", &timeout_s.to_string()])?;
        let line = text.lines().next().context("wait.py printed no event")?;
        Ok(serde_json::from_str(line)?)
    }

    /// [`Referees::wait`] with options of `wait.py`; returns all it printed.
    pub fn wait_raw(&self, events: &Path, conditions: &[&str], options: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command("wait.py");
        command.arg(events);
        for condition in conditions {
            command.args(["-w", condition]);
        }
        let out = output(command.args(options))?;
        if !out.status.success() {
            bail!(
                "the referee saw no event with {}\n{}",
                conditions.join(" and "),
                String::from_utf8_lossy(&out.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
}

/// The referee's controller with one app ordered, and a registry that is not ours.
#[derive(Debug)]
pub struct Trial {
    _controller: Background,
    _registry: Registry,
    referees: Referees,
    /// Its files; `config` in it is the onboarding bundle.
    pub state: PathBuf,
    config: Value,
}

/// Where a service listens, and how the node calls that place.
#[derive(Clone, Debug)]
pub struct Listens {
    pub at: SocketAddr,
    pub as_seen: String,
}

impl Trial {
    /// The app of the referee's sample.
    pub const APP: &str = "60000000-0000-4000-8000-000000000001";

    pub fn start(place: &Place, controller: &Listens, registry: &Listens) -> anyhow::Result<Trial> {
        let referees = Referees::prepare(&place.cache)?;
        let layout = image::web_server(&place.cache)?;
        let images = Registry::start(&place.dir.join("registry"), registry.at)?;
        images.push(&layout, image::TAG, "web:1")?;
        let mut config = referees.sample("sample-container.json")?;
        config["datastores"][0]["fqdn"] = json!(format!("docker://{}", registry.as_seen));
        let state = place.dir.join("referee");
        std::fs::create_dir_all(&state)?;
        std::fs::write(state.join("config.json"), config.to_string())?;
        let mut command = referees.command("controller.py");
        command.args(["--listen", &controller.at.to_string(), "--advertise", &controller.as_seen]);
        command.arg("--state").arg(&state).arg("--config").arg(state.join("config.json"));
        command.args(["--enforce-attest", "soft"]);
        let mut controller = Background::start("the referee", &place.dir.join("referee.log"), &mut command)?;
        wait_for("referee is ready", Duration::from_secs(20), || {
            let is_ready = state.join("config/server").exists() && state.join("events.jsonl").exists();
            match controller.check() {
                Ok(()) => is_ready.then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        })??;
        Ok(Trial { _controller: controller, _registry: images, referees, state, config })
    }

    fn events(&self) -> PathBuf {
        self.state.join("events.jsonl")
    }

    /// The first event that fulfils all conditions.
    pub fn wait(&self, conditions: &[&str], timeout_s: u32) -> anyhow::Result<Value> {
        self.referees.wait(&self.events(), conditions, timeout_s)
    }

    /// Publishes the config with a marker that the node must echo.
    pub fn publish(&mut self, marker: &str) -> anyhow::Result<()> {
        let items = self.config["configItems"].as_array_mut().context("the sample has config items")?;
        items.retain(|item| item["key"] != "testmarker");
        items.push(json!({"key": "testmarker", "value": marker}));
        let fresh = self.state.join("config.new");
        std::fs::write(&fresh, self.config.to_string())?;
        Ok(std::fs::rename(fresh, self.state.join("config.json"))?)
    }

    pub fn wait_marker(&self, marker: &str, timeout_s: u32) -> anyhow::Result<()> {
        let condition =
            format!("request.dinfo.configItemStatus.unknownConfigItems.testmarker.value={marker}");
        self.wait(&["call=info", &condition], timeout_s).map(drop)
    }

    pub fn all_events(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.events())?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits until a node has done all that an EVE does, within so many seconds for each step, and gives what it violated.
    pub fn judge(&mut self, step_s: u32) -> anyhow::Result<Vec<Value>> {
        step("onboarding");
        self.wait(&["call=register", "status=201"], step_s)?;
        self.wait(&["call=uuid", "status=200"], step_s)?;
        self.wait(&["call=config", "status=200"], step_s)?;
        step("app");
        let is_app = format!("request.ainfo.AppID={}", Trial::APP);
        self.wait(&["call=info", &is_app, "request.ainfo.state=RUNNING"], step_s)?;
        step("config not modified, reports");
        self.wait(&["call=config", "status=304"], step_s)?;
        for kind in ["dinfo", "niinfo", "vinfo", "cinfo"] {
            self.wait(&["call=info", &format!("request.{kind}")], step_s)?;
        }
        self.wait(&["call=metrics", "request.dm", "request.am"], step_s)?;
        self.wait(&["call=newlogs", "request.lines.content"], step_s)?;
        self.wait(&["call=applogs", &format!("request.app={}", Trial::APP)], step_s)?;
        self.publish("first")?;
        self.wait_marker("first", step_s)?;
        let is_bad = |e: &Value| {
            e["violations"].is_array() || e["verify"].as_str().is_some_and(|verdict| verdict != "ok")
        };
        Ok(self.all_events()?.into_iter().filter(is_bad).collect())
    }
}
