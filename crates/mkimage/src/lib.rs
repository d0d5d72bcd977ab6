// SPDX-License-Identifier: Apache-2.0
//! A recipe becomes a bootable image.
//!
//! ```text
//! recipe ─ lock ─▶ packages by hash ─ unpack ─▶ tree ─▶ erofs ─▶ hash tree ─▶ root hash
//!                                       │                                        │
//!                                       └─ kernel, modules, init ─▶ initrd ─▶ UKI ◀┘ ─▶ ESP ─▶ disk
//! ```
//! No root, no mounts, no loop devices, no script of a package ever runs. The same recipe, lock and programs give the same
//! bytes, whenever and wherever: every time is the lock's, every id comes from content, tools are pinned like packages.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
pub mod artifact;
pub mod build;
pub mod bundle;
mod cpio;
mod deb;
mod elf;
mod fat;
mod fetch;
mod iso;
pub mod lock;
mod medium;
mod modules;
mod pcr;
mod pe;
pub mod recipe;
mod release;
mod root;
pub mod run;
mod sbom;
mod tools;
mod tree;
pub mod update;

/// One line of progress for the one who waits.
pub(crate) fn step(what: std::fmt::Arguments<'_>) {
    eprintln!("  {what}");
}
