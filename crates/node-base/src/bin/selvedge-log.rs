// SPDX-License-Identifier: Apache-2.0
//! The process log.

fn main() -> std::process::ExitCode {
    service::main("log", node_base::log::run)
}
