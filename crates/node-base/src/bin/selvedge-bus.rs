// SPDX-License-Identifier: Apache-2.0
//! The process bus.

fn main() -> std::process::ExitCode {
    service::main("bus", node_base::bus::run)
}
