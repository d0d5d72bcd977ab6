// SPDX-License-Identifier: Apache-2.0
//! `registry gc`: collects images that nobody can reach any more.

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::Format;
use crate::client::Client;
use crate::output::{cell, print_json, print_yaml, put, size};
use crate::{DIFFERENT, DONE};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RegistryCommand {
    /// Delete images without a tag that no app uses, and blobs that no image needs
    Gc(GcArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    /// Only show what would be deleted; exit code 2 when something would
    #[arg(long)]
    dry_run: bool,
    /// Keep what was pushed, pulled or untagged in this time; at least 1h
    #[arg(long, default_value = "24h", value_parser = crate::serve::duration, value_name = "TIME")]
    grace: Duration,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) fn run(client: &Client, command: &RegistryCommand) -> anyhow::Result<u8> {
    match command {
        RegistryCommand::Gc(args) => gc(client, args),
    }
}

fn gc(client: &Client, args: &GcArgs) -> anyhow::Result<u8> {
    let query = format!("dryRun={}&graceS={}", args.dry_run, args.grace.as_secs());
    let report = client.post(&format!("registry/gc?{query}"), &json!({}))?;
    for repository in report["unreadable"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!(
            "warning: {repository} has a damaged manifest, so its blobs were all kept; push the image again, or delete it"
        );
    }
    match args.output {
        Format::Json => print_json(&report)?,
        Format::Yaml => print_yaml(&report)?,
        Format::Name => put(&names(&report))?,
        Format::Table | Format::Wide => put(&text(&report))?,
    }
    let is_nothing = report["contents"] == 0 && report["links"] == 0 && names(&report).is_empty();
    Ok(if args.dry_run && !is_nothing { DIFFERENT } else { DONE })
}

fn names(report: &Value) -> String {
    let manifests = report["manifests"].as_array().into_iter().flatten();
    manifests.map(|one| format!("{}@{}\n", cell(one, "/repository"), cell(one, "/digest"))).collect()
}

fn text(report: &Value) -> String {
    let mut out: String = names(report).lines().map(|line| format!("- {line}\n")).collect();
    let verb = if report["dryRun"] == true { "would free" } else { "freed" };
    let manifests = report["manifests"].as_array().map_or(0, Vec::len);
    let bytes = report["bytes"].as_u64().unwrap_or(0);
    out.push_str(&format!(
        "{verb} {}: {manifests} manifests, {} blobs\n",
        size(bytes),
        cell(report, "/contents")
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_reads_from_images_to_bytes() {
        let report = json!({ "dryRun": true, "graceSeconds": 86400, "links": 4, "contents": 3, "bytes": 3_500_000,
            "manifests": [{ "repository": "team/shop", "digest": "sha256:00" }] });
        expect_test::expect![[r#"
            - team/shop@sha256:00
            would free 3.3 MiB: 1 manifests, 3 blobs
        "#]]
        .assert_eq(&text(&report));
    }
}
