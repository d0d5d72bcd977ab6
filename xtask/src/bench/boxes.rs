// SPDX-License-Identifier: Apache-2.0
//! The image of a node, and what a box needs from the power switch to its controller.

use tests::lab::Place;
use tests::machine::{self, Machine};
use tests::packages;
use tests::progress::step;

use super::{Bench, Bound, Figure, Kind};

const DOWNLOAD: &str = "box-download";
const UKI: &str = "box-uki";
const FIXED: &str = "box-fixed";
const START: &str = "box-start";
pub(super) const NAMES: &[&str] = &[DOWNLOAD, UKI, FIXED, START];

const MB: f64 = 1e6;
const MIB: f64 = (1 << 20) as f64;

pub(super) fn measure(_bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    packages::ensure(packages::BOX)?;
    let place = Place::new("bench-box", 62)?;
    place.clear()?;
    let (_controller, image) = machine::prepared(&place, &[])?;
    let description = image.description()?;
    let bytes = |name: &str| description[name].as_f64().unwrap_or(f64::INFINITY);
    let fixed = std::fs::metadata(image.file("raw"))?.len() as f64;
    step("switching a box on");
    let mut machine = Machine::start(&place, &image.file("raw"), &["--cpus", "1"])?;
    machine.wait_line("this is device", machine::BOOT)?;
    let start_s = machine.cpu_s()?;
    machine.press_power_button()?;
    let figure = |name, value, unit, most, kind, how: &str| Figure {
        name,
        value,
        unit,
        bound: Bound::AtMost(most),
        kind,
        how: how.to_owned(),
    };
    Ok(vec![
        figure(
            DOWNLOAD,
            (bytes("rootBytes") + bytes("ukiBytes")) / MB,
            "MB",
            80.0,
            Kind::Gate,
            "root and kernel image; programs of the release build",
        ),
        figure(
            UKI,
            bytes("ukiBytes") / MB,
            "MB",
            22.0,
            Kind::Gate,
            "kernel, initrd with init and storage drivers",
        ),
        figure(FIXED, fixed / MIB, "MiB", 2048.0, Kind::Gate, "all partitions but P3"),
        figure(
            START,
            start_s,
            "CPU s",
            75.0,
            Kind::Goal,
            "QEMU, one virtual processor: power on, first boot, P3 made, onboarded",
        ),
    ])
}
