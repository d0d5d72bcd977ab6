// SPDX-License-Identifier: Apache-2.0
//! A disk that was changed: nothing of it runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::Duration;

use tests::command::run;
use tests::machine::{BOOT, Image, Machine};
use tests::progress::step;

const MIB: u64 = 1 << 20;
/// Where the recipe puts the root and its tree: behind the table and the ESP.
const ROOT: u64 = 513 * MIB;
const TREE: u64 = (513 + 512) * MIB;

#[test]
#[ignore = "boots machines"]
fn a_flipped_byte_in_the_root_or_its_tree_never_runs() {
    let place = super::place("box-flipped");
    let image = Image::shared(&place, &place.dir.join("image"), &[]).unwrap();
    let raw = image.file("raw");
    // the superblock of the file system; the highest block of the tree, behind its own superblock
    for (name, at) in [("root", ROOT + 1024 + 100), ("tree", TREE + 4096 + 5)] {
        step(format_args!("a byte of the {name} is flipped"));
        run(Command::new("rm").arg("-rf").arg(place.dir.join("box"))).unwrap();
        let flipped = place.dir.join("flipped.raw");
        run(Command::new("cp").arg("--sparse=always").arg(&raw).arg(&flipped)).unwrap();
        let file = File::options().read(true).write(true).open(&flipped).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        file.sync_all().unwrap();
        let mut machine = Machine::start(&place, &flipped, &["--once"]).unwrap();
        machine.wait_off(BOOT + Duration::from_secs(30)).unwrap();
        let said = machine.console();
        assert!(said.contains("verity"), "the kernel did not see it: {said}");
        assert!(!said.contains("bus started"), "a changed root has run: {said}");
    }
    fs::remove_dir_all(&place.dir).unwrap();
}
