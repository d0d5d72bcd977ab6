// SPDX-License-Identifier: Apache-2.0
//! `completion` and `man`. The shell asks this program itself what may come next, so names of objects are completed too,
//! as far as the controller answers in [`PATIENCE`].

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Parser as _, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use controller_core::resource::Kind;
use serde_json::Value;

use crate::DONE;
use crate::args::Connection;
use crate::client::{Client, Target};
use crate::output::{cell, put};

/// By this variable the shell's script tells that it wants to know.
const VARIABLE: &str = "COMPLETE";
/// A person waits for the answer after the Tab key.
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionArgs {
    /// Your shell
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Directory to write the pages to, made when missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Answers the shell, when it is the shell that asks; does not return then.
pub(crate) fn answer() {
    CompleteEnv::with_factory(crate::help::command).var(VARIABLE).complete();
}

pub(crate) fn completion(args: &CompletionArgs) -> anyhow::Result<u8> {
    let name = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells.completer(name).ok_or_else(|| anyhow!("this program cannot complete for {name}"))?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "selvedge", "selvedge", "selvedge", &mut script)?;
    put(&String::from_utf8_lossy(&script))?;
    // On a terminal somebody wants to know what to do with it.
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        eprintln!(
            "{}",
            match args.shell {
                Shell::Bash => "next:  add to ~/.bashrc:  source <(selvedge completion bash)",
                Shell::Zsh => "next:  add to ~/.zshrc:  source <(selvedge completion zsh)",
                Shell::Fish => "next:  selvedge completion fish > ~/.config/fish/completions/selvedge.fish",
            }
        );
    }
    Ok(DONE)
}

pub(crate) fn man(args: &ManArgs) -> anyhow::Result<u8> {
    let shown = args.out.display();
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {shown}"))?;
    clap_mangen::generate_to(crate::help::plain_command(), &args.out)
        .with_context(|| format!("cannot write to {shown}"))?;
    eprintln!("wrote {shown}; read them with: man -l {shown}/selvedge.1");
    Ok(DONE)
}

/// Completes kinds.
pub(crate) fn kinds() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        Kind::ALL.into_iter().map(|kind| CompletionCandidate::new(kind.singular())).collect()
    })
}

/// Completes what can be waited for.
pub(crate) fn conditions() -> ArgValueCandidates {
    const ALL: [&str; 7] =
        ["Ready", "Registered", "Connected", "Attested", "ConfigApplied", "exists", "deleted"];
    ArgValueCandidates::new(|| ALL.into_iter().map(CompletionCandidate::new).collect())
}

/// Completes `KIND` and `KIND/NAME`.
pub(crate) fn objects() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let word = word.to_string_lossy();
        let Some((kind, prefix)) = word.split_once('/') else {
            let kinds = Kind::ALL.into_iter().map(Kind::singular).filter(|kind| kind.starts_with(&*word));
            return kinds.map(CompletionCandidate::new).collect();
        };
        let Some(found) = Kind::parse(kind) else { return Vec::new() };
        let names = names(found).unwrap_or_default().into_iter().filter(|name| name.starts_with(prefix));
        names.map(|name| CompletionCandidate::new(format!("{kind}/{name}"))).collect()
    })
}

/// Names of all objects of a kind, from the controller that the line so far names.
fn names(kind: Kind) -> Option<Vec<String>> {
    #[derive(clap::Parser)]
    #[command(ignore_errors = true, disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        connection: Connection,
        #[arg(trailing_var_arg = true)]
        _rest: Vec<String>,
    }
    // The shell's words come after `--`, the name of this program first.
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let line = Line::try_parse_from(words).ok()?;
    let target = Target::resolve(&line.connection).ok()?;
    let client = Client::with_patience(&target, PATIENCE).ok()?;
    let list = client.get(kind.plural()).ok()?;
    let items = list["items"].as_array()?;
    Some(items.iter().map(|item: &Value| cell(item, "/metadata/name")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_pages_are_written_for_every_command() {
        let dir = std::env::temp_dir().join(format!("selvedge-man-{}", std::process::id()));
        man(&ManArgs { out: dir.clone() }).unwrap();
        let text = std::fs::read_to_string(dir.join("selvedge-apply.1")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(text.contains(".TH") && text.contains("SELVEDGE_SERVER"), "{text}");
    }
}
