// SPDX-License-Identifier: Apache-2.0
//! Links of the node: the difference between what is intended and what was seen, as steps that leave nothing to choose.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::net::{Mac, Prefix4};

use super::{Bridge, Intent, USUAL_MTU};

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSeen {
    pub kind: LinkKind,
    /// Carries the mark of links this software made.
    pub is_ours: bool,
    pub is_up: bool,
    pub mac: Option<Mac>,
    /// Bridge it is a port of.
    pub bridge: Option<String>,
    /// Port that speaks with its bridge only, not with other such ports.
    pub is_isolated: bool,
    /// Bridge that has packets judged which pass it.
    pub judges_passing: bool,
    /// Takes in frames for others.
    pub is_listening: bool,
    /// Other end of a pair, when it is in the same network namespace.
    pub peer: Option<String>,
    pub mtu: u32,
    pub addresses: Vec<Prefix4>,
    /// Those that were entered by hand.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    Bridge,
    Veth,
    Other,
}

/// One change. Links are named by their Linux name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Delete {
        link: String,
    },
    AddBridge {
        link: String,
        mac: Mac,
        judges_passing: bool,
    },
    /// A pair of links.
    AddPatch {
        link: String,
        outer: String,
    },
    AddAddress {
        link: String,
        address: Prefix4,
    },
    RemoveAddress {
        link: String,
        address: Prefix4,
    },
    SetMac {
        link: String,
        mac: Mac,
    },
    SetMtu {
        link: String,
        mtu: u16,
    },
    /// Makes it a port.
    Join {
        link: String,
        bridge: String,
        way: Way,
    },
    SetUp {
        link: String,
    },
    AddNeighbour {
        link: String,
        address: Ipv4Addr,
        mac: Mac,
    },
    RemoveNeighbour {
        link: String,
        address: Ipv4Addr,
    },
    Listen {
        link: String,
        to: Frames,
    },
}

/// With whom a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With its bridge only, not with other such ports.
    Isolated,
    Open,
}

/// Frames a link takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    Own,
    All,
}

impl Step {
    /// The link that changes.
    pub fn link(&self) -> &str {
        match self {
            Step::Delete { link }
            | Step::AddBridge { link, .. }
            | Step::AddAddress { link, .. }
            | Step::RemoveAddress { link, .. }
            | Step::SetMac { link, .. }
            | Step::AddPatch { link, .. }
            | Step::SetMtu { link, .. }
            | Step::Join { link, .. }
            | Step::AddNeighbour { link, .. }
            | Step::RemoveNeighbour { link, .. }
            | Step::Listen { link, .. }
            | Step::SetUp { link } => link,
        }
    }

    /// Taking away comes before the rules change, everything else after: no link is ever there without its rules.
    pub fn is_removal(&self) -> bool {
        matches!(self, Step::Delete { .. })
    }
}

