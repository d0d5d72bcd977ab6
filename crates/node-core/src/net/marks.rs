// SPDX-License-Identifier: Apache-2.0
//! Numbers of access rules in the marks of flows.
//!
//! A flow's mark holds the rule that let its packets out of an app in one half and the rule that let them into an app in
//! the other; 0 is no rule. A number depends on what its rule says and on the rules before it that forbid, and not on
//! the rule's id or place: a change of one rule leaves the flows of others alone, and a rule that is taken away, or that
//! a new prohibition now stands before, takes its number with it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Write;

use model::config::{AclAction, AclRule};
use model::desired::VifDesired;
use model::reason::{Fault, Reason};

use super::rules::{Half, fnv64};

/// Rules of one direction on one node: far from all numbers there are, so that two rarely want the same one.
pub const MAX_RULES_OF_NODE: usize = 16_384;

/// The rule behind a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// Node's end of the interface.
    pub link: String,
    pub id: i32,
}

/// All numbers that are given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub rules: BTreeMap<(Half, u16), RuleRef>,
    /// By what a number was made of, so that rules that say the same share one.
    by_text: BTreeMap<(Half, String), u16>,
    /// Prohibitions of an interface so far.
    before: BTreeMap<(Half, String), String>,
}

impl Numbers {
    /// Number of the next rule of an interface in this direction.
    pub(super) fn next(&mut self, half: Half, vif: &VifDesired, rule: &AclRule) -> Result<u16, Fault> {
        let link = &vif.host_name;
        let before = self.before.entry((half, link.clone())).or_default();
        let says = format!("{:?} {:?}", rule.matches, rule.action);
        let text = format!("{link} {before}{says}");
        if rule.action == AclAction::Drop {
            let _ = write!(before, "{says} ");
            return Ok(0);
        }
        if let Some(number) = self.by_text.get(&(half, text.clone())) {
            return Ok(*number);
        }
        if self.by_text.keys().filter(|(other, _)| *other == half).count() >= MAX_RULES_OF_NODE {
            let text =
                format!("{link} has more access rules than the {MAX_RULES_OF_NODE} a node has room for");
            return Err(Fault::new(Reason::InvalidConfig, text));
        }
        let wish = fnv64(&text).to_be_bytes();
        let mut number = u16::from_be_bytes([wish[0] ^ wish[2] ^ wish[4], wish[1] ^ wish[3] ^ wish[7]]);
        while number == 0 || self.rules.contains_key(&(half, number)) {
            number = number.wrapping_add(1);
        }
        self.by_text.insert((half, text), number);
        self.rules.insert((half, number), RuleRef { link: link.to_string(), id: rule.id });
        Ok(number)
    }

    /// Takes back the numbers of an interface that is not set up after all.
    pub(super) fn forget(&mut self, link: &str) {
        let gone: BTreeSet<(Half, u16)> =
            self.rules.iter().filter(|(_, rule)| rule.link == link).map(|(key, _)| *key).collect();
        self.rules.retain(|key, _| !gone.contains(key));
        self.by_text.retain(|(half, _), number| !gone.contains(&(*half, *number)));
        self.before.retain(|(_, other), _| other != link);
    }

    /// Numbers that let answers pass, in this half.
    pub(super) fn standing(&self, half: Half) -> BTreeSet<u16> {
        let all = self.rules.keys().filter(|(other, _)| *other == half).map(|(_, number)| *number);
        core::iter::once(0).chain(all).collect()
    }

    /// The rules behind a flow's mark: what let it out, what let it in.
    pub fn of_mark(&self, mark: u32) -> (Option<&RuleRef>, Option<&RuleRef>) {
        let [high, low] = [(mark >> 16) as u16, mark as u16];
        (self.rules.get(&(Half::Out, low)), self.rules.get(&(Half::In, high)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::net::Ipv4Addr;

    use model::config::{AclDirection, AclMatch, AclProtocol};
    use model::id::NetworkInstanceId;
    use model::net::Mac;
    use uuid::Uuid;

    fn rule(id: i32, protocol: u8, action: AclAction) -> AclRule {
        let matches = AclMatch { protocol: Some(AclProtocol::Number(protocol)), ..AclMatch::default() };
        AclRule { id, direction: AclDirection::Both, matches, action }
    }

    /// Numbers the rules of an interface get, and all that stand.
    fn numbers(link: &str, rules: &[AclRule]) -> (Vec<u16>, Numbers) {
        let vif = VifDesired {
            name: "eth0".to_string(),
            network: NetworkInstanceId(Uuid::nil()),
            host_name: link.to_string(),
            mac: Mac([2; 6]),
            address: Some(Ipv4Addr::LOCALHOST),
            acl: rules.to_vec(),
        };
        let mut all = Numbers::default();
        let given = rules.iter().map(|rule| all.next(Half::Out, &vif, rule).unwrap()).collect();
        (given, all)
    }

    #[test]
    fn a_change_of_one_rule_leaves_the_numbers_of_others_alone() {
        let (allow, deny) = (AclAction::Allow, AclAction::Drop);
        let (first, standing) = numbers("a", &[rule(1, 6, allow), rule(2, 17, allow)]);
        assert_eq!(standing.standing(Half::Out).len(), 3, "two and none");
        // Another id, another place, another rule beside it.
        assert_eq!(numbers("a", &[rule(7, 17, allow), rule(9, 6, allow)]).0, [first[1], first[0]]);
        assert_eq!(numbers("a", &[rule(1, 50, allow), rule(2, 6, allow)]).0[1], first[0]);
        // A prohibition behind it changes nothing, one before it ends what it had let pass.
        assert_eq!(numbers("a", &[rule(1, 6, allow), rule(2, 17, deny)]).0, [first[0], 0]);
        let (after, standing) = numbers("a", &[rule(1, 50, deny), rule(2, 6, allow)]);
        assert!(after[1] != first[0] && !standing.standing(Half::Out).contains(&first[0]));
        // The same words of another interface are another rule.
        assert_ne!(numbers("b", &[rule(1, 6, allow)]).0[0], first[0]);
    }

    #[test]
    fn rules_that_want_the_same_number_get_different_ones() {
        let rules: Vec<AclRule> = (0..=255).map(|n| rule(i32::from(n), n, AclAction::Allow)).collect();
        let mut all = Numbers::default();
        for link in 0..40 {
            let vif = VifDesired {
                name: "eth0".to_string(),
                network: NetworkInstanceId(Uuid::nil()),
                host_name: format!("nbu1x{link}"),
                mac: Mac([2; 6]),
                address: None,
                acl: Vec::new(),
            };
            for rule in &rules {
                let number = all.next(Half::In, &vif, rule).unwrap();
                let found = all.of_mark(Half::In.place(number)).1.unwrap();
                assert_eq!((&found.link, found.id), (&vif.host_name, rule.id));
            }
            if link == 7 {
                all.forget("nbu1x7");
            }
        }
        assert_eq!(all.rules.len(), 39 * 256);
        assert!(all.rules.values().all(|rule| rule.link != "nbu1x7"));
    }
}
