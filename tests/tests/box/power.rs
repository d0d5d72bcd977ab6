// SPDX-License-Identifier: Apache-2.0
//! The power goes while a box starts for the first time: it comes up, and P3 is made no second time once it was finished.
//!
//! QEMU is killed, so what the guest had written reaches the disk or not as it stood; what the host's cache holds is kept. The
//! order of writes is tried cut by cut in `cuts`. With `--long` the power goes 200 times, at any moment of any start.

use std::time::Duration;

use tests::lab::Place;
use tests::machine::{BOOT, Image, Machine, prepared};
use tests::progress::step;

const MAKING: &str = "making the file system of P3";
/// Before which line the power goes, and how long after it.
const CUTS: [(&str, u64); 4] =
    [(MAKING, 150), ("bus started", 100), ("this is device", 50), ("is on its networks", 200)];

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
    if std::env::var_os("SELVEDGE_LONG").is_some() {
        cut_at_random(&place, &image);
    }
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    assert_eq!(machine.wait_app(BOOT).unwrap().trim(), "<h1>hello from the edge</h1>");
    assert!(is_finished && !machine.console().contains(MAKING), "P3 was made again");
}

/// Cuts of a long run, and after how many the box must come up with its app.
const LONG_CUTS: u64 = 200;
const LOOK_EVERY: u64 = 20;
/// A start takes about so long.
const START_MS: u64 = 40_000;

fn cut_at_random(place: &Place, image: &Image) {
    let mut chance: u64 = 1;
    for cut in 1..=LONG_CUTS {
        // any full cycle does: the moments only have to be spread
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = Duration::from_millis((chance >> 33) % START_MS);
        let mut machine = Machine::start(place, &image.file("raw"), &[]).unwrap();
        if cut % LOOK_EVERY == 0 {
            step(format_args!("after {cut} cuts"));
            machine.wait_app(BOOT).unwrap();
        }
        std::thread::sleep(after);
        let said = machine.console();
        assert!(!said.contains(MAKING) && !said.contains("cannot start"), "{said}");
        machine.cut_power().unwrap();
    }
}
