// SPDX-License-Identifier: Apache-2.0
//! The demo: an operator's first five minutes, on one machine.

use std::sync::mpsc;
use std::time::Duration;

use tests::command;
use tests::lab::{Lab, Place};
use tests::machine::{self, Machine};
use tests::packages;
use tests::progress::{elapsed_s, step};

/// Port of the node that `examples/hello` maps to its web server.
const APP_PORT: u16 = 8080;
/// Longest time from the apply to the first answer.
const APP_S: u64 = 60;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End as soon as the app answered.
    #[arg(long)]
    once: bool,
    /// The quick form: the node's processes on this machine, in place of a box of their own.
    #[arg(long = "hosted")]
    is_hosted: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.is_hosted { hosted(args) } else { boxed(args) }
}

fn hosted(args: &Args) -> anyhow::Result<()> {
    command::prepare_root()?;
    packages::ensure(packages::DEMO)?;
    crate::build_products()?;
    let built_s = elapsed_s();

    let stopped = interrupts()?;

    let mut lab = Lab::start(Place::new("demo", 1)?)?;
    step("applying examples/hello");
    let examples = crate::workspace()?.join("examples/hello");
    let said = lab.controller.cli(&["apply", "-f", &examples.to_string_lossy()])?;
    for line in said.lines() {
        eprintln!("           {line}");
    }
    step("waiting for the app");
    let page = lab.wait_app(APP_PORT, Duration::from_secs(APP_S))?;
    step(format_args!("the app answers, {:.1} s after the build: {}", elapsed_s() - built_s, page.trim()));
    if args.once {
        return Ok(());
    }
    let data = lab.controller.data.display();
    let program = lab.place.program("selvedge");
    println!(
        "
The app:         curl http://{}:{APP_PORT}/
The controller:  https://{}

In another terminal, from here:

    export SELVEDGE_DATA={data}
    alias selvedge={}
    selvedge get devices -o wide
    selvedge describe app/hello
    selvedge logs -f app/hello
    selvedge plan -f examples/hello      # change something in it first
    selvedge apply -f examples/hello

Ctrl-C stops everything and cleans up.",
        lab.netns.node,
        lab.controller.address,
        program.display(),
    );
    let _ = stopped.recv();
    step("stopping");
    Ok(())
}

/// Gets a word when somebody wants the demo to end.
fn interrupts() -> anyhow::Result<mpsc::Receiver<()>> {
    let (stop, stopped) = mpsc::channel();
    ctrlc::set_handler(move || {
        let _ = stop.send(());
    })?;
    Ok(stopped)
}

/// An image is built, booted under UEFI, onboarded; no root is needed once the programs are installed.
fn boxed(args: &Args) -> anyhow::Result<()> {
    packages::ensure(packages::DEMO)?;
    packages::ensure(packages::BOX)?;
    crate::build_products()?;
    let built_s = elapsed_s();
    let stopped = interrupts()?;
    let place = Place::new("demo-box", 2)?;
    place.clear()?;
    let (controller, image) = machine::prepared(&place, &[])?;
    step("switching the box on: firmware, boot loader, kernel, our system");
    let mut machine = Machine::start(&place, &image.file("raw"), &[])?;
    machine.wait_line("this is device", machine::BOOT)?;
    step("the node is onboarded");
    let page = machine.wait_app(machine::BOOT)?;
    step(format_args!("the app answers, {:.1} s after the build: {}", elapsed_s() - built_s, page.trim()));
    if args.once {
        return Ok(());
    }
    println!(
        "
The app:         curl http://{}/
The controller:  https://{}
The console:     tail -f {}

In another terminal, from here:

    export SELVEDGE_DATA={}
    alias selvedge={}
    selvedge get devices -o wide
    selvedge logs -f app/hello

Ctrl-C switches the box off and cleans up.",
        machine.app,
        controller.address,
        place.dir.join("console").display(),
        controller.data.display(),
        place.program("selvedge").display(),
    );
    let _ = stopped.recv();
    step("pressing the power button");
    machine.press_power_button()
}
