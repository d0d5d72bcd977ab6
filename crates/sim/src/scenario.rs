// SPDX-License-Identifier: Apache-2.0
//! What happens to a world, as a list: what the operator does, and what fails. The list follows from the seed, and is
//! made shorter when a world fails.

use std::fmt;

use reconcile::Chance;

use crate::node::Name;
use crate::{DAY_MS, MINUTE_MS};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Operator(Action),
    Fault(usize, Fault),
}

/// What the operator does. Apps are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    AddApp(u8),
    DeleteApp(u8),
    /// Another tag; the last of them is in no registry.
    SetImage(u8, u8),
    Restart(u8),
    Purge(u8),
    Activate(u8),
    Deactivate(u8),
    SetMemory(u8, u16),
    /// Another secret in its environment.
    SetSecret(u8, u8),
    SetInterval(u16),
}

/// What fails on a node. `for_ms` ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    PowerCut {
        off_ms: u64,
    },
    /// In the middle of what the node does next.
    PowerCutAtEffect {
        effects: u32,
    },
    Crash(Name),
    CrashAtEffect {
        name: Name,
        effects: u32,
    },
    Hang {
        name: Name,
        for_ms: u64,
    },
    LinkDown {
        for_ms: u64,
    },
    LinkLossy {
        percent: u8,
        for_ms: u64,
    },
    LinkSlow {
        delay_ms: u32,
        for_ms: u64,
    },
    /// Something in between answers with what the controller never said.
    BrokenTls {
        for_ms: u64,
    },
    RegistryDown {
        for_ms: u64,
    },
    /// No name is found: neither the controller's nor the registry's.
    NamesGone {
        for_ms: u64,
    },
    LeaseLost {
        for_ms: u64,
    },
    LeaseChanged,
    VaultDown {
        for_ms: u64,
    },
    KernelFails {
        for_ms: u64,
    },
    SpawnFails {
        for_ms: u64,
    },
    DiskFull {
        for_ms: u64,
    },
    /// The clock jumps.
    ClockStep {
        seconds: i64,
    },
    /// The clock runs too fast or too slow, by millionths, and nobody sets it.
    ClockDrift {
        ppm: i32,
        for_ms: u64,
    },
    /// The clock begins in 1970 and is set after so long.
    ClockDead {
        for_ms: u64,
    },
    AppExits {
        app: u8,
        code: i32,
    },
    ShimDies {
        app: u8,
    },
    /// The controller of all nodes is stopped and started again.
    ControllerDown {
        for_ms: u64,
    },
    /// The controller of all nodes comes back from a backup: so many changes of the operator are lost, and what the
    /// devices reported too, or not.
    ControllerRestored {
        changes: u8,
        has_reports: bool,
    },
    /// The controller of all nodes answers this status.
    ControllerAnswers {
        status: u16,
        for_ms: u64,
    },
}

/// A world's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub seed: u64,
    pub nodes: usize,
    pub days: u64,
    /// The controller holds its answers until something changes.
    pub holds: bool,
    pub metric_interval_s: u32,
    pub config_interval_s: u32,
    /// Secrets come in clear text, as a foreign controller may send them.
    pub clear_secrets: bool,
    pub steps: Vec<Step>,
}

/// A quartz is wrong by some 100 millionths; a broken one, or a badly emulated clock, by percents.
const MAX_DRIFT_PPM: u64 = 50_000;
/// Apps that operators speak of.
const APPS: u8 = 4;
/// Faults over a week, at least and at most.
const FAULTS: (u64, u64) = (10, 60);
const ACTIONS: (u64, u64) = (6, 24);
/// What a controller or something before it answers in place of an answer. Not 404: by the standard's custom it makes a
/// node drop a report for good.
const STATUSES: [u16; 5] = [500, 503, 403, 429, 302];

/// Everything that happens under a seed. What fails is over before the last hour.
pub fn generate(seed: u64, days: u64) -> Scenario {
    let mut chance = Chance::new(seed.wrapping_mul(0x9E37_79B9).wrapping_add(1));
    let c = &mut chance;
    let nodes = if seed.is_multiple_of(8) { c.between(2, 4) as usize } else { 1 };
    let (holds, clear_secrets) = (c.between(0, 1) == 0, c.between(0, 2) == 0);
    let mut steps =
        vec![Step { at_ms: c.between(0, 10 * MINUTE_MS), what: What::Operator(Action::AddApp(0)) }];
    let end_ms = days * DAY_MS - 60 * MINUTE_MS;
    for _ in 0..c.between(ACTIONS.0, ACTIONS.1) {
        let at_ms = c.between(0, end_ms);
        steps.push(Step { at_ms, what: What::Operator(action(c)) });
    }
    // Some worlds are quiet, some are not.
    let faults = c.between(FAULTS.0, FAULTS.1);
    let is_bursty = c.between(0, 2) == 0;
    let mut at_ms = 0;
    for number in 0..faults {
        if !is_bursty || number % 6 == 0 {
            at_ms = c.between(0, end_ms);
        } else {
            at_ms = (at_ms + c.between(0, 20_000)).min(end_ms);
        }
        let node = c.between(0, nodes as u64 - 1) as usize;
        steps.push(Step { at_ms, what: What::Fault(node, fault(c, end_ms - at_ms)) });
    }
    steps.sort_by_key(|step| step.at_ms);
    Scenario {
        seed,
        nodes,
        days,
        holds,
        metric_interval_s: [60, 300, 900][c.between(0, 2) as usize],
        config_interval_s: [60, 300][c.between(0, 1) as usize],
        clear_secrets,
        steps,
    }
}

