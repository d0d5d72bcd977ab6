// SPDX-License-Identifier: Apache-2.0
//! From the firmware to an app that answers, and what runs in between.

use std::time::Duration;

use tests::machine::{BOOT, Machine, prepared};
use tests::progress::step;
use tests::truth::SERVICES;

/// The judge inside ends some time after the box is well.
const JUDGED: Duration = Duration::from_secs(300);
/// What runs without an app: memory that is used, in KiB.
const USED_KIB_MAX: u64 = 192 * 1024;

#[test]
#[ignore = "boots machines"]
fn a_box_boots_onboards_runs_its_app_and_every_process_has_what_its_manifest_grants() {
    let place = super::place("box");
    let probe = env!("CARGO_BIN_EXE_selvedge-probe");
    let (mut controller, image) = prepared(&place, &["--with", probe]).unwrap();
    step("first boot");
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    machine.wait_line("this is device", BOOT).unwrap();
    step("onboarded");
    assert_eq!(machine.wait_app(BOOT).unwrap().trim(), "<h1>hello from the edge</h1>");
    step("the app answers");
    assert!(controller.has_condition("devices", "Connected"));
    let good = machine.wait_line("this version is good", JUDGED).unwrap();
    let version = image.description().unwrap()["version"].as_str().unwrap().to_owned();
    assert!(good.contains(&format!("selvedge_{version}.efi")), "{good}");
    machine.wait_line("PROBE: end", JUDGED).unwrap();
    let said = machine.console();
    let all = |word: &str| {
        let lines = said.lines().filter_map(|line| line.trim().strip_prefix("PROBE: ")?.strip_prefix(word));
        lines.map(|rest| rest.trim().to_owned()).collect::<Vec<_>>()
    };
    assert!(all("problem").is_empty(), "{}", all("problem").join("\n"));
    let seen = all("seen");
    for service in SERVICES.iter().chain(&["shim"]) {
        assert!(seen.contains(&format!("{service} 1")), "{service} is not among {seen:?}");
    }
    assert!(seen.iter().any(|line| line.starts_with("app ")), "{seen:?}");
    let predicted = image.description().unwrap()["pcr11"]["sha256"]["kernel"].as_str().unwrap().to_owned();
    assert_eq!(all("pcr11"), [predicted]);
    let kib = |name: &str| all(name)[0].trim_end_matches(" kB").parse::<u64>().unwrap();
    let used = kib("MemTotal") - kib("MemAvailable");
    step(format_args!("{} MiB of memory are used, with one app", used / 1024));
    assert!(used < USED_KIB_MAX, "{used} KiB");

    step("power button");
    machine.press_power_button().unwrap();
    assert!(machine.console().contains("all services have ended"), "the box was not stopped in order");
    controller.process().stop().unwrap();
    step("second boot, without a controller");
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    assert_eq!(machine.wait_app(BOOT).unwrap().trim(), "<h1>hello from the edge</h1>");
    assert!(!machine.console().contains("making the file system"), "P3 was made again");
    step("the power goes, third boot");
    machine.cut_power().unwrap();
    let mut machine = Machine::start(&place, &image.file("raw"), &[]).unwrap();
    assert_eq!(machine.wait_app(BOOT).unwrap().trim(), "<h1>hello from the edge</h1>");
    assert!(!machine.console().contains("making the file system"), "P3 was made again");
}
