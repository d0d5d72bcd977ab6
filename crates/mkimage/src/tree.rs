// SPDX-License-Identifier: Apache-2.0
//! A tree of files in memory: what goes into a root or an initrd. Everything belongs to root; times are those of the image.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Directory,
    File { content: Arc<[u8]>, is_executable: bool },
    Link { to: String },
}

/// By path without a slash at the front; every parent directory is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    pub(crate) fn directory(&mut self, path: &str) {
        let path = path.trim_end_matches('/');
        self.parents(path);
        self.nodes.entry(path.to_owned()).or_insert(Node::Directory);
    }

    pub(crate) fn file(&mut self, path: &str, content: impl Into<Arc<[u8]>>, is_executable: bool) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::File { content: content.into(), is_executable });
    }

    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), Node::Link { to: to.to_owned() });
    }

    pub(crate) fn insert(&mut self, path: &str, node: Node) {
        self.parents(path);
        self.nodes.insert(path.to_owned(), node);
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(crate) fn content(&self, path: &str) -> anyhow::Result<Arc<[u8]>> {
        match self.get(path) {
            Some(Node::File { content, .. }) => Ok(content.clone()),
            Some(_) => bail!("{path} is no file"),
            None => bail!("there is no {path}"),
        }
    }

    /// What is below a directory, given with a slash at the end, or the one path.
    pub(crate) fn matching<'t>(&'t self, wanted: &'t str) -> impl Iterator<Item = (&'t str, &'t Node)> {
        let is_wanted = move |path: &str| match wanted.ends_with('/') {
            true => path.starts_with(wanted),
            false => path == wanted,
        };
        self.nodes().filter(move |(path, _)| is_wanted(path))
    }

    /// As a tar archive, for programs that read one.
    pub(crate) fn to_tar(&self, time: i64) -> anyhow::Result<Vec<u8>> {
        let mut out = tar::Builder::new(Vec::new());
        let root = [("", &Node::Directory)];
        for (path, node) in root.into_iter().chain(self.nodes()) {
            let mut header = tar::Header::new_ustar();
            header.set_mtime(time.try_into().context("time before 1970")?);
            header.set_uid(0);
            header.set_gid(0);
            let name = if path.is_empty() { "./".to_owned() } else { format!("./{path}") };
            match node {
                Node::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(0o755);
                    header.set_size(0);
                    out.append_data(&mut header, &name, std::io::empty())?;
                }
                Node::File { content, is_executable } => {
                    header.set_entry_type(tar::EntryType::Regular);
                    header.set_mode(if *is_executable { 0o755 } else { 0o644 });
                    header.set_size(content.len() as u64);
                    out.append_data(&mut header, &name, content.as_ref())?;
                }
                Node::Link { to } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    out.append_link(&mut header, &name, to)?;
                }
            }
        }
        Ok(out.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_there_and_order_is_that_of_names() {
        let mut tree = Tree::default();
        tree.file("usr/bin/b", *b"b", true);
        tree.link("usr/bin/a", "b");
        tree.directory("proc/");
        let paths: Vec<_> = tree.nodes().map(|(path, _)| path).collect();
        assert_eq!(paths, ["proc", "usr", "usr/bin", "usr/bin/a", "usr/bin/b"]);
        assert_eq!(tree.matching("usr/bin/").count(), 2);
        assert_eq!(tree.to_tar(7).unwrap(), tree.clone().to_tar(7).unwrap());
    }
}
