// SPDX-License-Identifier: Apache-2.0
//! The installer: from a medium onto the disk it may take, and onto no other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::command::run;
use tests::lab::Place;
use tests::machine::{BOOT, Image, Machine, controller};
use tests::progress::step;

const MIB: u64 = 1 << 20;
const ENDS: [&str; 2] = ["selvedge: installed", "selvedge: not installed"];
/// What one box has of its own: an ext4 that is nobody's to take.
const KEPT_BYTES: u64 = 3 << 30;

/// The medium with a bundle of a controller and these options.
fn medium(place: &Place, image: &Image, name: &str, options: &str) -> PathBuf {
    let (iso, bundle) = (place.dir.join(format!("{name}.iso")), place.dir.join(format!("bundle-{name}")));
    fs::copy(image.file("iso"), &iso).unwrap();
    run(Command::new("cp").arg("-r").arg(place.dir.join("bundle")).arg(&bundle)).unwrap();
    if !options.is_empty() {
        fs::write(bundle.join("installer.options"), options).unwrap();
    }
    let mut command = Command::new(place.program("selvedge"));
    run(command.args(["image", "bundle"]).arg(&iso).arg("--config").arg(&bundle)).unwrap();
    iso
}

/// A disk with a file system of somebody.
fn disk_with_data(path: &Path) {
    File::create(path).unwrap().set_len(KEPT_BYTES).unwrap();
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "theirs"]).arg(path)).unwrap();
}

/// First and last MiB.
fn ends(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let file = File::open(path).unwrap();
    let read = |at| {
        let mut bytes = vec![0; MIB as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    (read(0), read(file.metadata().unwrap().len() - MIB))
}

/// Nothing of the file system's first superblock is left; the others are.
fn damage_persist(disk: &Path) {
    let text = run(Command::new("sgdisk").args(["-i", "9"]).arg(disk)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("First sector:")).unwrap();
    let first: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    let file = File::options().write(true).open(disk).unwrap();
    file.write_all_at(&[0; 4096], first * 512).unwrap();
}

fn new_box(place: &Place) {
    run(Command::new("rm").arg("-rf").arg(place.dir.join("box"))).unwrap();
}

#[test]
#[ignore = "boots machines"]
fn a_box_is_installed_from_a_medium_on_the_disk_it_may_take_and_on_no_other() {
    let place = super::place("box-install");
    let image = Image::shared(&place, &place.dir.join("image"), &[]).unwrap();
    let controller = controller(&place).unwrap();
    controller.bundle(&place.dir.join("bundle")).unwrap();

    step("the only disk carries data: refused, from a CD");
    let theirs = place.dir.join("theirs.raw");
    disk_with_data(&theirs);
    let before = ends(&theirs);
    let cd = medium(&place, &image, "cd", "eve_install_disk=vdb eve_nuke_disks=vda");
    let arguments = ["--add-disk", &theirs.to_string_lossy(), "--disk", "4"];
    let mut machine = Machine::start(&place, &cd, &arguments).unwrap();
    let line = machine.wait_any(&ENDS, BOOT).unwrap();
    assert!(line.contains("vdb carries a file system (ext4): nothing was changed"), "{line}");
    assert!(ends(&theirs) == before);
    drop(machine);

    step(
        "two disks, one named: from a USB stick, and the firmware starts it first although the stick is there",
    );
    new_box(&place);
    let empty = place.dir.join("empty.raw");
    File::create(&empty).unwrap().set_len(4 << 30).unwrap();
    let options = "eve_install_disk=vdb eve_soft_serial=S-17\neve_reboot_after_install\n";
    let stick = medium(&place, &image, "stick", options);
    let arguments = ["--usb", "--disk", "4", "--add-disk", &empty.to_string_lossy()];
    let mut machine = Machine::start(&place, &stick, &arguments).unwrap();
    let line = machine.wait_any(&ENDS, BOOT).unwrap();
    assert!(line.contains("installed; take the medium away; the box starts from it"), "{line}");
    let line = machine.wait_line("selvedge: version 0", BOOT).unwrap();
    assert!(line.contains("on sda"), "the medium was not the stick: {line}");
    machine.wait_line("on vdb", BOOT).unwrap();
    machine.wait_line("this is device", BOOT).unwrap();
    assert!(!machine.console().contains("no disk has the root"));
    drop(machine);
    let table = run(Command::new("sgdisk").arg("-v").arg(&empty)).unwrap();
    assert!(table.contains("No problems found"), "{table}");

    step("that disk alone, larger, P3 without its superblock, in another box that knows nothing of it");
    new_box(&place);
    damage_persist(&empty);
    let mut machine = Machine::start(&place, &empty, &["--disk", "5"]).unwrap();
    machine.wait_line("on vda", BOOT).unwrap();
    machine.wait_line("P3 was mended", BOOT).unwrap();
    machine.wait_line("P3 has grown to", BOOT).unwrap();
    machine.wait_line("services     9 of 9 ready", BOOT + Duration::from_secs(60)).unwrap();
    let devices = controller.cli(&["get", "devices", "-o", "yaml"]).unwrap();
    assert!(devices.contains("S-17"), "{devices}");
    // it has kept who it is
    assert_eq!(devices.matches("kind: Device\n").count(), 1, "{devices}");
    assert!(!machine.console().contains("making the file system"), "P3 was made again");
    drop(machine);
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
