// SPDX-License-Identifier: Apache-2.0
//! What became of a request to the controller, as far as decisions go.

/// How an exchange with the controller ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T = ()> {
    /// A success status, and an answer that verified where one is verified.
    Good(T),
    /// Another HTTP status.
    Status(u16),
    /// No connection, cut short, or too late.
    NoAnswer,
    /// Signed by a certificate that is not the one known.
    CertMiss,
    /// An answer that breaks the rules: forged, damaged, malformed.
    Refused,
}

impl<T> Outcome<T> {
    /// The controller was there, whatever it said.
    pub fn is_contact(&self) -> bool {
        match self {
            Outcome::Good(_) | Outcome::Status(_) => true,
            Outcome::NoAnswer | Outcome::CertMiss | Outcome::Refused => false,
        }
    }

    pub fn is_good(&self) -> bool {
        matches!(self, Outcome::Good(_))
    }

    /// The same outcome without its content.
    pub fn bare(&self) -> Outcome {
        match self {
            Outcome::Good(_) => Outcome::Good(()),
            Outcome::Status(status) => Outcome::Status(*status),
            Outcome::NoAnswer => Outcome::NoAnswer,
            Outcome::CertMiss => Outcome::CertMiss,
            Outcome::Refused => Outcome::Refused,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Outcomes and times for the machines' tests.

    use super::Outcome;
    use model::time::{MonoMs, Now, Wall};
    use proptest::prelude::*;

    pub(crate) fn at(ms: u64) -> Now {
        Now { mono: MonoMs(ms), wall: Wall::Unset }
    }

    /// Any outcome but [`Outcome::Good`].
    pub(crate) fn bad<T: Clone + core::fmt::Debug + 'static>() -> impl Strategy<Value = Outcome<T>> {
        prop_oneof![
            prop::sample::select(alloc::vec![400, 401, 403, 404, 409, 422, 429, 500, 503, 302])
                .prop_map(Outcome::Status),
            Just(Outcome::NoAnswer),
            Just(Outcome::CertMiss),
            Just(Outcome::Refused),
        ]
    }
}
