// SPDX-License-Identifier: Apache-2.0
//! Pull, verification and unpacking of an image of many files from a registry on this machine, against skopeo and umoci.
//!
//! Both as root, owners as in the image, on the same new file system; before each run what is dirty is written out. Nothing
//! is taken away between runs: ext4 makes new files slowly for some time after as many were removed, and where a disk is
//! mounted with `discard`, removing takes longer than all that is measured.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tests::command::{output, root, run};
use tests::progress::step;
use tests::registry::Registry;

use super::image::{TAG, many_files};
use super::{Bench, Bound, Figure, Kind, median, timed_s};

pub(super) const NAME: &str = "pull-of-skopeo-umoci";

const ROUNDS: usize = 5;
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 5041);
/// Room for all results, and sparse.
const DISK_BYTES: u64 = 6 << 30;
const REPOSITORY: &str = "bench/many";

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = many_files(&bench.cache)?;
    let dir = bench.fresh("pull")?;
    let disk = Disk::make(&dir)?;
    let registry = Registry::start(&dir.join("registry"), ADDRESS.into())?;
    registry.push(&layout, TAG, &format!("{REPOSITORY}:1"))?;
    step("measuring pulls");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // One round to warm up counts for nothing; the order changes from round to round.
    for round in 0..=ROUNDS {
        let one_ours = || pull_ours(bench, &registry, &disk.place(&format!("ours{round}"))?);
        let one_theirs = || pull_theirs(&registry, &disk.place(&format!("theirs{round}"))?);
        let (a, b) = if round % 2 == 0 {
            let a = one_ours()?;
            (a, one_theirs()?)
        } else {
            let b = one_theirs()?;
            (one_ours()?, b)
        };
        if round > 0 {
            ours.push(a);
            theirs.push(b);
        }
    }
    let (ours_s, theirs_s) = (median(&ours), median(&theirs));
    Ok(vec![Figure {
        name: NAME,
        value: theirs_s / ours_s,
        unit: "x",
        bound: Bound::AtLeast(2.0),
        kind: Kind::Ratio,
        how: format!(
            "200 MB in 20,000 files: {ours_s:.2} s, skopeo and umoci {theirs_s:.2} s, medians of {ROUNDS} in turns"
        ),
    }])
}

/// A file system of its own in one file. Taken away when dropped.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn make(dir: &Path) -> anyhow::Result<Disk> {
        let disk = Disk { image: dir.join("disk"), mount: dir.join("mount") };
        std::fs::File::create(&disk.image)?.set_len(DISK_BYTES)?;
        std::fs::create_dir(&disk.mount)?;
        // Nothing is left to be made in the background.
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        run(root("mkfs.ext4").args(["-q", "-F", "-E", options]).arg(&disk.image))?;
        run(root("mount").args(["-o", "loop"]).arg(&disk.image).arg(&disk.mount))
            .context("a loop device is needed for a file system of its own")?;
        Ok(disk)
    }

    /// A directory for one run, which does not pay for what the one before left to be written.
    fn place(&self, name: &str) -> anyhow::Result<PathBuf> {
        let to = self.mount.join(name);
        run(root("mkdir").args(["-m", "777"]).arg(&to))?;
        run(root("sync").arg("-f").arg(&self.mount))?;
        Ok(to)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = output(root("umount").arg(&self.mount));
        let _ = output(root("rm").arg("-f").arg(&self.image));
    }
}

fn pull_ours(bench: &Bench, registry: &Registry, to: &Path) -> anyhow::Result<f64> {
    let mut command = root(bench.example("pull"));
    command.arg(format!("http://{}", registry.address)).args([REPOSITORY, "1"]).arg(to);
    timed_s(&mut command)
}

fn pull_theirs(registry: &Registry, to: &Path) -> anyhow::Result<f64> {
    let layout = to.join("layout");
    let copy_s = timed_s(
        root("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
            .arg(format!("docker://{}/{REPOSITORY}:1", registry.address))
            .arg(format!("oci:{}:1", layout.display())),
    )?;
    let unpack_s = timed_s(
        root("umoci").args(["unpack", "--image", &format!("{}:1", layout.display())]).arg(to.join("bundle")),
    )?;
    Ok(copy_s + unpack_s)
}