/// What to do to the seen links. Interfaces of apps are not added here but when the app attaches. Empty when all is well.
///
/// A link of another maker under a name of ours is left alone; adding ours will fail and be reported.
pub fn steps(intent: &Intent, seen: &BTreeMap<String, LinkSeen>) -> Vec<Step> {
    let mut steps = Vec::new();
    let is_patch = |name: &String| {
        intent.patches.contains_key(name) || intent.patches.values().any(|patch| patch.outer == *name)
    };
    let is_wanted = |name: &String, link: &LinkSeen| match link.kind {
        LinkKind::Bridge => {
            intent.bridges.get(name).is_some_and(|wanted| wanted.judges_passing() == link.judges_passing)
        }
        LinkKind::Veth => intent.vifs.contains_key(name) || is_patch(name),
        LinkKind::Other => false,
    };
    let ours = |kind| seen.iter().filter(move |(_, link)| link.is_ours && link.kind == kind);
    // Ports first: a bridge that goes would leave them without one.
    let mut gone = BTreeSet::new();
    for (name, link) in ours(LinkKind::Veth).chain(ours(LinkKind::Bridge)) {
        // The other end of a patch went with the first.
        if !is_wanted(name, link) && !gone.contains(name) {
            steps.push(Step::Delete { link: name.clone() });
            gone.insert(name.clone());
            gone.extend(link.peer.clone());
        }
    }
    let stays = |name: &String, kind| {
        seen.get(name).filter(|link| link.is_ours && link.kind == kind && is_wanted(name, link))
    };
    for (name, bridge) in &intent.bridges {
        bridge_steps(name, bridge, stays(name, LinkKind::Bridge), &mut steps);
    }
    for (name, patch) in &intent.patches {
        let (inner, outer) = (stays(name, LinkKind::Veth), stays(&patch.outer, LinkKind::Veth));
        if inner.is_none() || outer.is_none() {
            steps.push(Step::AddPatch { link: name.clone(), outer: patch.outer.clone() });
        }
        let port = Port { bridge: &patch.bridge, is_isolated: false, mtu: patch.mtu };
        port_steps(name, &port, inner, &mut steps);
        mtu_step(&patch.outer, patch.mtu, outer, &mut steps);
        if !outer.is_some_and(|seen| seen.is_up) {
            steps.push(Step::SetUp { link: patch.outer.clone() });
        }
    }
    for (name, vif) in &intent.vifs {
        let Some(seen) = stays(name, LinkKind::Veth) else { continue };
        let port = Port { bridge: &vif.bridge, is_isolated: vif.is_isolated(), mtu: vif.mtu };
        port_steps(name, &port, Some(seen), &mut steps);
    }
    for link in &intent.listening {
        if seen.get(link).is_some_and(|seen| !seen.is_listening) {
            steps.push(Step::Listen { link: link.clone(), to: Frames::All });
        }
    }
    steps
}

struct Port<'a> {
    bridge: &'a String,
    is_isolated: bool,
    mtu: u16,
}

fn port_steps(name: &str, port: &Port<'_>, seen: Option<&LinkSeen>, steps: &mut Vec<Step>) {
    let is_joined =
        seen.is_some_and(|s| s.bridge.as_ref() == Some(port.bridge) && s.is_isolated == port.is_isolated);
    mtu_step(name, port.mtu, seen, steps);
    if !is_joined {
        let way = if port.is_isolated { Way::Isolated } else { Way::Open };
        steps.push(Step::Join { link: name.into(), bridge: port.bridge.clone(), way });
    }
    if !seen.is_some_and(|seen| seen.is_up) {
        steps.push(Step::SetUp { link: name.into() });
    }
}

fn mtu_step(name: &str, mtu: u16, seen: Option<&LinkSeen>, steps: &mut Vec<Step>) {
    if seen.map_or(USUAL_MTU.into(), |seen| seen.mtu) != u32::from(mtu) {
        steps.push(Step::SetMtu { link: name.into(), mtu });
    }
}

fn bridge_steps(name: &str, bridge: &Bridge, found: Option<&LinkSeen>, steps: &mut Vec<Step>) {
    let link = || name.to_string();
    match found {
        None => {
            let judges_passing = bridge.judges_passing();
            steps.push(Step::AddBridge { link: link(), mac: bridge.mac, judges_passing });
        }
        Some(seen) if seen.mac != Some(bridge.mac) => {
            steps.push(Step::SetMac { link: link(), mac: bridge.mac });
        }
        Some(_) => {}
    }
    mtu_step(name, bridge.mtu, found, steps);
    let addresses = found.map(|seen| seen.addresses.as_slice()).unwrap_or_default();
    steps.extend(
        bridge
            .address
            .filter(|address| !addresses.contains(address))
            .map(|address| Step::AddAddress { link: link(), address }),
    );
    for other in addresses.iter().filter(|address| Some(**address) != bridge.address) {
        steps.push(Step::RemoveAddress { link: link(), address: *other });
    }
    if !found.is_some_and(|seen| seen.is_up) {
        steps.push(Step::SetUp { link: link() });
    }
    let nobody = BTreeMap::new();
    let known = found.map_or(&nobody, |seen| &seen.neighbours);
    for address in known.keys().filter(|address| !bridge.neighbours.contains_key(address)) {
        steps.push(Step::RemoveNeighbour { link: link(), address: *address });
    }
    for (address, mac) in &bridge.neighbours {
        if known.get(address) != Some(mac) {
            steps.push(Step::AddNeighbour { link: link(), address: *address, mac: *mac });
        }
    }
}
