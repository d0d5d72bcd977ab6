// SPDX-License-Identifier: Apache-2.0
//! The process `vault`, started by init.

fn main() -> std::process::ExitCode {
    service::main("vault", node_vault::run)
}
