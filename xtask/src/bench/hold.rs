// SPDX-License-Identifier: Apache-2.0
//! A node with ten apps: its memory, how soon it is whole again after each of its processes was killed, and how soon all
//! apps answer after a restart of the whole node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::command::signal;
use tests::http;
use tests::lab::{Lab, Place};
use tests::probe::Probe;
use tests::progress::{step, wait_for};
use tests::toolbox;
use tests::truth::SERVICES;

use super::{Bench, Bound, Figure, Kind, median, memory};

const NODE_MEMORY: &str = "memory-ten-apps";
const SHIM_MEMORY: &str = "memory-shim";
const KILL: &str = "kill-service";
const KILL_INIT: &str = "kill-init";
const RESTART: &str = "restart-ten-apps";
pub(super) const NAMES: &[&str] = &[NODE_MEMORY, SHIM_MEMORY, KILL, KILL_INIT, RESTART];

const NUMBER: u8 = 42;
const APPS: u16 = 10;
const FIRST_PORT: u16 = 8080;
/// Kills of each.
const KILLS: usize = 3;
const RESTARTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
/// A service that is killed again is one that had taken up its work.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut lab = Lab::start(Place::new("bench-hold", NUMBER)?)?;
    step(format_args!("starting {APPS} apps"));
    lab.controller.push(&toolbox::layout(&lab.place.cache)?, "1", "box:1")?;
    lab.controller.apply("apps.yaml", &apps())?;
    all_answer(&lab)?;
    lab.converge("the-start", PATIENCE)?;
    let mut figures = Vec::new();
    if bench.is_wanted(NODE_MEMORY) || bench.is_wanted(SHIM_MEMORY) {
        figures.extend(measure_memory(&lab)?);
    }
    if bench.is_wanted(KILL) {
        figures.push(measure_kills(&lab)?);
    }
    if bench.is_wanted(KILL_INIT) {
        figures.push(measure_init(&mut lab)?);
    }
    if bench.is_wanted(RESTART) {
        figures.push(measure_restart(&mut lab)?);
    }
    figures.retain(|figure| bench.is_wanted(figure.name));
    Ok(figures)
}

fn apps() -> String {
    let network = "apiVersion: selvedge/v1alpha1\nkind: Network\nmetadata: {name: apps}\nspec:\n  \
                   kind: local\n  subnet: 10.60.0.0/24\n---\n";
    let app = |number: u16| {
        let port = FIRST_PORT + number;
        format!(
            "apiVersion: selvedge/v1alpha1\nkind: App\nmetadata: {{name: app-{number}}}\nspec:\n  image: box:1\n  \
             selector: {{}}\n  networks: [{{network: apps}}]\n  ports: ['{port}:80']\n  \
             resources: {{cpus: 1, memory: 64Mi}}\n---\n"
        )
    };
    network.to_owned() + &(0..APPS).map(app).collect::<String>()
}

fn all_answer(lab: &Lab) -> anyhow::Result<()> {
    for port in FIRST_PORT..FIRST_PORT + APPS {
        let address = lab.app_address(port)?;
        wait_for(&format!("the app at port {port} answers"), PATIENCE, || {
            http::get(address, "/", Duration::from_secs(1))
        })?;
    }
    Ok(())
}

fn measure_memory(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    step("measuring memory with ten apps");
    std::thread::sleep(memory::IDLE);
    let pids = lab.node.all_pids()?.into_iter().chain([lab.node.init_pid()?]);
    let (shims, services): (Vec<_>, Vec<_>) =
        memory::of_ours(pids)?.into_iter().partition(|(name, _)| name == "shim");
    anyhow::ensure!(shims.len() == usize::from(APPS), "{} shims for {APPS} apps", shims.len());
    let each: Vec<String> = services.iter().map(|(name, one)| format!("{name} {:.1}", one.rss_mb)).collect();
    let largest = shims.iter().map(|(_, one)| one.rss_mb).fold(0.0, f64::max);
    let pss: f64 = shims.iter().map(|(_, one)| one.pss_mb).sum::<f64>() / shims.len() as f64;
    Ok(vec![
        Figure {
            name: NODE_MEMORY,
            value: services.iter().map(|(_, one)| one.rss_mb).sum(),
            unit: "MB",
            bound: Bound::AtMost(96.0),
            kind: Kind::Gate,
            how: format!(
                "sum of Rss of all services, {APPS} apps idle, apps and shims not counted: {}",
                each.join(", ")
            ),
        },
        Figure {
            name: SHIM_MEMORY,
            value: largest,
            unit: "MB",
            bound: Bound::AtMost(4.0),
            kind: Kind::Gate,
            how: format!("Rss of the largest of {} shims (Pss on average {pss:.1})", shims.len()),
        },
    ])
}

