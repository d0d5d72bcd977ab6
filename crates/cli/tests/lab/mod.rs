// SPDX-License-Identifier: Apache-2.0
//! A controller of its own on loopback, and the program run against it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge");
/// Machines with other work beside take their time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A controller, stopped when dropped.
pub struct Controller {
    pub directory: tempfile::TempDir,
    process: Child,
    pub listen: String,
}

impl Controller {
    pub fn start() -> Controller {
        let directory = tempfile::tempdir().unwrap();
        let (process, listen) = serve(directory.path(), "127.0.0.1:0");
        Controller { directory, process, listen }
    }

    pub fn stop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.process = serve(self.directory.path(), &self.listen).0;
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--data").arg(self.path().join("data")).args(words).current_dir(self.path());
        for name in ["SELVEDGE_DATA", "SELVEDGE_SERVER", "SELVEDGE_TOKEN", "SELVEDGE_CA", "VISUAL"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        Ran::from(self.command(words).output().unwrap())
    }

    #[track_caller]
    pub fn does(&self, words: &[&str]) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "{words:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    /// Edits an object with a shell script in place of an editor; `$1` is the file.
    pub fn edit(&self, object: &str, script: &str) -> Ran {
        self.write("editor.sh", script);
        let output = self.command(&["edit", object]).env("EDITOR", "sh editor.sh").output();
        Ran::from(output.unwrap())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop();
    }
}

pub fn serve(directory: &Path, listen: &str) -> (Child, String) {
    let mut process = Command::new(PROGRAM)
        .arg("--data")
        .arg(directory.join("data"))
        .args(["serve", "--listen", listen])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let line =
        lines.by_ref().map_while(Result::ok).find(|line| line.contains("controller listens on ")).unwrap();
    let address = line.split("listens on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    // It goes on talking.
    std::thread::spawn(move || lines.for_each(drop));
    (process, address)
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
