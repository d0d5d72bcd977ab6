// SPDX-License-Identifier: Apache-2.0
//! Attestation: which quote is good enough, and which integrity token still counts.
//!
//! ```text
//! nonce asked → nonce out (once) → quote → verdict → token ─┬→ current
//!                                    └ nonce is used up     └→ the one before counts until the next poll
//! ```
//! A node that has shown a TPM cannot go back to the empty quote: an endorsement certificate or one good quote settles
//! that for ever. A certificate of the quote key alone is no sign of a TPM; EVE without one publishes it too.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::resource::Attestation;

/// How long the token before the current one counts: one poll of stock EVE and the longest held answer.
pub const PREVIOUS_TOKEN_MS: i64 = 120_000;
/// How long a nonce waits for its quote.
pub const NONCE_MS: i64 = 600_000;

/// What is remembered of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttestRecord {
    /// A good quote was accepted once.
    pub has_quoted: bool,
    /// SHA-256 of the token, in hex.
    pub token: Option<String>,
    pub previous: Option<String>,
    /// The previous token counts until then.
    pub previous_until_ms: i64,
    /// The current token came with a verified quote.
    pub is_proven: bool,
    /// Last verdict in words, for the operator.
    pub message: String,
    pub at_ms: i64,
}

/// What came with a quote request, after the signature and the structure were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Neither data nor signature nor PCRs.
    Empty,
    /// The quote key's certificate is not known.
    NoCertificate,
    Good,
    WrongNonce,
    /// Anything else wrong.
    Bad,
}

/// What is known of the node's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// It published an endorsement certificate.
    pub has_endorsement: bool,
    /// It gave a good quote before.
    pub has_quoted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept {
        /// By a quote; false: passed without.
        is_proven: bool,
    },
    NonceMismatch,
    NoCertificate,
    Failed(&'static str),
}

/// Judges a quote.
pub fn judge(policy: Attestation, known: Known, evidence: Evidence) -> Verdict {
    match evidence {
        Evidence::Good if policy == Attestation::Required && !known.has_endorsement => {
            Verdict::Failed("the policy asks for a TPM, but no endorsement certificate was published")
        }
        Evidence::Good => Verdict::Accept { is_proven: true },
        Evidence::WrongNonce => Verdict::NonceMismatch,
        Evidence::NoCertificate => Verdict::NoCertificate,
        Evidence::Bad => Verdict::Failed("the quote does not stand"),
        Evidence::Empty if policy == Attestation::Required => {
            Verdict::Failed("the policy asks for a TPM, but the quote is empty")
        }
        Evidence::Empty if known.has_endorsement || known.has_quoted => {
            Verdict::Failed("a device with a TPM sent an empty quote")
        }
        Evidence::Empty => Verdict::Accept { is_proven: false },
    }
}

impl AttestRecord {
    /// Enters a verdict. `token`: digest of a fresh token, used when the verdict accepts.
    pub fn enter(&mut self, verdict: Verdict, token: String, now_ms: i64) {
        self.at_ms = now_ms;
        self.message = match verdict {
            Verdict::Accept { is_proven } => {
                self.previous = self.token.replace(token);
                self.previous_until_ms = now_ms + PREVIOUS_TOKEN_MS;
                self.is_proven = is_proven;
                self.has_quoted |= is_proven;
                if is_proven { "quote verified" } else { "not attested: no TPM" }.into()
            }
            Verdict::NonceMismatch => "quote over another nonce".into(),
            Verdict::NoCertificate => "no certificate of the quote key".into(),
            Verdict::Failed(why) => why.into(),
        };
    }

    /// Whether a token, given by its digest, counts now.
    pub fn accepts(&self, token: &str, now_ms: i64) -> bool {
        self.token.as_deref() == Some(token)
            || (self.previous.as_deref() == Some(token) && now_ms < self.previous_until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_tpm_forbids_the_empty_quote() {
        let know = |has_endorsement, has_quoted| Known { has_endorsement, has_quoted };
        let empty = |policy, known| judge(policy, known, Evidence::Empty);
        let pass = Verdict::Accept { is_proven: false };
        assert_eq!(empty(Attestation::Software, know(false, false)), pass);
        for known in [know(true, false), know(false, true)] {
            assert!(matches!(empty(Attestation::Software, known), Verdict::Failed(_)));
            assert!(matches!(empty(Attestation::None, known), Verdict::Failed(_)));
        }
        assert!(matches!(empty(Attestation::Required, know(false, false)), Verdict::Failed(_)));
        assert!(matches!(
            judge(Attestation::Required, know(false, false), Evidence::Good),
            Verdict::Failed(_)
        ));
        assert_eq!(
            judge(Attestation::Required, know(true, false), Evidence::Good),
            Verdict::Accept { is_proven: true }
        );
    }

    #[test]
    fn the_token_before_counts_for_one_poll() {
        let mut record = AttestRecord::default();
        assert!(!record.accepts("", 0));
        record.enter(Verdict::Accept { is_proven: true }, "a".into(), 1000);
        record.enter(Verdict::Accept { is_proven: true }, "b".into(), 2000);
        assert!(record.accepts("b", 10_000_000));
        assert!(record.accepts("a", 2000 + PREVIOUS_TOKEN_MS - 1));
        assert!(!record.accepts("a", 2000 + PREVIOUS_TOKEN_MS));
        record.enter(Verdict::Failed("x"), "c".into(), 3000);
        assert!(record.accepts("b", 3000) && !record.accepts("c", 3000));
    }
}
