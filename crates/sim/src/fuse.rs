// SPDX-License-Identifier: Apache-2.0
//! The end of a process or of the whole box between two effects.
//!
//! Everything a process does outside (a write, a published frame, a request, an order to a shim) asks the fuse first. An
//! armed fuse lets so many effects through and then none: what the process goes on to do in this turn does not happen.
//! The world then cuts the power, or ends the process.

use std::cell::Cell;

use crate::node::Name;

/// What a fuse ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    Power,
    Process(Name),
}

#[derive(Debug, Default)]
pub struct Fuse {
    armed: Cell<Option<(Blow, u32)>>,
    blown: Cell<Option<Blow>>,
}

impl Fuse {
    /// Lets `effects` more through, counted over the process or the whole box.
    pub fn arm(&self, blow: Blow, effects: u32) {
        self.armed.set(Some((blow, effects)));
    }

    pub fn disarm(&self) {
        self.armed.set(None);
    }

    /// Whether an effect of this process still happens.
    pub fn effect(&self, of: Name) -> bool {
        let strikes = |blow: Blow| blow == Blow::Power || blow == Blow::Process(of);
        if self.blown.get().is_some_and(strikes) {
            return false;
        }
        match self.armed.get() {
            Some((blow, 0)) if strikes(blow) => {
                self.armed.set(None);
                self.blown.set(Some(blow));
                false
            }
            Some((blow, left)) if strikes(blow) => {
                self.armed.set(Some((blow, left - 1)));
                true
            }
            _ => true,
        }
    }

    /// What has ended, once.
    pub fn take_blown(&self) -> Option<Blow> {
        self.blown.take()
    }
}
