// SPDX-License-Identifier: Apache-2.0
//! The process `agent`, started by init.

fn main() -> std::process::ExitCode {
    service::main("agent", node_agent::agent::run)
}
