// SPDX-License-Identifier: Apache-2.0
//! Links of the node: the difference between what is intended and what was seen, as steps that leave nothing to choose.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use model::net::{Mac, Prefix4};

use super::Intent;

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
    pub addresses: Vec<Prefix4>,
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
    /// Makes it an isolated port.
    Join {
        link: String,
        bridge: String,
    },
    SetUp {
        link: String,
    },
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
            | Step::Join { link, .. }
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
    let is_wanted = |name: &String, link: &LinkSeen| match link.kind {
        LinkKind::Bridge => intent.bridges.contains_key(name),
        LinkKind::Veth => intent.vifs.contains_key(name),
        LinkKind::Other => false,
    };
    let ours = |kind| seen.iter().filter(move |(_, link)| link.is_ours && link.kind == kind);
    // Ports first: a bridge that goes would leave them without one.
    for (name, link) in ours(LinkKind::Veth).chain(ours(LinkKind::Bridge)) {
        if !is_wanted(name, link) {
            steps.push(Step::Delete { link: name.clone() });
        }
    }
    for (name, bridge) in &intent.bridges {
        let link = || name.clone();
        let found = seen.get(name).filter(|seen| seen.is_ours && seen.kind == LinkKind::Bridge);
        match found {
            None => steps.push(Step::AddBridge { link: link(), mac: bridge.mac }),
            Some(seen) if seen.mac != Some(bridge.mac) => {
                steps.push(Step::SetMac { link: link(), mac: bridge.mac });
            }
            Some(_) => {}
        }
        let addresses = found.map(|seen| seen.addresses.as_slice()).unwrap_or_default();
        if !addresses.contains(&bridge.address) {
            steps.push(Step::AddAddress { link: link(), address: bridge.address });
        }
        for other in addresses.iter().filter(|address| **address != bridge.address) {
            steps.push(Step::RemoveAddress { link: link(), address: *other });
        }
        if !found.is_some_and(|seen| seen.is_up) {
            steps.push(Step::SetUp { link: link() });
        }
    }
    for (name, vif) in &intent.vifs {
        let Some(seen) = seen.get(name).filter(|seen| seen.is_ours && seen.kind == LinkKind::Veth) else {
            continue;
        };
        if seen.bridge.as_ref() != Some(&vif.bridge) || !seen.is_isolated {
            steps.push(Step::Join { link: name.clone(), bridge: vif.bridge.clone() });
        }
        if !seen.is_up {
            steps.push(Step::SetUp { link: name.clone() });
        }
    }
    steps
}
