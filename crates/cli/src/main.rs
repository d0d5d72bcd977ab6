// SPDX-License-Identifier: Apache-2.0
//! The one binary of the operator: client of the operator API, and the controller itself (`serve`).

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
