// SPDX-License-Identifier: Apache-2.0
//! The independent referees for the device API: Python programs that share no code with us.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{output, run};
use crate::packages;
use crate::progress::step;

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
    pub fn sample(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        let path = self.dir.join(name);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Waits until an event that fulfils all conditions is in the referee controller's log; returns it.
    pub fn wait(
        &self,
        events: &Path,
        conditions: &[&str],
        timeout_s: u32,
    ) -> anyhow::Result<serde_json::Value> {
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
