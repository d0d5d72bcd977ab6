// SPDX-License-Identifier: Apache-2.0
//! The manifests this init enforces: built in, so that nobody can change them on the disk; tests bring their own.

use std::path::{Path, PathBuf};

use ipc::manifest::{Instances, Manifest, ManifestError, check_set};

/// In the order of their start: bus and log first, so that nothing said early is lost.
const BUILT_IN: &[&str] = &[
    include_str!("../../../services/bus.toml"),
    include_str!("../../../services/log.toml"),
    include_str!("../../../services/vault.toml"),
    include_str!("../../../services/net.toml"),
    include_str!("../../../services/planner.toml"),
    include_str!("../../../services/store.toml"),
    include_str!("../../../services/fetch.toml"),
    include_str!("../../../services/run.toml"),
    include_str!("../../../services/agent.toml"),
    include_str!("../../../services/shim.toml"),
];

/// Why there are no manifests.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("bad manifest")]
    Manifest(#[from] ManifestError),
    #[error("there is no manifest of {0}")]
    Unknown(String),
}

/// The manifests of the services asked for, templates always.
pub fn load(dir: Option<&Path>, only: Option<&[String]>) -> Result<Vec<Manifest>, LoadError> {
    let all = match dir {
        None => BUILT_IN.iter().map(|text| Manifest::parse(text)).collect::<Result<Vec<_>, _>>()?,
        Some(dir) => read(dir)?,
    };
    check_set(&all)?;
    let Some(only) = only else { return Ok(all) };
    if let Some(name) = only.iter().find(|name| !all.iter().any(|m| m.name == **name)) {
        return Err(LoadError::Unknown(name.clone()));
    }
    let wanted = |m: &Manifest| m.instances == Instances::PerApp || only.contains(&m.name);
    Ok(all.into_iter().filter(wanted).collect())
}

fn read(dir: &Path) -> Result<Vec<Manifest>, LoadError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| LoadError::Read { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|ext| ext == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
        all.push(Manifest::parse(&text)?);
    }
    // Bus and log first, as in the built-in order.
    all.sort_by_key(|m| match m.name.as_str() {
        "bus" => 0,
        "log" => 1,
        _ => 2,
    });
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_manifests_are_those_of_the_directory() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        let mut own = load(None, None).unwrap();
        let mut there = load(Some(&dir), None).unwrap();
        own.sort_by(|a, b| a.name.cmp(&b.name));
        there.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(own, there);
    }

    #[test]
    fn only_some_services_may_be_asked_for() {
        let some = load(None, Some(&["log".into()])).unwrap();
        let names: Vec<_> = some.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["log", "shim"]);
        assert!(matches!(load(None, Some(&["x".into()])), Err(LoadError::Unknown(_))));
    }
}
