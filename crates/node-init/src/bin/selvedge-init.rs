// SPDX-License-Identifier: Apache-2.0
//! The process init.

use std::process::ExitCode;

use node_init::boot::{self, Started};
use node_init::{args, supervise};

fn main() -> ExitCode {
    let mut all = std::env::args();
    let arg0 = all.next().unwrap_or_default();
    let arguments: Vec<String> = all.collect();
    match boot::started(&arg0, arguments.first().map(String::as_str)) {
        Started::First => boot::first(),
        Started::Second => boot::second(&arguments),
        Started::ForModule => {
            return if boot::modules::answer(&arguments) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Started::Ordinary => {}
    }
    let options = match args::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("selvedge-init: {error}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match supervise::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selvedge-init: {}", supervise::chain(&error));
            ExitCode::FAILURE
        }
    }
}
