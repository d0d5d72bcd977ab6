// SPDX-License-Identifier: Apache-2.0
//! What must hold for any bytes: one function for each parser of foreign bytes, in groups.
//!
//! A group is one program of the fuzzer and one directory of `corpus/`, a parser one directory in it. The fuzzer's input
//! begins with a byte that chooses the parser (docs/decisions/0060); files of the corpus come without it. Every function
//! may only panic when a promise is broken. Never here: the parsers.
#![allow(clippy::missing_panics_doc)]
// the tests of a file that is shared with cli
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod boxes;
mod disk;
mod documents;
mod eve;
mod ipc_frames;
mod layers;
mod net;
mod registry;
mod run;
mod vault;

use std::path::PathBuf;

/// One parser.
#[derive(Clone, Copy, Debug)]
pub struct Parser {
    /// Directory of its corpus.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Parsers that one program attacks, in the order of their names.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub name: &'static str,
    pub parsers: &'static [Parser],
}

macro_rules! groups {
    ($($group:ident $text:literal: $($name:literal $run:path),* ;)*) => {
        $(pub const $group: Group =
            Group { name: $text, parsers: &[$(Parser { name: $name, run: $run }),*] };)*
        pub const ALL: &[Group] = &[$($group),*];
    };
}

groups! {
    BOX "box": "look" boxes::look, "names" boxes::names, "table" boxes::table, "tree" boxes::tree,
        "variables" boxes::variables;
    DISK "disk": "catalog" disk::catalog, "log-ring" disk::log_ring, "planner" disk::planner, "saved" disk::saved,
        "segments" disk::segments;
    DOCUMENTS "documents": "intent" documents::intent, "words" documents::words, "yaml" documents::yaml;
    EVE_CONFIG "eve-config": "config" eve::config, "report" eve::report;
    EVE_ENVELOPE "eve-envelope": "certs" eve::certs, "envelope" eve::envelope, "newlogs" eve::newlogs;
    IPC "ipc": "broker" ipc_frames::broker, "frame" ipc_frames::frame, "manifest" ipc_frames::manifest,
        "value" ipc_frames::value;
    NET "net": "challenge" net::challenge, "dhcp" net::dhcp, "dns" net::message;
    OCI_DOCUMENTS "oci-documents": "config" layers::config, "manifest" layers::manifest,
        "reference" layers::reference;
    OCI_LAYERS "oci-layers": "archive" layers::archive, "layer" layers::layer;
    REGISTRY "registry": "requests" registry::requests;
    RUN "run": "console" run::console, "user" run::user, "user-data" run::user_data;
    VAULT "vault": "config-dir" vault::config_dir, "quote" vault::quote, "sealed" vault::sealed,
        "trusted" vault::trusted;
}

impl Group {
    /// What the fuzzer calls: the first byte chooses.
    pub fn attack(&self, data: &[u8]) {
        let Some((choice, data)) = data.split_first() else { return };
        (self.parsers[usize::from(*choice) % self.parsers.len()].run)(data);
    }

    /// Where the corpus of a parser lies.
    pub fn corpus(&self, parser: &Parser) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name).join(parser.name)
    }
}

/// A fresh directory, in memory where the machine has such a place: files are synced here thousands of times.
fn place() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
        .expect("a temporary directory can be made")
}

/// Data cut at zero bytes.
fn parts(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split(|byte| *byte == 0)
}

/// Numbers from the front of the data; 0 when it is used up.
struct Numbers<'a>(&'a [u8]);

impl<'a> Numbers<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
