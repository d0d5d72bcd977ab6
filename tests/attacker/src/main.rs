// SPDX-License-Identifier: Apache-2.0
//! Tries what it must not be able to do, and says how each try ended. Which tries must fail, the tests know.
//!
//! Started by init in place of a service (`selvedge-NAME`, see [`cage`]), inside an app (`attacker app WORD…`), or by
//! root in the network of an app (`attacker send …`, `attacker watch …`, see [`frames`]).
//!
//! A line of output: `attack <attempt> = <outcome>; <attempt> = <outcome>…`, an outcome being `done`, an errno, or the signal that ended it.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::ExitCode;
use std::sync::OnceLock;

/// Where lines go instead of the standard output: init does not hand those of log to log.
static OWN_LINES: OnceLock<File> = OnceLock::new();

fn write_line(line: &str) {
    use std::io::Write as _;
    match OWN_LINES.get() {
        // At once: the one that listens writes there too.
        Some(mut file) => {
            file.write_all(format!("Service {{ name: \"log\" }} {line}\n").as_bytes()).unwrap();
        }
        None => println!("{line}"),
    }
}

macro_rules! tell {
    ($($words:tt)*) => { crate::write_line(&format!($($words)*)) };
}
pub(crate) use tell;

mod attempts;
mod cage;
mod child;
mod frames;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let own = words.next().unwrap_or_default();
    let own = own.rsplit('/').next().unwrap_or_default().to_owned();
    if let Some(service) = own.strip_prefix("selvedge-") {
        cage::run(service);
        return ExitCode::SUCCESS;
    }
    let rest: Vec<String> = words.collect();
    match rest.split_first() {
        Some((mode, rest)) if mode == "app" => attempts::run_all(&attempts::Target::of_words(rest), &|| {}),
        Some((mode, rest)) if mode == "send" => frames::send(rest),
        Some((mode, rest)) if mode == "watch" => frames::watch(rest),
        _ => {
            eprintln!("usage: attacker app|send|watch …");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
