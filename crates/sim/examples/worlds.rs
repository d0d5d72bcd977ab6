// SPDX-License-Identifier: Apache-2.0
//! For `cargo xtask sim`: lives through worlds.
//!
//! `worlds seeds FIRST LAST DAYS` lives through many and prints one line of figures; a failing one is made short and
//! told. `worlds one SEED DAYS` tells the whole story of one. `worlds storm NODES` takes the controller away for a week. `worlds replay FILE` makes the decisions of a flight record
//! again.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use sim::scenario::{Scenario, away, generate};
use sim::{Failure, Telling, run, shrink};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    match words.as_slice() {
        ["seeds", first, last, days] => match (number(first), number(last), number(days)) {
            (Some(first), Some(last), Some(days)) => seeds(first, last, days),
            _ => usage(),
        },
        ["one", seed, days] => match (number(seed), number(days)) {
            (Some(seed), Some(days)) => one(seed, days),
            _ => usage(),
        },
        ["storm", nodes] => number(nodes).map_or_else(usage, |nodes| storm(nodes as usize)),
        ["replay", file] => replay(file.as_ref()),
        _ => usage(),
    }
}

/// The controller is away for a week, and then all devices come back.
fn storm(nodes: usize) -> ExitCode {
    let outcome = run(&away(1, nodes, 7), Telling::End);
    match outcome.failure {
        None => {
            println!("a week without a controller, {nodes} devices: {} events, all is well", outcome.events);
            ExitCode::SUCCESS
        }
        Some(failure) => {
            println!("{}\n{failure}", outcome.story.join("\n"));
            ExitCode::FAILURE
        }
    }
}

fn replay(file: &Path) -> ExitCode {
    let records = match service::flight::read(file) {
        Ok(records) => records,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let replayed = sim::replay::replay(&records);
    for line in &replayed.story {
        println!("{line}");
    }
    for difference in &replayed.differences {
        println!("differs: {difference}");
    }
    println!(
        "{}: {} keyframes, {} decisions made again, {} of them differ",
        replayed.service,
        replayed.keyframes,
        replayed.decisions,
        replayed.differences.len()
    );
    if replayed.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!(
        "worlds seeds FIRST LAST DAYS | worlds one SEED DAYS | worlds storm NODES | worlds replay FILE"
    );
    ExitCode::FAILURE
}

fn one(seed: u64, days: u64) -> ExitCode {
    let scenario = generate(seed, days);
    let outcome = run(&scenario, Telling::Whole);
    for line in &outcome.story {
        println!("{line}");
    }
    match outcome.failure {
        None => {
            println!("seed {seed}: {} events, all is well", outcome.events);
            ExitCode::SUCCESS
        }
        Some(failure) => {
            println!("seed {seed}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn seeds(first: u64, last: u64, days: u64) -> ExitCode {
    let began = Instant::now();
    let next = AtomicU64::new(first);
    let failures: Mutex<Vec<(Scenario, Failure)>> = Mutex::default();
    let node_ms = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    let scenario = generate(seed, days);
                    let outcome = run(&scenario, Telling::End);
                    node_ms.fetch_add((outcome.node_days * 1_000.0) as u64, Ordering::Relaxed);
                    if let Some(failure) = outcome.failure {
                        let mut all = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push((scenario, failure));
                    }
                }
            });
        }
    });
    let took_s = began.elapsed().as_secs_f64();
    let node_days = node_ms.load(Ordering::Relaxed) as f64 / 1_000.0;
    let cpu_s = cpu_s();
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|(scenario, _)| scenario.seed);
    for (scenario, failure) in &failures {
        eprintln!("seed {}: {failure}", scenario.seed);
    }
    // The first one is told in full: the others often have the same cause.
    if let Some((scenario, failure)) = failures.first() {
        let (short, how) = shrink(scenario, failure);
        eprintln!("seed {} fails with these {} steps: {how}", scenario.seed, short.steps.len());
        for step in &short.steps {
            eprintln!("  {step}");
        }
        for line in run(&short, Telling::End).story {
            eprintln!("    {line}");
        }
    }
    println!(
        "seeds={} failed={} node_days={node_days:.0} took_s={took_s:.1} cpu_s={cpu_s:.1} node_days_per_cpu_minute={:.0}",
        last + 1 - first,
        failures.len(),
        node_days / cpu_s * 60.0
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Processor time of this process so far.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, in hundredths of a second on every Linux.
    (ticks(11) + ticks(12)) / 100.0
}
