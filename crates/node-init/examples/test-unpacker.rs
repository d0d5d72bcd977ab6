// SPDX-License-Identifier: Apache-2.0
//! A service of the hosted test: as `store`, in its own user namespace, it makes a file that belongs to an app's user.
#![allow(clippy::unwrap_used)]

use service::{Event, Service};

fn main() -> std::process::ExitCode {
    service::main("store", run)
}

fn run(mut service: Service) {
    let path = service.dirs().state.clone().unwrap().join("of-app");
    std::fs::write(&path, "x").unwrap();
    std::os::unix::fs::lchown(&path, Some(33), Some(33)).unwrap();
    // It may go on writing what belongs to another one of the range.
    std::fs::write(&path, "y").unwrap();
    while !matches!(service.next(None), Event::Stop) {}
}