fn measure_kills(lab: &Lab) -> anyhow::Result<Figure> {
    step(format_args!("killing each service {KILLS} times"));
    let probe = Probe::start(lab.app_address(FIRST_PORT)?);
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..KILLS {
        for service in SERVICES {
            let pid = lab.service(service)?;
            let start = Instant::now();
            signal(pid, "KILL")?;
            wait_for(&format!("{service} runs again"), PATIENCE, || {
                lab.node.pids(service).ok()?.into_iter().find(|new| *new != pid)
            })?;
            lab.converge(&format!("{service}-{round}"), PATIENCE)?;
            times.entry(service).or_default().push(start.elapsed().as_secs_f64());
            std::thread::sleep(PAUSE);
        }
    }
    let asked = probe.end()?;
    let each: Vec<(&str, f64)> = times.iter().map(|(name, times)| (*name, median(times))).collect();
    let worst = times.iter().flat_map(|(name, times)| times.iter().map(|time| (*name, *time)));
    let worst = worst.max_by(|a, b| a.1.total_cmp(&b.1)).context("something was killed")?;
    let each: Vec<String> = each.iter().map(|(name, time)| format!("{name} {time:.2}")).collect();
    Ok(Figure {
        name: KILL,
        value: worst.1,
        unit: "s",
        bound: Bound::AtMost(10.0),
        kind: Kind::Goal,
        how: format!(
            "kill -9 until a change went through the whole node and all status is true, the worst ({}) of {KILLS} each; \
             medians {}; {asked} probes of an app, none failed",
            worst.0,
            each.join(", ")
        ),
    })
}

fn measure_init(lab: &mut Lab) -> anyhow::Result<Figure> {
    step(format_args!("killing init {KILLS} times"));
    let probe = Probe::start(lab.app_address(FIRST_PORT)?);
    let mut times = Vec::new();
    for time in 0..KILLS {
        lab.node.kill_init()?;
        let start = Instant::now();
        lab.node.start_again(&lab.netns)?;
        lab.converge(&format!("init-{time}"), PATIENCE)?;
        times.push(start.elapsed().as_secs_f64());
    }
    let asked = probe.end()?;
    Ok(Figure {
        name: KILL_INIT,
        value: times.iter().copied().fold(0.0, f64::max),
        unit: "s",
        bound: Bound::AtMost(10.0),
        kind: Kind::Goal,
        how: format!(
            "init killed and started again, {APPS} apps taken over, until all status is true, the worst of {KILLS} \
             (median {:.2}); {asked} probes of an app, none failed",
            median(&times)
        ),
    })
}

fn measure_restart(lab: &mut Lab) -> anyhow::Result<Figure> {
    step(format_args!("stopping and starting the whole node {RESTARTS} times"));
    let mut times = Vec::new();
    for _ in 0..RESTARTS {
        lab.node.process().stop()?;
        let start = Instant::now();
        lab.node.start_again(&lab.netns)?;
        all_answer(lab)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(Figure {
        name: RESTART,
        value: median(&times),
        unit: "s",
        bound: Bound::AtMost(10.0),
        kind: Kind::Goal,
        how: format!(
            "start of init until {APPS} apps answer, images there, median of {RESTARTS} restarts of the whole node"
        ),
    })
}
