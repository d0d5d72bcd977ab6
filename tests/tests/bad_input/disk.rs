// SPDX-License-Identifier: Apache-2.0
//! A disk that is full: told, survived, and over when there is room again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::command::{output, root, run};
use tests::hostile::{Flaw, Hostile};
use tests::lab::{Lab, Place};
use tests::operator::{SOON, app, apply, document, network, on_device, push, wait_answer, wait_described};
use tests::probe::Probe;
use tests::progress::{step, wait_for};
use tests::toolbox;

use super::wait_told;

/// The node leaves 256 MiB to others; what is beyond it takes the toolbox but not the large image.
const DISK: &str = "size=290m";
/// Longest wait until the node tries again by itself what failed a few times.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// A file system of its own for a node's data. Taken away when dropped, which must be after the laboratory.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path) -> anyhow::Result<Mount> {
        run(root("mkdir").arg("-p").arg(at))?;
        run(root("mount").args(["-t", "tmpfs", "-o", DISK, "selvedge-test"]).arg(at))?;
        Ok(Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = output(root("umount").arg(&self.0));
    }
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_told_and_over_when_there_is_room_again() {
    let mut mount = None;
    let place = Place::new("full", 64).unwrap();
    // left by a test that was killed
    let _ = output(root("umount").arg(place.dir.join("persist")));
    let mut lab = Lab::start_prepared(place, &[], |place| {
        mount = Some(Mount::new(&place.dir.join("persist"))?);
        Ok(())
    })
    .unwrap();
    push(&lab, "1", "box:1");
    push(&lab, "2", "box:2");
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let probe = Probe::start(lab.app_address(8080).unwrap());

    step("an image larger than the disk");
    let program = fs::read(toolbox::busybox(&lab.place.cache).unwrap()).unwrap();
    let address = format!("{}:5001", lab.netns.host).parse().unwrap();
    let registry = Hostile::start(address, None, &program, &[("large", Flaw::Large)]).unwrap();
    let text = document("Registry", "hostile", &format!("url: {}\ninsecure: true", registry.address))
        + &app("large", "large:1", "apps", 8101, "registry: hostile");
    apply(&lab, &text);
    wait_told(&lab, Instant::now(), &[("large", &["DiskFull: ", "large"])]);

    step("no byte left");
    let filler = lab.place.dir.join("persist/filler");
    let full =
        output(root("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", filler.display()))).unwrap();
    assert!(!full.status.success(), "the disk has no end");
    apply(&lab, &app("other", "box:2", "apps", 8102, ""));
    wait_told(&lab, Instant::now(), &[("other", &["DiskFull: "])]);
    // what runs goes on running, and the node answers its controller
    assert!(lab.controller.has_condition("devices", "Connected"));
    run(root("rm").arg(&filler)).unwrap();
    step("room again");
    wait_answer(&mut lab, 8102, "two", TRIED_AGAIN);
    wait_for("the reason goes with its cause", SOON, || {
        on_device(&lab, "other")["faults"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .unwrap();
    wait_described(&lab, "large", "DiskFull: ", SOON);
    assert!(probe.end().unwrap() > 10);
    drop(lab);
    drop(mount);
}
