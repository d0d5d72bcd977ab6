// SPDX-License-Identifier: Apache-2.0
//! Pull, verification and unpacking of an image of many files from a registry on this machine, against skopeo and umoci.
//!
//! Both as root, owners as in the image, on the same disk; before each run what is dirty is written out.

use std::path::Path;

use tests::command::{root, run};
use tests::progress::step;
use tests::registry::Registry;

use super::image::{TAG, many_files};
use super::{Bench, Bound, Figure, Kind, median, timed_s};

pub(super) const NAME: &str = "pull-of-skopeo-umoci";

const ROUNDS: usize = 3;
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 5041);
const REPOSITORY: &str = "bench/many";

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let layout = many_files(&bench.cache)?;
    let dir = bench.fresh("pull")?;
    let registry = Registry::start(&dir.join("registry"), ADDRESS.into())?;
    registry.push(&layout, TAG, &format!("{REPOSITORY}:1"))?;
    step("measuring pulls");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // One round to warm up counts for nothing; the order changes from round to round.
    for round in 0..=ROUNDS {
        let (a, b) = if round % 2 == 0 {
            let a = pull_ours(bench, &registry, &dir)?;
            (a, pull_theirs(&registry, &dir)?)
        } else {
            let b = pull_theirs(&registry, &dir)?;
            (pull_ours(bench, &registry, &dir)?, b)
        };
        if round > 0 {
            ours.push(a);
            theirs.push(b);
        }
    }
    run(root("rm").arg("-rf").arg(&dir))?;
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

/// No run pays for what the one before left to be written, nor for taking it away.
fn clean(dir: &Path) -> anyhow::Result<()> {
    run(root("rm").arg("-rf").arg(dir))?;
    run(root("sync").arg("-f").arg(dir.parent().unwrap_or(dir)))?;
    Ok(())
}

fn pull_ours(bench: &Bench, registry: &Registry, dir: &Path) -> anyhow::Result<f64> {
    let to = dir.join("ours");
    clean(&to)?;
    std::fs::create_dir(&to)?;
    let mut command = root(bench.example("pull"));
    command.arg(format!("http://{}", registry.address)).args([REPOSITORY, "1"]).arg(&to);
    let took_s = timed_s(&mut command)?;
    clean(&to)?;
    Ok(took_s)
}

fn pull_theirs(registry: &Registry, dir: &Path) -> anyhow::Result<f64> {
    let to = dir.join("theirs");
    clean(&to)?;
    std::fs::create_dir(&to)?;
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
    clean(&to)?;
    Ok(copy_s + unpack_s)
}
