// SPDX-License-Identifier: Apache-2.0
//! `token create`, `token list`, `token revoke`, `audit tail`.

use std::io::Write as _;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::DONE;
use crate::args::Format;
use crate::client::{Client, parse_named};
use crate::output::{cell, print_json, print_yaml, shorten, table};
use crate::watch::{Told, follow};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print its secret, which is shown only now
    Create(CreateArgs),
    /// All tokens, without their secrets
    List(ListArgs),
    /// Take a token away
    Revoke {
        /// Name of the token
        name: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Who or what will use it
    name: String,
    /// viewer: read and pull; operator: and change and push; admin: and tokens and backups
    #[arg(long, value_enum)]
    role: Role,
    /// How long it holds: 12h, 90d, or never
    #[arg(long, default_value = "365d", value_parser = expiry)]
    expires: Expiry,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Viewer,
    Operator,
    Admin,
}

/// Seconds; `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expiry(Option<u64>);

fn expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry(None));
    }
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = number.parse().map_err(|_| format!("'{text}' is no time like 90d"))?;
    let seconds = match &text[number.len()..] {
        "d" => 86_400,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        unit => return Err(format!("'{unit}' is no unit of time; use s, m, h or d, or 'never'")),
    };
    count.checked_mul(seconds).map(|s| Expiry(Some(s))).ok_or_else(|| format!("'{text}' is too long"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// The last changes: who, what, when, by which plan, from where; and who was refused
    Tail(TailArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TailArgs {
    /// Go on until interrupted
    #[arg(short, long)]
    follow: bool,
    /// The last so many entries
    #[arg(short = 'n', long, default_value_t = 50, value_name = "COUNT")]
    lines: usize,
    /// Only what was done to this object
    #[arg(long, value_name = "KIND/NAME")]
    object: Option<String>,
    /// Only what this token did
    #[arg(long, value_name = "TOKEN")]
    who: Option<String>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) fn token(client: &Client, command: &TokenCommand) -> anyhow::Result<u8> {
    match command {
        TokenCommand::Create(args) => create(client, args),
        TokenCommand::List(args) => list(client, args),
        TokenCommand::Revoke { name } => {
            plain(name)?;
            client.delete(&format!("tokens/{name}"))?;
            eprintln!("token {name} is revoked");
            Ok(DONE)
        }
    }
}

/// Names go into paths.
fn plain(name: &str) -> anyhow::Result<()> {
    let is_plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    is_plain.then_some(()).ok_or_else(|| anyhow!("'{name}' cannot be the name of a token"))
}

fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<u8> {
    let role = match args.role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    };
    let made =
        client.post("tokens", &json!({ "name": args.name, "role": role, "expiresInS": args.expires.0 }))?;
    match args.output {
        Format::Json => print_json(&made)?,
        Format::Yaml => print_yaml(&made)?,
        _ => {
            // Only the secret goes to stdout: SELVEDGE_TOKEN=$(selvedge token create …)
            writeln!(std::io::stdout(), "{}", cell(&made, "/token"))?;
            let until = match cell(&made, "/expires") {
                text if text.is_empty() => "for ever".to_owned(),
                text => format!("until {text}"),
            };
            eprintln!("token {} of role {role} holds {until}; this is the only time it is shown", args.name);
        }
    }
    Ok(DONE)
}

fn list(client: &Client, args: &ListArgs) -> anyhow::Result<u8> {
    let list = client.get("tokens")?;
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    match args.output {
        Format::Json => print_json(&list)?,
        Format::Yaml => print_yaml(&list)?,
        Format::Name => {
            for item in items {
                writeln!(std::io::stdout(), "{}", cell(item, "/name"))?;
            }
        }
        Format::Table | Format::Wide if items.is_empty() => {
            eprintln!("no tokens; only the one in the controller's data directory holds");
        }
        Format::Table | Format::Wide => {
            let row = |item: &Value| {
                let expires = match (item["isExpired"] == true, cell(item, "/expires")) {
                    (true, text) => format!("{text} (over)"),
                    (false, text) if text.is_empty() => "never".to_owned(),
                    (false, text) => text,
                };
                vec![
                    cell(item, "/name"),
                    cell(item, "/role"),
                    expires,
                    cell(item, "/created"),
                    cell(item, "/createdBy"),
                ]
            };
            let rows: Vec<Vec<String>> = items.iter().map(row).collect();
            write!(
                std::io::stdout(),
                "{}",
                table(&["NAME", "ROLE", "EXPIRES", "CREATED", "CREATED BY"], &rows)
            )?;
        }
    }
    Ok(DONE)
}

pub(crate) fn audit(client: &Client, command: &AuditCommand) -> anyhow::Result<u8> {
    let AuditCommand::Tail(args) = command;
    let mut filter = String::new();
    if let Some(object) = &args.object {
        let (kind, name) = parse_named(object)?;
        filter.push_str(&format!("&object={}/{name}", kind.singular()));
    }
    if let Some(who) = &args.who {
        plain(who)?;
        filter.push_str(&format!("&who={who}"));
    }
    if !args.follow {
        let list = client.get(&format!("audit?tail={}{filter}", args.lines))?;
        if args.output == Format::Yaml {
            print_yaml(&list)?;
        } else if args.output == Format::Json {
            print_json(&list)?;
        } else {
            for entry in list["items"].as_array().into_iter().flatten() {
                show(entry, args.output)?;
            }
        }
        return Ok(DONE);
    }
    follow(client, &format!("audit?tail={}{filter}", args.lines), |told| {
        if let Told::Object(entry) = told {
            show(&entry, args.output)?;
        }
        Ok(true)
    })?;
    Ok(DONE)
}

fn show(entry: &Value, format: Format) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json | Format::Yaml => writeln!(out, "{entry}")?,
        Format::Name => writeln!(out, "{}", cell(entry, "/sequence"))?,
        Format::Table | Format::Wide => write!(out, "{}", text(entry, format == Format::Wide))?,
    }
    out.flush()?;
    Ok(())
}

