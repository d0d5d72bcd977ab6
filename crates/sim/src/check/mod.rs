// SPDX-License-Identifier: Apache-2.0
//! What must hold in every world, at every moment. Checkers stand outside the cores: they see what a process did, and
//! never what it meant. For each there is a fault in `tests/planted.rs` that it catches.

mod apps;
mod config;
mod converged;
mod info;
mod limits;
mod volumes;

use crate::Fact;
use crate::world::World;

/// One promise.
pub trait Checker {
    fn name(&self) -> &'static str;
    /// Sees a fact of a node; says what is wrong.
    fn see(&mut self, world: &World, node: usize, fact: &Fact) -> Result<(), String>;
}

/// All of them.
pub fn all() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(apps::KeepRunning::default()),
        Box::new(apps::StatusIsTrue),
        Box::new(config::NeverBack::default()),
        Box::new(config::NoSecret),
        Box::new(config::Acknowledged::default()),
        Box::new(limits::OneWriter),
        Box::new(limits::UnderLimits),
        Box::new(volumes::InUse),
        Box::new(info::OnceInOrder::default()),
        Box::new(converged::Converged),
    ]
}
