// SPDX-License-Identifier: Apache-2.0
//! Process fetch: see [`node_agent::fetch`].

use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("fetch", node_agent::fetch::run)
}
