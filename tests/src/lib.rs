// SPDX-License-Identifier: Apache-2.0
//! Whole-system tests and what they share with the demo: a laboratory of one controller and one hosted node.
//!
//! Everything a laboratory starts, it stops; everything it makes on the host (a network namespace, one veth pair,
//! control groups) it takes away again. Steps that need root call sudo themselves.

pub mod command;
pub mod confinement;
pub mod debian;
pub mod fileserver;
pub mod guest;
pub mod hostile;
pub mod http;
pub mod image;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod operator;
pub mod packages;
pub mod probe;
pub mod progress;
pub mod referee;
pub mod registry;
pub mod replay;
pub mod tls;
pub mod toolbox;
pub mod truth;
