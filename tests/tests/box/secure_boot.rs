// SPDX-License-Identifier: Apache-2.0
//! Secure Boot: the firmware starts what is signed by a key it has, and nothing else. The key is the one that Debian's
//! firmware for tests trusts, and that everybody has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::run;
use tests::lab::Place;
use tests::machine::{BOOT, Image, Machine};
use tests::progress::step;

const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd";
const CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
const LOCKED_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";

fn openssl(arguments: &[&str]) {
    run(Command::new("openssl").args(arguments)).unwrap();
}

fn signed(place: &Place, name: &str, key: &Path, certificate: &Path) -> Image {
    let (key, certificate) = (key.to_string_lossy(), certificate.to_string_lossy());
    let arguments = ["--sign-key", &key, "--sign-cert", &certificate, "--insecure-test-keys"];
    Image::build(place, &place.dir.join(name), &arguments).unwrap()
}

/// Boots and gives the first of these lines that comes.
fn first_line(place: &Place, raw: &Path, lines: &[&str]) -> String {
    run(Command::new("rm").arg("-rf").arg(place.dir.join("box"))).unwrap();
    let mut machine = Machine::start(place, raw, &["--secure-boot", VARIABLES]).unwrap();
    machine.wait_any(lines, BOOT).unwrap()
}

/// A copy of the disk with one byte of the kernel image changed, deep inside the kernel.
fn altered(place: &Place, image: &Image) -> PathBuf {
    let (uki, mut disk) = (fs::read(image.file("efi")).unwrap(), fs::read(image.file("raw")).unwrap());
    let needle = &uki[uki.len() / 2..uki.len() / 2 + 512];
    let at = disk.windows(needle.len()).position(|window| window == needle).unwrap();
    disk[at + 7] ^= 1;
    let path = place.dir.join("altered.raw");
    fs::write(&path, disk).unwrap();
    path
}

#[test]
#[ignore = "boots machines"]
fn secure_boot_starts_what_is_signed_and_nothing_unsigned_foreign_or_altered() {
    let place = super::place("box-secure");
    let (key, foreign_key) = (place.dir.join("test-db.key"), place.dir.join("test-foreign.key"));
    let foreign_certificate = place.dir.join("test-foreign.pem");
    openssl(&["rsa", "-in", LOCKED_KEY, "-passin", "pass:snakeoil", "-out", &key.to_string_lossy()]);
    let (out, to) = (foreign_certificate.to_string_lossy(), foreign_key.to_string_lossy());
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=foreign",
        "-keyout",
        &to,
        "-out",
        &out,
    ]);
    let refused = Image::build(
        &place,
        &place.dir.join("refused"),
        &["--sign-key", &key.to_string_lossy(), "--sign-cert", CERTIFICATE],
    );
    assert!(refused.unwrap_err().to_string().contains("--insecure-test-keys allows it"));

    let (runs, denied) = ("bus started", "ccess ");
    step("signed by the key that the firmware has");
    let good = signed(&place, "good", &key, Path::new(CERTIFICATE));
    let line = first_line(&place, &good.file("raw"), &[runs, denied]);
    assert!(line.contains(runs), "{line}");
    step("one byte of the kernel altered");
    let line = first_line(&place, &altered(&place, &good), &[runs, denied]);
    assert!(line.to_lowercase().contains("access denied"), "{line}");
    step("signed by a foreign key");
    let foreign = signed(&place, "foreign", &foreign_key, &foreign_certificate);
    let line = first_line(&place, &foreign.file("raw"), &[runs, denied]);
    assert!(line.to_lowercase().contains("access denied"), "{line}");
    step("not signed");
    let unsigned = Image::shared(&place, &place.dir.join("unsigned"), &[]).unwrap();
    let line = first_line(&place, &unsigned.file("raw"), &[runs, denied]);
    assert!(line.to_lowercase().contains("access denied"), "{line}");
    run(Command::new("rm").arg("-rf").arg(&place.dir)).unwrap();
}
