// SPDX-License-Identifier: Apache-2.0
//! What executables and kernel modules say of what they need.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, SectionHeader as _};
use object::{LittleEndian, elf};

use crate::tree::{Node, Tree};

type Header = FileHeader64<LittleEndian>;

/// Fields of `.modinfo` in their order: `alias`, `depends`, `softdep` and others.
pub(crate) fn modinfo(module: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let header = Header::parse(module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    let (_, section) = sections.section_by_name(endian, b".modinfo").context("it has no section .modinfo")?;
    let fields = section.data(endian, module)?.split(|byte| *byte == 0);
    let fields = fields.filter_map(|field| {
        let (name, value) = std::str::from_utf8(field).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Ok(fields.collect())
}

/// Libraries that a program or library names.
fn needed(file: &[u8]) -> anyhow::Result<Vec<String>> {
    let header = Header::parse(file)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let Some((dynamic, link)) = sections.dynamic(endian, file)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, file, link)?;
    let mut names = Vec::new();
    for entry in dynamic.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
        let name = entry.string(endian, strings)?;
        names.push(String::from_utf8_lossy(name).into_owned());
    }
    Ok(names)
}

/// Every library that something in the tree needs and nothing in it is: a line each.
pub(crate) fn missing_libraries(tree: &Tree) -> Vec<String> {
    let names: BTreeSet<&str> = tree.nodes().filter_map(|(path, _)| path.rsplit('/').next()).collect();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    for (path, node) in tree.nodes() {
        let Node::File { content, .. } = node else { continue };
        if !content.starts_with(&elf::ELFMAG) || path.ends_with(".ko") {
            continue;
        }
        for library in needed(content).unwrap_or_default() {
            if !names.contains(library.as_str()) {
                missing.entry(library).or_insert_with(|| path.to_owned());
            }
        }
    }
    missing.into_iter().map(|(library, path)| format!("{library}, which {path} needs")).collect()
}
