// SPDX-License-Identifier: Apache-2.0
//! `selvedge`: the operator's command line.
//!
//! stdout carries data, stderr talk. Exit codes: 0 done, 1 error, 2 there are differences (plan) or the condition did
//! not come true in time (wait), 3 refused (a stale plan, a conflict). Everything but `serve` goes through the operator
//! API; `doctor` looks at this machine too.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod access;
mod advice;
mod args;
mod backup;
mod change;
mod client;
mod collect;
mod completion;
mod doctor;
mod documents;
mod edit;
mod explain;
mod export;
mod help;
mod history;
mod image;
mod label;
mod nearest;
mod node;
mod otlp;
mod output;
mod read;
mod registry;
mod selection;
mod serve;
mod top;
mod watch;

use std::process::ExitCode;

use clap::FromArgMatches as _;

use advice::Advice;
use args::{Args, Command};
use client::{ApiError, Client};

/// Nothing to do, or done.
pub(crate) const DONE: u8 = 0;
/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// There are differences, or a condition did not come true.
pub(crate) const DIFFERENT: u8 = 2;
/// The controller refused since something has changed meanwhile.
pub(crate) const REFUSED: u8 = 3;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    completion::answer();
    let args = help::command().try_get_matches().and_then(|matches| Args::from_arg_matches(&matches));
    let args = match args {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { FAILED } else { DONE };
            // Help that nobody reads harms nobody.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A reader that went away (`| head`) has got what it wanted.
            let is_pipe = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
            if is_pipe {
                return ExitCode::from(DONE);
            }
            eprintln!("error: {error:#}");
            let api = error.downcast_ref::<ApiError>();
            let step = api.and_then(|error| error.problem.next_step.as_ref());
            let advice = error.chain().find_map(|cause| cause.downcast_ref::<Advice>());
            if let Some(step) = step.or(advice.map(|advice| &advice.next)) {
                eprintln!("next:  {step}");
            }
            ExitCode::from(if api.is_some_and(ApiError::is_refusal) { REFUSED } else { FAILED })
        }
    }
}

fn run(args: Args) -> anyhow::Result<u8> {
    let command = match args.command {
        Command::Serve(options) => return serve::serve(&args.connection, options),
        Command::Restore(restore) => return backup::restore(&args.connection, &restore),
        Command::Image(image) => return image::run(image),
        Command::Explain(explain) => return explain::explain(&explain),
        Command::Doctor(doctor) => return doctor::doctor(&args.connection, &doctor),
        Command::Completion(completion) => return completion::completion(&completion),
        Command::Man(man) => return completion::man(&man),
        other => other,
    };
    let client = Client::connect(&args.connection)?;
    match command {
        Command::Serve(_)
        | Command::Restore(_)
        | Command::Image(_)
        | Command::Explain(_)
        | Command::Doctor(_)
        | Command::Completion(_)
        | Command::Man(_) => Ok(DONE),
        Command::Backup(args) => backup::backup(&client, &args),
        Command::Node(node) => node::run(&client, node),
        Command::Plan(plan) => change::plan(&client, &plan),
        Command::Apply(apply) => change::apply(&client, &apply),
        Command::Delete(delete) => change::delete(&client, &delete),
        Command::App(app) => change::app(&client, &app),
        Command::Get(get) => read::get(&client, &get),
        Command::Describe(describe) => read::describe(&client, &describe),
        Command::Events(events) => read::events(&client, &events),
        Command::Logs(logs) => read::logs(&client, &logs),
        Command::Token(token) => access::token(&client, &token),
        Command::Audit(audit) => access::audit(&client, &audit),
        Command::Wait(wait) => read::wait(&client, &wait),
        Command::Label(label) => label::label(&client, &label),
        Command::Edit(edit) => edit::edit(&client, &edit),
        Command::Export(export) => export::export(&client, &export),
        Command::History(history) => history::history(&client, &history),
        Command::Top(top) => top::top(&client, &top),
        Command::Registry(command) => registry::run(&client, &command),
        Command::Collect(collect) => collect::run(&client, &collect),
    }
}