/// An entry for people: one line, and with `is_wide` one more for each field.
fn text(entry: &Value, is_wide: bool) -> String {
    let from = match cell(entry, "/from") {
        text if text.is_empty() => text,
        text => format!(" from {text}"),
    };
    let mut out = format!(
        "{}  {} ({}){from}  {}",
        cell(entry, "/at"),
        cell(entry, "/who"),
        cell(entry, "/role"),
        cell(entry, "/action")
    );
    let objects: Vec<&Value> = entry["objects"].as_array().into_iter().flatten().collect();
    let sign = |object: &Value| match object["op"].as_str() {
        Some("add") => "+",
        Some("remove") => "-",
        _ => "~",
    };
    for object in &objects {
        out.push_str(&format!(" {}{}", sign(object), cell(object, "/object")));
    }
    for (key, what) in [("/moreObjects", "more objects"), ("/devices", "devices")] {
        match cell(entry, key) {
            count if count.is_empty() => {}
            count => out.push_str(&format!("  {count} {what}")),
        }
    }
    for key in ["/detail", "/plan"] {
        let more = cell(entry, key);
        if !more.is_empty() {
            out.push_str(&format!("  {more}"));
        }
    }
    out.push('\n');
    for object in objects.iter().filter(|_| is_wide) {
        for field in object["fields"].as_array().into_iter().flatten() {
            let side = |key: &str| field[key].as_str().map_or_else(|| "(none)".to_owned(), shorten);
            out.push_str(&format!(
                "    {} {}: {} → {}\n",
                cell(object, "/object"),
                cell(field, "/path"),
                side("from"),
                side("to")
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_a_unit_or_is_never() {
        assert_eq!(expiry("90d"), Ok(Expiry(Some(90 * 86_400))));
        assert_eq!(expiry("never"), Ok(Expiry(None)));
        assert!(expiry("90").is_err() && expiry("d").is_err() && expiry("99999999999999999999d").is_err());
    }

    #[test]
    fn an_entry_is_one_line_and_its_fields_when_wide() {
        let entry = json!({
            "sequence": 7, "at": "2026-01-01T00:00:00Z", "who": "alice", "role": "operator", "from": "192.0.2.7",
            "action": "apply", "plan": "abc", "devices": 2, "objects": [{ "op": "change", "object": "app/hello",
                "fields": [{ "path": "spec.image", "from": "hello:1", "to": "hello:2" }] }],
        });
        expect_test::expect![[r#"
            2026-01-01T00:00:00Z  alice (operator) from 192.0.2.7  apply ~app/hello  2 devices  abc
                app/hello spec.image: hello:1 → hello:2
        "#]]
        .assert_eq(&text(&entry, true));
    }
}
