// SPDX-License-Identifier: Apache-2.0
//! `edit`: an object in the operator's editor.
//!
//! ```text
//!  read ─▶ editor ─▶ unchanged? ─▶ done
//!            ▲          │ changed
//!            │          ▼
//!            └─ refused: the reason as a comment ─ apply, with the version that was read ─▶ done
//! ```
//! A file left as it was ends the edit; after a refusal the text stays in a file that is named. When somebody else wrote
//! meanwhile, the comment says which fields are others now, and the next save is made against that version.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use controller_core::resource::Kind;
use serde_json::{Value, json};

use crate::args::Format;
use crate::change::{Tense, send, show};
use crate::client::{ApiError, Client, parse_object};
use crate::documents::{Document, parse};
use crate::export::written;
use crate::{DONE, REFUSED};

/// Refusals after which the edit is given up, in case the editor is no person.
const MAX_ROUNDS: usize = 20;
/// Fields of somebody else's change that are named.
const MAX_FIELDS: usize = 10;
/// Comments of ours begin with this, and are taken off before the next round.
const MARK: &str = "#! ";

#[derive(Debug, clap::Args)]
pub(crate) struct EditArgs {
    /// KIND/NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME", add = crate::completion::objects())]
    object: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

pub(crate) fn edit(client: &Client, args: &EditArgs) -> anyhow::Result<u8> {
    let (kind, name) = parse_object(&args.object)?;
    let name = name.ok_or_else(|| anyhow!("name the {0}: selvedge edit {0}/NAME", kind.singular()))?;
    if kind == Kind::Secret {
        bail!(
            "values of secrets are never shown, so they cannot be edited; apply the secret anew, or use: selvedge label"
        );
    }
    let path = format!("{}/{name}", kind.plural());
    let mut base = client.get(&path)?;
    let file = Scratch::new(kind, &name)?;
    let head = format!("{MARK}{}/{name}: save to apply, leave unchanged to give up\n", kind.singular());
    let mut text = format!("{head}{}", serde_saphyr::to_string(&written(&base))?);
    let mut is_first = true;
    for _ in 0..MAX_ROUNDS {
        let saved = file.edit(&text)?;
        if saved == text {
            if is_first {
                eprintln!("{}/{name} is unchanged", kind.singular());
                return Ok(DONE);
            }
            eprintln!("given up; what you wrote is in {}", file.keep().display());
            return Ok(REFUSED);
        }
        is_first = false;
        let why = match apply(client, kind, &name, &base, &file.path, &saved) {
            Ok(plan) => {
                show(&plan, args.output, Tense::Did)?;
                return Ok(DONE);
            }
            Err(error) => error,
        };
        let is_conflict = why.downcast_ref::<ApiError>().is_some_and(ApiError::is_refusal);
        let mut comment = format!("{why:#}");
        if is_conflict {
            let theirs = client.get(&path)?;
            let others = differing(&written(&base), &written(&theirs));
            let others = others.join("; ");
            comment = format!(
                "somebody else changed it meanwhile: {others}\ndelete these lines and save to apply yours over that"
            );
            base = theirs;
        }
        text = format!("{}{}", commented(&comment), uncommented(&saved));
    }
    bail!("refused {MAX_ROUNDS} times; what you wrote is in {}", file.keep().display())
}

fn apply(
    client: &Client,
    kind: Kind,
    name: &str,
    base: &Value,
    file: &Path,
    saved: &str,
) -> anyhow::Result<Value> {
    let mut documents: Vec<Document> = parse(file, saved)?;
    let (Some(document), true) = (documents.pop(), documents.is_empty()) else {
        bail!("exactly one object is edited; apply -f takes several");
    };
    let mut value = document.value()?;
    let is_same = value["kind"] == kind.name() && value["metadata"]["name"] == name;
    if !is_same {
        bail!(
            "kind and metadata.name stay {} and {name}; a new object is made with: selvedge apply -f",
            kind.name()
        );
    }
    value["metadata"]["resourceVersion"] = base["metadata"]["resourceVersion"].clone();
    send(client, "apply", &json!({ "objects": [value] }), &[document])
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("{MARK}{line}\n")).collect()
}

fn uncommented(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with(MARK.trim_end())).map(|line| format!("{line}\n")).collect()
}

/// Fields that differ, with both values.
fn differing(before: &Value, after: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare("", before, after, &mut out);
    if out.len() > MAX_FIELDS {
        let more = out.len() - MAX_FIELDS;
        out.truncate(MAX_FIELDS);
        out.push(format!("and {more} more fields"));
    }
    if out.is_empty() {
        out.push("nothing that you see here".into());
    }
    out
}

fn compare(path: &str, before: &Value, after: &Value, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let dot = if path.is_empty() { "" } else { "." };
                let side = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                compare(&format!("{path}{dot}{key}"), &side(left), &side(right), out);
            }
        }
        _ if before == after => {}
        _ => out.push(format!("{path}: {before} → {after}")),
    }
}

/// The file that is edited; removed at the end unless it is kept.
struct Scratch {
    directory: PathBuf,
    path: PathBuf,
    is_kept: std::cell::Cell<bool>,
}

impl Scratch {
    fn new(kind: Kind, name: &str) -> anyhow::Result<Scratch> {
        use std::os::unix::fs::DirBuilderExt as _;
        let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let unique = format!("selvedge-edit-{}-{}", std::process::id(), stamp.as_nanos());
        let directory = std::env::temp_dir().join(unique);
        // Nobody else may put a file there, nor read ours.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot make {}; is TMPDIR right?", directory.display()))?;
        let path = directory.join(format!("{}-{name}.yaml", kind.singular()));
        Ok(Scratch { directory, path, is_kept: std::cell::Cell::new(false) })
    }

    /// Hands the text to the editor and gives what was saved.
    fn edit(&self, text: &str) -> anyhow::Result<String> {
        let mut file = fs::File::create(&self.path).with_context(|| self.path.display().to_string())?;
        file.write_all(text.as_bytes())?;
        drop(file);
        let editor = ["VISUAL", "EDITOR"].iter().filter_map(|name| std::env::var(name).ok());
        let editor = editor.map(|text| text.trim().to_owned()).find(|text| !text.is_empty());
        let editor = editor.unwrap_or_else(|| "vi".into());
        // Editors are given with options, so a shell splits them.
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("{editor} \"$1\""))
            .arg("sh")
            .arg(&self.path)
            .status()
            .context("cannot run sh")?;
        if !status.success() {
            bail!(
                "the editor '{editor}' ended with {status}; nothing was changed; name one that is there in EDITOR"
            );
        }
        fs::read_to_string(&self.path).with_context(|| self.path.display().to_string())
    }

    fn keep(&self) -> &Path {
        self.is_kept.set(true);
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            // What stays behind in the temporary directory harms nobody.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_comments_go_and_the_operators_stay() {
        let text = format!("{}# mine\nspec:\n", commented("wrong\nvery wrong"));
        assert_eq!(text, "#! wrong\n#! very wrong\n# mine\nspec:\n");
        assert_eq!(uncommented(&text), "# mine\nspec:\n");
    }

    #[test]
    fn what_somebody_else_changed_is_named_by_field() {
        let before = json!({ "spec": { "image": "a:1", "env": { "A": "1" } }, "metadata": { "name": "a" } });
        let after = json!({ "spec": { "image": "a:2", "env": {} }, "metadata": { "name": "a" } });
        assert_eq!(differing(&before, &after), ["spec.env.A: \"1\" → null", "spec.image: \"a:1\" → \"a:2\""]);
    }
}
