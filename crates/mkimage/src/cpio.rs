// SPDX-License-Identifier: Apache-2.0
//! An initrd: a cpio archive as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst).

use crate::tree::{Node, Tree};

const S_DIRECTORY: u32 = 0o040_000;
const S_FILE: u32 = 0o100_000;
const S_LINK: u32 = 0o120_000;
const END: &str = "TRAILER!!!";

pub(crate) fn archive(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, (path, node)) in tree.nodes().enumerate() {
        let number = number as u32 + 1;
        match node {
            Node::Directory => entry(&mut out, path, number, S_DIRECTORY | 0o755, &[]),
            Node::File { content, is_executable } => {
                let mode = if *is_executable { 0o755 } else { 0o644 };
                entry(&mut out, path, number, S_FILE | mode, content);
            }
            Node::Link { to } => entry(&mut out, path, number, S_LINK | 0o777, to.as_bytes()),
        }
    }
    entry(&mut out, END, 0, 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, path: &str, number: u32, mode: u32, content: &[u8]) {
    let links = if mode & S_DIRECTORY == S_DIRECTORY { 2 } else { 1 };
    // number, mode, owner, group, links, time, bytes, device, device of a node, bytes of the name, sum
    let fields = [number, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_and_content_begins_at_a_multiple_of_four() {
        let mut tree = Tree::default();
        tree.file("etc/abc", *b"12345", false);
        let bytes = archive(&tree);
        let heads: Vec<usize> =
            bytes.windows(6).enumerate().filter(|(_, w)| *w == b"070701").map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 3);
        assert!(heads.iter().chain(&[bytes.len()]).all(|at| at.is_multiple_of(4)));
    }
}
