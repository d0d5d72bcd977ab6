// SPDX-License-Identifier: Apache-2.0
//! An error of this side that knows what to do about it.

use std::fmt;

/// What failed, and the next step.
#[derive(Debug)]
pub(crate) struct Advice {
    what: String,
    pub(crate) next: String,
    source: Option<anyhow::Error>,
}

impl Advice {
    pub(crate) fn new(what: impl Into<String>, next: impl Into<String>) -> Advice {
        Advice { what: what.into(), next: next.into(), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<anyhow::Error>) -> Advice {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Advice {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| &**error as &(dyn std::error::Error + 'static))
    }
}
