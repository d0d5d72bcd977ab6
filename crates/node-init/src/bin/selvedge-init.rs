// SPDX-License-Identifier: Apache-2.0
//! The process init.

use std::process::ExitCode;

use node_init::{args, supervise};

fn main() -> ExitCode {
    let options = match args::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("selvedge-init: {error}\n\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match supervise::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            eprintln!("selvedge-init: {text}");
            ExitCode::FAILURE
        }
    }
}
