// SPDX-License-Identifier: Apache-2.0
//! The help of `selvedge` itself: commands in groups, a line each.

use clap::{Command, CommandFactory as _};

use crate::args::Args;

/// Groups in the order of a working day. A command that stands in none is shown in the last one.
const GROUPS: &[(&str, &[&str])] = &[
    ("Look", &["get", "describe", "events", "logs", "top", "history", "wait", "explain"]),
    ("Change", &["plan", "apply", "edit", "label", "delete", "export", "app"]),
    ("Run a fleet", &["serve", "node", "image", "registry", "token", "audit", "backup", "restore"]),
];
const LAST_GROUP: &str = "Help";

/// The command line with its help in groups.
pub(crate) fn command() -> Command {
    let command = plain_command();
    let template = template(&command);
    command.help_template(template)
}

/// The command line as clap makes it.
pub(crate) fn plain_command() -> Command {
    Args::command()
}

fn template(command: &Command) -> String {
    let about = |name: &str| {
        let found = command.get_subcommands().find(|sub| sub.get_name() == name && !sub.is_hide_set())?;
        Some(found.get_about().map(ToString::to_string).unwrap_or_default())
    };
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut out = String::from("{about}\n\n{usage-heading} {usage}\n");
    let grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let rest: Vec<&str> = names.iter().copied().filter(|name| !grouped(name)).collect();
    for (title, names) in GROUPS.iter().copied().chain([(LAST_GROUP, rest.as_slice())]) {
        out.push_str(&format!("\n{title}\n"));
        for name in names {
            if let Some(about) = about(name) {
                out.push_str(&format!("  {name:<width$}  {about}\n"));
            }
        }
    }
    out.push_str("\nOptions\n{options}\n\n");
    out.push_str(
        "Exit codes: 0 done, 1 error, 2 differences or not in time, 3 refused since something changed.\n",
    );
    out.push_str(
        "More of a command: selvedge COMMAND --help; of what you write in files: selvedge explain KIND\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_help_once() {
        let text = command().render_help().to_string();
        for sub in plain_command().get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let line = format!("\n  {} ", sub.get_name());
            assert_eq!(text.matches(&line).count(), 1, "{} in\n{text}", sub.get_name());
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
        }
    }

    #[test]
    fn the_help_fits_a_screen() {
        assert!(command().render_help().to_string().lines().count() <= 60);
    }
}
