// SPDX-License-Identifier: Apache-2.0
//! Process planner.
use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("planner", node_base::planner::run)
}
