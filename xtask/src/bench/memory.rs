// SPDX-License-Identifier: Apache-2.0
//! Memory of an idle node without apps and of its controller, as the kernel sums it up.

use std::time::Duration;

use anyhow::Context as _;
use tests::command::{root, run};
use tests::lab::{Lab, comm, descendants};
use tests::progress::step;

use super::{Bound, Figure, Kind};

pub(super) const NODE: &str = "memory-node";
pub(super) const CONTROLLER: &str = "memory-controller";

/// After the start everything that comes by a first timer has come.
pub(super) const IDLE: Duration = Duration::from_secs(20);

/// Bytes of one or several processes.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) rss_mb: f64,
    pub(super) pss_mb: f64,
}

pub(super) fn measure(lab: &mut Lab) -> anyhow::Result<Vec<Figure>> {
    step("measuring memory");
    std::thread::sleep(IDLE);
    let top = lab.node.process().pid();
    let services = of_ours(descendants(top)?.into_iter().chain([top]))?;
    let node = services.iter().fold(Memory::default(), |sum, (_, one)| Memory {
        rss_mb: sum.rss_mb + one.rss_mb,
        pss_mb: sum.pss_mb + one.pss_mb,
    });
    let each: Vec<String> =
        services.iter().map(|(name, memory)| format!("{name} {:.1}", memory.rss_mb)).collect();
    let controller = memory(controller_pid(lab)?)?;
    Ok(vec![
        Figure {
            name: NODE,
            value: node.rss_mb,
            unit: "MB",
            bound: Bound::AtMost(96.0),
            kind: Kind::Gate,
            how: format!(
                "sum of Rss, {} services idle without apps (sum of Pss {:.1}): {}",
                services.len(),
                node.pss_mb,
                each.join(", ")
            ),
        },
        Figure {
            name: CONTROLLER,
            value: controller.rss_mb,
            unit: "MB",
            bound: Bound::AtMost(64.0),
            kind: Kind::Gate,
            how: format!("Rss, idle with one device and one image (Pss {:.1})", controller.pss_mb),
        },
    ])
}

/// Names and memory of those that run our executables, by name.
pub(super) fn of_ours(pids: impl Iterator<Item = u32>) -> anyhow::Result<Vec<(String, Memory)>> {
    let mut ours: Vec<(String, Memory)> = Vec::new();
    for pid in pids {
        if comm(pid).is_some_and(|name| name.starts_with("selvedge-")) {
            ours.push((service(pid)?, memory(pid)?));
        }
    }
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(ours)
}

fn controller_pid(lab: &mut Lab) -> anyhow::Result<u32> {
    let pid = lab.controller.process().pid();
    anyhow::ensure!(comm(pid).as_deref() == Some("selvedge"), "process {pid} is not the controller");
    Ok(pid)
}

/// Its whole name, of which the kernel keeps the beginning only.
fn service(pid: u32) -> anyhow::Result<String> {
    let exe = run(root("readlink").arg(format!("/proc/{pid}/exe")))?;
    let name = exe.trim().rsplit('/').next().unwrap_or_default();
    Ok(name.strip_prefix("selvedge-").unwrap_or(name).to_owned())
}

fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = run(root("cat").arg(&path))?;
    let field = |name: &str| -> anyhow::Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .with_context(|| format!("no {name} in {path}"))?;
        Ok(kib.parse::<f64>()? * 1_024.0 / 1e6)
    };
    Ok(Memory { rss_mb: field("Rss")?, pss_mb: field("Pss")? })
}
