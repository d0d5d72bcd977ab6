// SPDX-License-Identifier: Apache-2.0
//! Process net.
use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("net", node_net::run)
}
