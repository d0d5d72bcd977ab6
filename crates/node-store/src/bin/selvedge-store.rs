// SPDX-License-Identifier: Apache-2.0
//! Process store: see [`node_store`].

use std::process::ExitCode;

fn main() -> ExitCode {
    service::main("store", node_store::run)
}
