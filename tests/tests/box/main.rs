// SPDX-License-Identifier: Apache-2.0
//! The node as the operating system of a box, under QEMU with UEFI and an emulated TPM.
#![allow(clippy::unwrap_used)]

mod boot;
mod build;
mod cuts;
mod install;
mod power;
mod secure_boot;
mod slots;
mod tampered;

use tests::lab::Place;

/// An empty laboratory.
fn place(name: &str) -> Place {
    let place = Place::new(name, 60).unwrap();
    place.clear().unwrap();
    place
}
