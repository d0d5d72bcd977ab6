// SPDX-License-Identifier: Apache-2.0
//! The process init: makes each process's cage from its manifest, starts it, hands out channels, starts the dead again.
//!
//! Reading order: [`wiring`] (who gets which channel, pure), [`spawn`] (the cage), [`supervise`] (the loop), [`heartbeat`]
//! (who does not go on, pure), [`adopt`] (the apps of an init that was killed). It parses nothing foreign: its inputs are
//! its own command line, manifests built in, frames of run and, where it is the first process of a box ([`boot`]), partition
//! tables. No threads.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adopt;
pub mod anchor;
pub mod args;
pub mod backoff;
pub mod boot;
pub mod cgroup;
pub mod disk;
pub mod facts;
pub mod heartbeat;
pub mod manifests;
pub mod spawn;
pub mod supervise;
pub mod wiring;
