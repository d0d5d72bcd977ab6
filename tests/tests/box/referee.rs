// SPDX-License-Identifier: Apache-2.0
//! A booted node under the independent controller.

use tests::machine::{BOOT, HOST_INSIDE, Image, Machine, free_port};
use tests::progress::step;
use tests::referee::{Listens, Trial};

/// Each step of a box in software emulation.
const STEP_S: u32 = 240;

#[test]
#[ignore = "boots a machine; needs the referees"]
fn a_booted_node_is_a_good_eve() {
    let place = super::place("box-referee");
    let listens = || {
        let port = free_port().unwrap();
        let at = format!("127.0.0.1:{port}").parse().unwrap();
        Listens { at, as_seen: format!("{HOST_INSIDE}:{port}") }
    };
    let mut trial = Trial::start(&place, &listens(), &listens()).unwrap();
    step("building an image");
    let image = Image::build(&place, &place.dir.join("image"), &[]).unwrap();
    image.with_config(&place, &trial.state.join("config")).unwrap();
    step("booting it");
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    let violations = trial.judge(STEP_S).unwrap_or_else(|error| panic!("{error:#}\n{}", machine.console()));
    let page = machine.wait_app(BOOT).unwrap();
    assert!(page.contains("hello from the referee"), "encrypted user data did not arrive: {page}");
    assert!(violations.is_empty(), "{}", serde_json::to_string_pretty(&violations).unwrap());
}
