// SPDX-License-Identifier: Apache-2.0
//! What the builder writes, judged by the tools of others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tests::command::run;
use tests::machine::Image;

const SECTOR: u64 = 512;

fn sums(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let sum = |path: &Path| Sha256::digest(fs::read(path).unwrap()).to_vec();
    entries.map(|entry| (entry.file_name().into_string().unwrap(), sum(&entry.path()))).collect()
}

/// First sector and sectors of a partition, as sgdisk reads the table.
fn partition(image: &Path, number: u32) -> (u64, u64) {
    let text = run(Command::new("sgdisk").args(["-i", &number.to_string()]).arg(image)).unwrap();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    (field("First sector:"), field("Partition size:"))
}

fn cut(image: &Path, number: u32, into: &Path) {
    let (first, sectors) = partition(image, number);
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    fs::File::open(image).unwrap().read_exact_at(&mut bytes, first * SECTOR).unwrap();
    fs::write(into, bytes).unwrap();
}

#[test]
#[ignore = "builds images"]
fn two_builds_are_identical_and_the_tools_of_others_find_no_fault() {
    let place = super::place("box-build");
    let one = Image::shared(&place, &place.dir.join("one"), &[]).unwrap();
    // at another time, elsewhere, with the tools unpacked anew
    run(Command::new("rm").arg("-rf").arg(place.cache.join("image/tools"))).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let two = Image::build(&place, &place.dir.join("elsewhere/two"), &[]).unwrap();
    let (first, second) = (sums(&one.dir), sums(&two.dir));
    assert_eq!(first, second);
    assert!(first.len() >= 5, "{:?}", first.keys());

    let raw = one.file("raw");
    let verified = run(Command::new("sgdisk").arg("-v").arg(&raw)).unwrap();
    assert!(verified.contains("No problems found"), "{verified}");
    let (data, tree) = (place.dir.join("data"), place.dir.join("tree"));
    cut(&raw, 2, &data);
    cut(&raw, 3, &tree);
    let hash = one.description().unwrap()["rootHash"].as_str().unwrap().to_owned();
    run(Command::new("veritysetup").arg("verify").arg(&data).arg(&tree).arg(&hash)).unwrap();
    run(Command::new("fsck.vfat").arg("-n").arg({
        cut(&raw, 1, &tree);
        &tree
    }))
    .unwrap();
    let iso = one.file("iso");
    let verified = run(Command::new("sgdisk").arg("-v").arg(&iso)).unwrap();
    assert!(verified.contains("No problems found"), "{verified}");
    let mut xorriso = Command::new("xorriso");
    xorriso.arg("-indev").arg(&iso).args(["-report_el_torito", "plain", "-find", "/"]);
    let seen = run(&mut xorriso).unwrap();
    assert!(seen.contains("UEFI") && seen.contains("'/README.TXT'"), "{seen}");
    // the update file has the same root and hash tree
    let update = one.file("update");
    cut(&update, disk::update::ROOT, &data);
    cut(&update, disk::update::ROOT_TREE, &tree);
    run(Command::new("veritysetup").arg("verify").arg(&data).arg(&tree).arg(&hash)).unwrap();
    cut(&update, disk::update::KERNEL, &data);
    assert!(fs::read(&data).unwrap().starts_with(&fs::read(one.file("efi")).unwrap()));
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}

#[test]
#[ignore = "builds images"]
fn what_cannot_be_built_is_said_before_anything_is_written() {
    let place = super::place("box-refused");
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/node.yml");
    let (text, lock) = (fs::read_to_string(&recipe).unwrap(), recipe.with_extension("lock"));
    let lock = fs::read_to_string(lock).unwrap();
    let refused = |name: &str, recipe: &str, lock: &str, programs: Option<&str>| {
        let dir = place.dir.join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("r.yml"), recipe).unwrap();
        fs::write(dir.join("r.lock"), lock).unwrap();
        let mut command = Command::new(place.program("selvedge"));
        command.args(["image", "build"]).arg(dir.join("r.yml")).arg("--out").arg(dir.join("out"));
        command.env("SELVEDGE_IMAGE_CACHE", place.cache.join("image"));
        if let Some(programs) = programs {
            command.args(["--programs", programs]);
        }
        let said = run(&mut command).unwrap_err().to_string();
        let left = fs::read_dir(dir.join("out")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{name}: something was written");
        said
    };
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let said = refused("unknown", &changed("\nprograms:", "\nprogramz:"), &lock, None);
    assert!(said.contains("programz"), "{said}");
    let said = refused("lacking", &changed("- name: libcom-err2", "- name: libuuid1"), &lock, None);
    assert!(said.contains("libcom_err.so.2, which usr/"), "{said}");
    let said = refused("locked", &changed("- name: libuuid1", "- name: zsh"), &lock, None);
    assert!(said.contains("the lock has no zsh for amd64: run selvedge image lock"), "{said}");
    let said = refused("no-file", &changed("usr/sbin/mke2fs", "usr/sbin/mke3fs"), &lock, None);
    assert!(said.contains("package e2fsprogs") && said.contains("it has no usr/sbin/mke3fs"), "{said}");
    let said = refused("large", &changed("root: 512", "root: 1"), &lock, None);
    assert!(said.contains("do not fit into a partition of 1 MiB"), "{said}");
    let said = refused("unbuilt", &text, &lock, Some("/nowhere"));
    assert!(said.contains("cannot read our program /nowhere/selvedge-init: build it first"), "{said}");
    let said = refused("format", &changed("format: 1", "format: 2"), &lock, None);
    assert!(said.contains("format 2 is not known"), "{said}");
    let said = refused("outside", &changed("[usr/sbin/mke2fs", "[../mke2fs"), &lock, None);
    assert!(said.contains("\"../mke2fs\" is not relative to the root"), "{said}");
    let said = refused("module", &changed("- dm_verity", "- dm_virtue"), &lock, None);
    assert!(said.contains("modules of the initrd") && said.contains("dm_virtue"), "{said}");
    let small = place.dir.join("full/out");
    fs::create_dir_all(&small).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "full"]).arg(&small)).unwrap();
    let said = refused("full", &text, &lock, None);
    run(Command::new("umount").arg(&small)).unwrap();
    assert!(said.contains("MiB free,") && said.contains("are needed"), "{said}");
    let sum = lock.lines().find(|line| line.starts_with("sha256")).unwrap();
    let said =
        refused("sum", &text, &lock.replacen(sum, &format!("sha256 = \"{}\"", "0".repeat(64)), 1), None);
    assert!(said.contains("but the lock says 0000"), "{said}");
}
