// SPDX-License-Identifier: Apache-2.0
//! The power goes while a box starts for the first time: it comes up, and P3 is made no second time once it was finished.
//!
//! QEMU is killed, so what the guest had written reaches the disk or not as it stood; what the host's cache holds is kept. The
//! order of writes to the partition table is tried cut by cut in `disk`.

use std::time::Duration;

use tests::machine::{BOOT, Machine, prepared};
use tests::progress::step;

const MAKING: &str = "making the file system of P3";
/// Before which line the power goes, and how long after it.
const CUTS: [(&str, u64); 5] =
    [(MAKING, 0), (MAKING, 150), ("bus started", 100), ("this is device", 50), ("is on its networks", 200)];

#[test]
#[ignore = "boots machines"]
fn the_power_may_go_at_any_moment_of_the_first_boot() {
    let place = super::place("box-power");
    let (_controller, image) = prepared(&place, &[]).unwrap();
    let mut is_finished = false;
    for (line, after_ms) in CUTS {
        step(format_args!("the power goes {after_ms} ms after {line:?}"));
        let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
        // where P3 was finished before the cut there is nothing to make
        machine.wait_any(&[line, "is on its networks"], BOOT).unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        let said = machine.console();
        assert!(!(is_finished && said.contains(MAKING)), "P3 was made again: {said}");
        is_finished |= said.contains("bus started");
        machine.cut_power().unwrap();
    }
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    assert_eq!(machine.wait_app(BOOT).unwrap().trim(), "<h1>hello from the edge</h1>");
    assert!(is_finished && !machine.console().contains(MAKING), "P3 was made again");
}
