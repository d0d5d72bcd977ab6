// SPDX-License-Identifier: Apache-2.0
//! Process shim: see `node_run::shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("shim", node_run::shim::run)
}
