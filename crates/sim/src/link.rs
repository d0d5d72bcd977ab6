// SPDX-License-Identifier: Apache-2.0
//! The way between a node and its controller, and until when what around the node fails.

use node_agent::agent::ask::HttpReply;
use reconcile::Chance;

use crate::scenario::Fault;

/// As the agent's HTTP client has them.
const DIAL_TIMEOUT_MS: u64 = 10_000;
pub(crate) const SEND_TIMEOUT_MS: u64 = 120_000;
/// Two questions of 5 s to each of two servers, as a resolver has them.
const NAMES_TIMEOUT_MS: u64 = 20_000;
/// Usual time of one way.
const WAY_MS: (u64, u64) = (4, 90);

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Way {
    Lost {
        after_ms: u64,
    },
    /// Somebody else answers.
    Forged {
        after_ms: u64,
        reply: HttpReply,
    },
    There {
        after_ms: u64,
        is_answer_lost: bool,
    },
}

/// One node's surroundings. Every `…_until` is a moment of the world; in the past: all is well.
#[derive(Debug, Default)]
pub(crate) struct Link {
    down_until: u64,
    lossy: (u8, u64),
    slow: (u32, u64),
    broken_tls_until: u64,
    names_gone_until: u64,
    pub(crate) registry_down_until: u64,
    pub(crate) lease_lost_until: u64,
    pub(crate) lease_number: u8,
    pub(crate) vault_down_until: u64,
    pub(crate) kernel_fails_until: u64,
    pub(crate) spawn_fails_until: u64,
    pub(crate) disk_full_until: u64,
    pub(crate) clock_wrong_until: u64,
}

impl Link {
    /// Takes in a fault of the surroundings; how long it lasts, if it is one.
    pub(crate) fn begin(&mut self, t: u64, fault: Fault) -> Option<u64> {
        let (until, for_ms) = match fault {
            Fault::LinkDown { for_ms } => (&mut self.down_until, for_ms),
            Fault::NamesGone { for_ms } => (&mut self.names_gone_until, for_ms),
            Fault::BrokenTls { for_ms } => (&mut self.broken_tls_until, for_ms),
            Fault::RegistryDown { for_ms } => (&mut self.registry_down_until, for_ms),
            Fault::LeaseLost { for_ms } => (&mut self.lease_lost_until, for_ms),
            Fault::VaultDown { for_ms } => (&mut self.vault_down_until, for_ms),
            Fault::KernelFails { for_ms } => (&mut self.kernel_fails_until, for_ms),
            Fault::SpawnFails { for_ms } => (&mut self.spawn_fails_until, for_ms),
            Fault::DiskFull { for_ms } => (&mut self.disk_full_until, for_ms),
            Fault::LinkLossy { percent, for_ms } => {
                self.lossy.0 = percent;
                (&mut self.lossy.1, for_ms)
            }
            Fault::LinkSlow { delay_ms, for_ms } => {
                self.slow.0 = delay_ms;
                (&mut self.slow.1, for_ms)
            }
            Fault::LeaseChanged => {
                self.lease_number = (self.lease_number + 10) % 100;
                return Some(1);
            }
            _ => return None,
        };
        *until = (*until).max(t + for_ms);
        Some(for_ms)
    }

    pub(crate) fn is_down(&self, t: u64) -> bool {
        t < self.down_until
    }

    pub(crate) fn has_names(&self, t: u64) -> bool {
        t >= self.names_gone_until
    }

    /// A request sets out.
    pub(crate) fn way(&self, t: u64, is_reachable: bool, is_answer_signed: bool, chance: &mut Chance) -> Way {
        if self.is_down(t) || !is_reachable {
            return Way::Lost { after_ms: chance.between(50, DIAL_TIMEOUT_MS) };
        }
        if !self.has_names(t) {
            // Refused at once, or each server asked in turn.
            return Way::Lost { after_ms: chance.between(5, NAMES_TIMEOUT_MS) };
        }
        let after_ms = self.one_way_ms(t, chance);
        if t < self.broken_tls_until {
            return match chance.between(0, 5) {
                // The answer to a report is a bare status: who can say "created" for the controller is believed.
                0 if is_answer_signed => {
                    Way::Forged { after_ms, reply: forged(200, b"<html>Welcome, please log in</html>") }
                }
                0 => Way::Forged { after_ms, reply: forged(502, b"") },
                1 => Way::Forged { after_ms, reply: forged(302, b"") },
                2 => Way::Forged { after_ms, reply: forged(407, b"") },
                // The handshake fails.
                _ => Way::Lost { after_ms },
            };
        }
        let loses = |chance: &mut Chance| t < self.lossy.1 && chance.between(0, 99) < u64::from(self.lossy.0);
        if loses(chance) {
            return Way::Lost { after_ms: chance.between(DIAL_TIMEOUT_MS, SEND_TIMEOUT_MS) };
        }
        Way::There { after_ms, is_answer_lost: loses(chance) }
    }

    /// An answer sets out; `None` when it does not come.
    pub(crate) fn way_back(&self, t: u64, is_lost: bool, chance: &mut Chance) -> Option<u64> {
        (!is_lost && !self.is_down(t)).then(|| self.one_way_ms(t, chance))
    }

    fn one_way_ms(&self, t: u64, chance: &mut Chance) -> u64 {
        let slow_ms = if t < self.slow.1 { chance.between(0, u64::from(self.slow.0)) } else { 0 };
        chance.between(WAY_MS.0, WAY_MS.1) + slow_ms
    }
}

fn forged(status: u16, body: &[u8]) -> HttpReply {
    HttpReply { status, untrusted_body: body.to_vec() }
}
