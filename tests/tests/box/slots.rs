// SPDX-License-Identifier: Apache-2.0
//! Two versions on one disk: the new one is tried, and the old one is there when it fails.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::command::run;
use tests::lab::Place;
use tests::machine::{BOOT, Image, Machine};
use tests::progress::step;

const MIB: u64 = 1 << 20;
/// Where the recipe puts the second root: behind the table, the ESP and the first slot.
const SECOND_ROOT: u64 = (1 + 512 + 512 + 8) * MIB;

fn update(place: &Place, raw: &Path, from: &Image) -> anyhow::Result<String> {
    let mut command = Command::new(place.program("selvedge"));
    run(command.args(["image", "update"]).arg(raw).arg("--from").arg(from.file("update")))
}

#[test]
#[ignore = "boots machines"]
fn a_new_version_is_tried_and_the_old_one_boots_when_it_fails_three_times() {
    let place = super::place("box-slots");
    let old = Image::shared(&place, &place.dir.join("old"), &[]).unwrap();
    let new = Image::shared(&place, &place.dir.join("new"), &["--image-version", "2.0"]).unwrap();
    let old_version = old.description().unwrap()["version"].as_str().unwrap().to_owned();
    let raw = old.file("raw");
    update(&place, &raw, &new).unwrap();
    let again = update(&place, &raw, &new).unwrap_err().to_string();
    assert!(again.contains("version 2.0 is on the disk already"), "{again}");
    let broken = place.dir.join("broken.raw");
    run(Command::new("cp").arg("--sparse=always").arg(&raw).arg(&broken)).unwrap();

    step("the new version boots and becomes good");
    let mut machine = Machine::start(&place, &raw, &[]).unwrap();
    let line = machine.wait_line("selvedge: version", BOOT).unwrap();
    assert!(line.contains("version 2.0 on vda"), "{line}");
    let good = machine.wait_line("this version is good", BOOT).unwrap();
    assert!(good.contains("selvedge_2.0.efi"), "{good}");
    drop(machine);

    step("the same with a flipped byte in the root of the new version");
    run(Command::new("rm").arg("-rf").arg(place.dir.join("box"))).unwrap();
    let file = File::options().read(true).write(true).open(&broken).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, SECOND_ROOT + 1024 + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], SECOND_ROOT + 1024 + 100).unwrap();
    let mut machine = Machine::start(&place, &broken, &[]).unwrap();
    // each try goes from the firmware to the panic and waits some seconds
    let line = machine.wait_through_panics("selvedge: version", 5 * BOOT).unwrap();
    assert!(line.contains(&format!("version {old_version} on vda")), "{line}");
    let said = machine.console();
    assert_eq!(said.matches("Kernel panic").count(), 3, "{said}");
    machine.wait_through_panics("bus started", BOOT + Duration::from_secs(30)).unwrap();
    drop(machine);
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