fn action(c: &mut Chance) -> Action {
    let app = c.between(0, u64::from(APPS) - 1) as u8;
    match c.between(0, 13) {
        0..=3 => Action::AddApp(app),
        4 => Action::DeleteApp(app),
        5 | 6 => Action::SetImage(app, c.between(0, 4) as u8),
        7 => Action::Restart(app),
        8 => Action::Purge(app),
        9 => Action::Deactivate(app),
        10 => Action::Activate(app),
        11 => Action::SetMemory(app, c.between(64, 512) as u16),
        12 => Action::SetSecret(app, c.between(0, 9) as u8),
        _ => Action::SetInterval([30, 60, 600][c.between(0, 2) as usize]),
    }
}

fn fault(c: &mut Chance, left_ms: u64) -> Fault {
    // Mostly minutes, now and then days.
    let for_ms = match c.between(0, 9) {
        0 => c.between(60 * MINUTE_MS, 2 * DAY_MS),
        1..=4 => c.between(MINUTE_MS, 60 * MINUTE_MS),
        _ => c.between(200, 2 * MINUTE_MS),
    };
    let for_ms = for_ms.min(left_ms);
    let short_ms = for_ms.min(5 * MINUTE_MS);
    let name = Name::SERVICES[c.between(0, Name::SERVICES.len() as u64 - 1) as usize];
    let app = c.between(0, u64::from(APPS) - 1) as u8;
    match c.between(0, 29) {
        0 | 1 => Fault::PowerCut { off_ms: for_ms },
        2..=4 => Fault::PowerCutAtEffect { effects: c.between(0, 40) as u32 },
        5 | 6 => Fault::Crash(name),
        7 | 8 => Fault::CrashAtEffect { name, effects: c.between(0, 20) as u32 },
        9 | 10 => Fault::Hang { name, for_ms: short_ms },
        11 | 12 => Fault::LinkDown { for_ms },
        13 => Fault::LinkLossy { percent: c.between(5, 80) as u8, for_ms },
        14 => Fault::LinkSlow { delay_ms: c.between(100, 20_000) as u32, for_ms },
        15 => Fault::BrokenTls { for_ms },
        16 => Fault::RegistryDown { for_ms },
        17 => Fault::LeaseLost { for_ms },
        18 => Fault::LeaseChanged,
        19 => Fault::VaultDown { for_ms: short_ms },
        20 => Fault::KernelFails { for_ms: short_ms },
        21 => {
            if c.between(0, 1) == 0 {
                Fault::SpawnFails { for_ms: short_ms }
            } else {
                Fault::DiskFull { for_ms }
            }
        }
        22 => Fault::ClockStep { seconds: c.between(0, 400_000) as i64 - 200_000 },
        23 => Fault::ClockDead { for_ms },
        24 => {
            if c.between(0, 1) == 0 {
                Fault::AppExits { app, code: c.between(0, 139) as i32 }
            } else {
                Fault::ShimDies { app }
            }
        }
        25 => Fault::ControllerDown { for_ms },
        26 => Fault::NamesGone { for_ms },
        27 => {
            Fault::ClockDrift { ppm: c.between(0, 2 * MAX_DRIFT_PPM) as i32 - MAX_DRIFT_PPM as i32, for_ms }
        }
        28 => Fault::ControllerRestored { changes: c.between(1, 3) as u8, has_reports: c.between(0, 2) > 0 },
        _ => Fault::ControllerAnswers { status: STATUSES[c.between(0, 4) as usize], for_ms },
    }
}

/// The controller is away for days, nothing else fails but power; then all devices come back at once.
pub fn away(seed: u64, nodes: usize, days: u64) -> Scenario {
    let mut steps: Vec<Step> =
        (0..3).map(|app| Step { at_ms: 1_000, what: What::Operator(Action::AddApp(app)) }).collect();
    let down = Fault::ControllerDown { for_ms: days * DAY_MS };
    steps.push(Step { at_ms: 60 * MINUTE_MS, what: What::Fault(0, down) });
    let mut chance = Chance::new(seed);
    for node in 0..nodes {
        for _ in 0..4 {
            let at_ms = chance.between(2 * 60 * MINUTE_MS, days * DAY_MS);
            let fault = match chance.between(0, 3) {
                0 => Fault::PowerCut { off_ms: chance.between(1_000, 60 * MINUTE_MS) },
                1 => Fault::AppExits { app: chance.between(0, 2) as u8, code: 1 },
                2 => Fault::Crash(Name::Agent),
                _ => Fault::LeaseChanged,
            };
            steps.push(Step { at_ms, what: What::Fault(node, fault) });
        }
    }
    steps.sort_by_key(|step| step.at_ms);
    Scenario {
        seed,
        nodes,
        days: days + 1,
        holds: true,
        metric_interval_s: 900,
        config_interval_s: 60,
        clear_secrets: false,
        steps,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = crate::story::moment(self.at_ms);
        match &self.what {
            What::Operator(action) => write!(f, "{at} operator {action:?}"),
            What::Fault(node, fault) => write!(f, "{at} node {node} {fault:?}"),
        }
    }
}
