// SPDX-License-Identifier: Apache-2.0
//! Who gets a channel to whom. Pure: the supervisor makes the pairs and hands them out.
//!
//! When a process starts, for the first time or again, each pair it has with a living one is made anew and both ends
//! are handed out; so everybody is connected again whoever died.

use ipc::boot::Role;
use ipc::manifest::{Instances, Manifest};

const BUS: &str = "bus";
const LOG: &str = "log";
const RUN: &str = "run";
pub const INIT: &str = "init";

/// A process: its manifest and, for a template, which instance.
#[derive(Clone, Copy, Debug)]
pub struct Party<'m> {
    pub manifest: &'m Manifest,
    /// App id of a shim, else empty.
    pub key: &'m str,
}

impl Party<'_> {
    fn name(&self) -> &str {
        &self.manifest.name
    }

    /// How log and people call it.
    pub fn title(&self) -> String {
        match self.key {
            "" => self.manifest.name.clone(),
            key => format!("{}/{key}", self.manifest.name),
        }
    }

    fn uses_bus(&self) -> bool {
        self.name() != BUS && !(self.manifest.reads.is_empty() && self.manifest.writes().is_empty())
    }
}

/// The two ends of one pair.
pub type Ends = (Role, Role);

/// Pairs between two processes: what the first one gets, what the second one gets. With itself a process has at most
/// one: log speaks to log.
pub fn between(a: Party<'_>, b: Party<'_>) -> Vec<Ends> {
    let mut pairs = directed(a, b);
    let is_same = a.name() == b.name() && a.key == b.key;
    if !is_same {
        pairs.extend(directed(b, a).into_iter().map(|(b_end, a_end)| (a_end, b_end)));
    }
    pairs
}

/// Pairs between a process and init: what the process gets; the other end is init's.
pub fn with_init(party: Party<'_>) -> Vec<Role> {
    let raw = |kind: &str| Role::Raw { kind: kind.into(), key: INIT.into() };
    let mut roles = Vec::new();
    match party.name() {
        BUS => roles.push(raw("client")),
        LOG => roles.push(raw("source")),
        _ => {}
    }
    if party.manifest.calls.iter().any(|callee| callee == INIT) {
        roles.push(Role::CallTo { callee: INIT.into() });
    }
    roles
}

/// Pairs that `a` has because of what it is: it speaks to the bus, to log, to those it calls; a shim to run.
fn directed(a: Party<'_>, b: Party<'_>) -> Vec<Ends> {
    let raw = |kind: &str, key: String| Role::Raw { kind: kind.into(), key };
    let mut pairs = Vec::new();
    if b.name() == BUS && a.uses_bus() {
        pairs.push((Role::Bus, raw("client", a.title())));
    }
    if b.name() == LOG {
        pairs.push((Role::Log, raw("source", a.title())));
    }
    if a.manifest.calls.iter().any(|callee| callee == b.name()) {
        let from = Role::CallFrom { service: a.name().into(), key: a.key.into() };
        pairs.push((Role::CallTo { callee: b.name().into() }, from));
    }
    if a.manifest.instances == Instances::PerApp && b.name() == RUN {
        pairs.push((raw(RUN, String::new()), raw(a.name(), a.key.into())));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests;

    fn table(name: &str, key: &str) -> Vec<String> {
        let all = manifests::load(None, None).unwrap();
        let find = |name: &str| all.iter().find(|m| m.name == name).unwrap();
        let party = Party { manifest: find(name), key };
        let show = |role: &Role| match role {
            Role::Bus => "bus".to_string(),
            Role::Log => "log".to_string(),
            Role::CallTo { callee } => format!("call {callee}"),
            Role::CallFrom { service, key } => format!("answer {service} {key}").trim().into(),
            Role::Raw { kind, key } => format!("raw {kind} {key}").trim().to_string(),
        };
        let mut out: Vec<String> =
            with_init(party).iter().map(|role| format!("init: {}", show(role))).collect();
        for other in &all {
            let key = if other.instances == Instances::PerApp { "app1" } else { "" };
            for (own, its) in between(party, Party { manifest: other, key }) {
                out.push(format!("{}: {} = {}", other.name, show(&own), show(&its)));
            }
        }
        out
    }

    #[test]
    fn run_has_a_channel_to_every_shim() {
        assert_eq!(
            table("run", ""),
            [
                "init: call init",
                "bus: bus = raw client run",
                "log: log = raw source run",
                "shim: raw shim app1 = raw run",
            ]
        );
    }

    #[test]
    fn a_shim_has_run_log_and_those_it_calls() {
        let mut shim = table("shim", "app1");
        shim.sort();
        assert_eq!(
            shim,
            [
                "log: log = raw source shim/app1",
                "net: call net = answer shim app1",
                "run: raw run = raw shim app1",
                "vault: call vault = answer shim app1",
            ]
        );
    }

    #[test]
    fn bus_and_log_have_a_channel_to_each_and_log_one_to_itself() {
        let bus = table("bus", "");
        assert!(bus.contains(&"init: raw client init".to_string()));
        assert!(bus.contains(&"agent: raw client agent = bus".to_string()));
        assert!(!bus.iter().any(|line| line.starts_with("shim")));
        let log = table("log", "");
        assert!(log.contains(&"log: log = raw source log".to_string()));
        assert_eq!(log.iter().filter(|line| line.starts_with("log:")).count(), 1);
        assert!(log.contains(&"agent: answer agent = call log".to_string()));
    }
}
