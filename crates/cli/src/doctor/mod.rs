// SPDX-License-Identifier: Apache-2.0
//! `doctor`: looks at everything a controller or a node's host needs, says what is wrong and what to do about it.
//!
//! A check tells the truth it saw, not what ought to be. What it cannot look at is left out rather than guessed. Exit
//! code 0: nothing is wrong, though something may be odd; 1: something is.

mod host;
mod node;
mod operator;
mod tls;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::args::{Connection, Format};
use crate::output::{print_json, print_yaml, put};
use crate::{DONE, FAILED};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Look at this machine as a node's host instead of at the controller
    #[arg(long)]
    node: bool,
    /// Of a node: its config directory, to try the way to its controller
    #[arg(long, value_name = "DIR", requires = "node")]
    config: Option<PathBuf>,
    /// Of a node: what it keeps
    #[arg(long, value_name = "DIR", requires = "node")]
    persist: Option<PathBuf>,
    /// Of a node: its directory of mount points
    #[arg(long, value_name = "DIR", requires = "node")]
    run: Option<PathBuf>,
    /// Form of the output; name shows what is not right only
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, but look at it.
    Odd,
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Good => "ok",
            Verdict::Odd => "odd",
            Verdict::Bad => "bad",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    topic: &'static str,
    verdict: Verdict,
    what: String,
    next: String,
}

/// What was found so far, in the order it was looked at.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, topic: &'static str, what: impl Into<String>) {
        self.0.push(Finding { topic, verdict: Verdict::Good, what: what.into(), next: String::new() });
    }

    fn odd(&mut self, topic: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.0.push(Finding { topic, verdict: Verdict::Odd, what: what.into(), next: next.into() });
    }

    fn bad(&mut self, topic: &'static str, what: impl Into<String>, next: impl Into<String>) {
        self.0.push(Finding { topic, verdict: Verdict::Bad, what: what.into(), next: next.into() });
    }
}

pub(crate) fn doctor(connection: &Connection, args: &DoctorArgs) -> anyhow::Result<u8> {
    let mut findings = Findings::default();
    if args.node {
        let places = node::Places {
            config: args.config.as_deref(),
            persist: args.persist.as_deref(),
            run: args.run.as_deref(),
        };
        node::look(places, &mut findings);
    } else {
        operator::look(connection, &mut findings);
    }
    let Findings(all) = findings;
    match args.output {
        Format::Json => print_json(&document(&all))?,
        Format::Yaml => print_yaml(&document(&all))?,
        Format::Name => put(&text(all.iter().filter(|finding| finding.verdict != Verdict::Good)))?,
        Format::Table | Format::Wide => put(&format!("{}{}", text(all.iter()), summary(&all)))?,
    }
    Ok(if all.iter().any(|finding| finding.verdict == Verdict::Bad) { FAILED } else { DONE })
}

fn document(all: &[Finding]) -> Value {
    let items = all.iter().map(|finding| {
        json!({
            "topic": finding.topic,
            "verdict": finding.verdict.word(),
            "what": finding.what,
            "nextStep": finding.next,
        })
    });
    json!({ "items": items.collect::<Vec<_>>() })
}

fn text<'a>(all: impl Iterator<Item = &'a Finding>) -> String {
    let mut out = String::new();
    for Finding { topic, verdict, what, next } in all {
        out.push_str(&format!("{:<4} {topic}: {what}\n", verdict.word()));
        if !next.is_empty() {
            out.push_str(&format!("     next: {next}\n"));
        }
    }
    out
}

fn summary(all: &[Finding]) -> String {
    let count = |verdict| all.iter().filter(|finding| finding.verdict == verdict).count();
    format!("{} ok, {} odd, {} bad\n", count(Verdict::Good), count(Verdict::Odd), count(Verdict::Bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_next_step_below_it() {
        let mut findings = Findings::default();
        findings.good("token", "is taken");
        findings.odd("disk", "2 % are free", "free some");
        findings.bad("clock", "differs by 3 h", "set it");
        let out = format!("{}{}", text(findings.0.iter()), summary(&findings.0));
        expect_test::expect![[r#"
            ok   token: is taken
            odd  disk: 2 % are free
                 next: free some
            bad  clock: differs by 3 h
                 next: set it
            1 ok, 1 odd, 1 bad
        "#]]
        .assert_eq(&out);
    }
}
