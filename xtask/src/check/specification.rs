// SPDX-License-Identifier: Apache-2.0
//! SPECIFICATION.md names for every promise the test or the measurement that holds it: the names must exist.

use std::fs;

use ::tests::command;
use anyhow::Context as _;

const FILE: &str = "SPECIFICATION.md";
/// Fewer promises than this: the file was cut, or its form is not the one that is read here.
const PROMISES_MIN: usize = 10;

pub(super) fn check(problems: &mut Vec<String>) -> anyhow::Result<()> {
    let root = crate::workspace()?;
    let text = fs::read_to_string(root.join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
    let listed = command::run(crate::git()?.args(["ls-files", "*.rs"]))?;
    let (mut tests, mut bench) = (String::new(), String::new());
    for name in listed.lines() {
        let Ok(source) = fs::read_to_string(root.join(name)) else { continue };
        let room = if name.starts_with("xtask/src/bench/") { &mut bench } else { &mut tests };
        room.push_str(&source);
    }
    let promises = promises(&text);
    if promises.len() < PROMISES_MIN {
        problems.push(format!("{FILE}: only {} promises are read", promises.len()));
    }
    for (line, holders) in promises {
        if holders.is_empty() {
            problems.push(format!("{FILE}:{line}: no test `NAME` and no bench `NAME` holds this promise"));
        }
        for (kind, name) in holders {
            let is_there = match kind {
                Kind::Test => tests.contains(&format!("fn {name}(")),
                Kind::Bench => bench.contains(&format!("\"{name}\"")),
            };
            if !is_there {
                problems.push(format!("{FILE}:{line}: there is no {kind:?} named {name}"));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Test,
    Bench,
}

/// Line number and holders of every row of the tables that is no head.
fn promises(text: &str) -> Vec<(usize, Vec<(Kind, &str)>)> {
    let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    rows.filter_map(|(index, line)| {
        let last = line.trim_end().trim_end_matches('|').rsplit('|').next()?.trim();
        let is_head = last == "held by" || last.starts_with("---");
        (!is_head).then(|| (index + 1, holders(last)))
    })
    .collect()
}

fn holders(cell: &str) -> Vec<(Kind, &str)> {
    let mut found = Vec::new();
    for (word, kind) in [("test `", Kind::Test), ("bench `", Kind::Bench)] {
        for (at, _) in cell.match_indices(word) {
            let rest = &cell[at + word.len()..];
            found.extend(rest.split_once('`').map(|(name, _)| (kind, name)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_their_holders() {
        let text = "| promise | bound | held by |\n|---|---|---|\n| a | 1 | bench `x`, test `y` |\n| b | 2 | hope |\n";
        assert_eq!(promises(text), [(3, vec![(Kind::Test, "y"), (Kind::Bench, "x")]), (4, vec![])]);
    }
}
