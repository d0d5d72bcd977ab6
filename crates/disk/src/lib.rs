// SPDX-License-Identifier: Apache-2.0
//! What the builder of images and the node must agree on about a disk: the partition table ([`gpt`]), which partitions there
//! are ([`partitions`]), the hash tree over a root ([`verity`]), the names of boot entries ([`entry`]), where an update goes
//! ([`slots`]), what else a disk may carry ([`content`]), and what the firmware keeps of it ([`firmware`]).
//!
//! No file is opened here: bytes in, bytes out. What is read from a disk may be torn or hostile and never panics.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

extern crate alloc;

pub mod checked;
pub mod content;
pub mod entry;
pub mod firmware;
pub mod gpt;
pub mod partitions;
pub mod slots;
pub mod update;
pub mod verity;
