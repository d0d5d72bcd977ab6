// SPDX-License-Identifier: Apache-2.0
//! A part of the tests that runs beside others, as a process of its own. What it says goes to a file and is shown at the end.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tests::command::{self, Background};
use tests::progress::step;

pub(super) struct Beside {
    part: &'static str,
    process: Background,
    log: PathBuf,
    started: Instant,
}

impl Beside {
    /// Starts `cargo xtask test --PART`, which yields by so much (see nice(1)) to what is waited for. It dies with us.
    pub(super) fn start(part: &'static str, yields: u8) -> anyhow::Result<Beside> {
        let dir = tests::lab::target_dir()?.join("lab");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let log = dir.join(format!("{part}.log"));
        let _ = std::fs::remove_file(&log);
        step(format_args!("beside what follows: {part}"));
        let mut command = command::mortal("nice");
        command.args(["-n", &yields.to_string()]);
        command.arg(std::env::current_exe()?).arg("test").arg(format!("--{part}"));
        let process = Background::start(part, &log, &mut command)?;
        Ok(Beside { part, process, log, started: Instant::now() })
    }

    /// Waits for its end, and shows all it has said.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        step(format_args!("waiting for {}", self.part));
        let status = self.process.wait()?;
        let said = std::fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let said = String::from_utf8_lossy(&said);
        for line in said.lines() {
            println!("  {}: {line}", self.part);
        }
        if !status.success() {
            bail!(
                "{} ended with {status}: what it said stands above, and in {}",
                self.part,
                self.log.display()
            );
        }
        step(format_args!("{} took {} s", self.part, self.started.elapsed().as_secs()));
        Ok(())
    }
}
