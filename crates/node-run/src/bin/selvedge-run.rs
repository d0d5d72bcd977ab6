// SPDX-License-Identifier: Apache-2.0
//! Process run: see `node_run::run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("run", node_run::run::run)
}
