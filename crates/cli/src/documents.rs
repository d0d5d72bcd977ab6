// SPDX-License-Identifier: Apache-2.0
//! Documents in YAML or JSON files, with the place of every field, so that what the controller refuses can be pointed at.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use controller::operator_api::Problem;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Depth of a document.
const MAX_DEPTH: usize = 64;

/// Documents in one file: what the controller takes in one change.
const MAX_DOCUMENTS: usize = 10_000;
/// Values in one file.
const MAX_NODES: usize = 1_000_000;

/// A document and where it came from.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) file: PathBuf,
    root: Spanned<Node>,
}

/// A value whose parts know their place.
#[derive(Debug)]
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl Document {
    /// The value without places.
    pub(crate) fn value(&self) -> anyhow::Result<Value> {
        to_value(&self.root.value, 0).with_context(|| format!("{}", self.file.display()))
    }

    fn is_empty(&self) -> bool {
        matches!(&self.root.value, Node::Scalar(Value::Null))
    }

    /// `file:line:column` of a path like `spec.ports[0]`, or of the nearest thing around it.
    pub(crate) fn place(&self, path: &str) -> String {
        let mut node = &self.root;
        let mut at = (node.referenced.line(), node.referenced.column());
        for step in
            path.split(['.', '[']).map(|step| step.trim_end_matches(']')).filter(|step| !step.is_empty())
        {
            let next = match &node.value {
                Node::Map(entries) => {
                    entries.iter().find(|(key, _)| key.value == step).map(|(key, value)| {
                        at = (key.referenced.line(), key.referenced.column());
                        value
                    })
                }
                Node::List(items) => {
                    step.parse::<usize>().ok().and_then(|index| items.get(index)).inspect(|item| {
                        at = (item.referenced.line(), item.referenced.column());
                    })
                }
                Node::Scalar(_) => None,
            };
            let Some(next) = next else { break };
            node = next;
        }
        format!("{}:{}:{}", self.file.display(), at.0, at.1)
    }
}

fn to_value(node: &Node, depth: usize) -> anyhow::Result<Value> {
    if depth > MAX_DEPTH {
        return Err(anyhow!("nested too deep"));
    }
    Ok(match node {
        Node::Scalar(value) => value.clone(),
        Node::List(items) => {
            Value::Array(items.iter().map(|item| to_value(&item.value, depth + 1)).collect::<Result<_, _>>()?)
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                map.insert(key.value.clone(), to_value(&value.value, depth + 1)?);
            }
            Value::Object(map)
        }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Bool(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut out = Vec::new();
                while let Some(item) = items.next_element()? {
                    out.push(item);
                }
                Ok(Node::List(out))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    out.push(entry);
                }
                Ok(Node::Map(out))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// All documents of files and directories, in order; `-` is stdin.
pub(crate) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut out = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            let text = read(&file)?;
            out.extend(parse(&file, &text)?);
        }
    }
    Ok(out)
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let is_document = |path: &PathBuf| {
        path.extension().is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e == *known))
    };
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(is_document);
    files.sort();
    if files.is_empty() {
        return Err(anyhow!("{} holds no .yaml, .yml or .json file", path.display()));
    }
    Ok(files)
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The documents of one text.
pub(crate) fn parse(file: &Path, text: &str) -> anyhow::Result<Vec<Document>> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS, max_nodes: MAX_NODES, max_events: 2 * MAX_NODES
        },
    };
    let roots: Vec<Spanned<Node>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| anyhow!("{}", refusal(&error, file)))?;
    let documents = roots.into_iter().map(|root| Document { file: file.to_owned(), root });
    Ok(documents.filter(|document| !document.is_empty()).collect())
}

/// `file:line:column: what is wrong`, as what the controller refuses is said.
fn refusal(error: &serde_saphyr::Error, file: &Path) -> String {
    let what = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    match error.location() {
        Some(at) => format!("{}:{}:{}: {what}", file.display(), at.line(), at.column()),
        None => format!("{}: {what}", file.display()),
    }
}

/// Adds the place in the file to what the controller refuses.
pub(crate) fn locate(problem: &mut Problem, documents: &[Document]) {
    let name_of = |document: &Document| {
        let value = document.value().ok()?;
        let kind = controller_core::resource::Kind::parse(value["kind"].as_str()?)?;
        Some(format!("{}/{}", kind.singular(), value["metadata"]["name"].as_str()?))
    };
    for error in &mut problem.errors {
        let document = match error.document {
            Some(index) => documents.get(index),
            None => documents.iter().find(|document| name_of(document).as_ref() == Some(&error.object)),
        };
        if let Some(document) = document {
            let place = document.place(&error.path);
            let space = if error.object.is_empty() { "" } else { " " };
            error.object = format!("{place}{space}{}", error.object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# a comment\nkind: App\nmetadata:\n  name: a\nspec:\n  image: a:1\n  ports:\n    - 8080:80\n    - 'x'\n---\nkind: Secret\n";

    #[test]
    fn places_are_those_of_the_file() {
        let documents = parse(Path::new("f.yaml"), TEXT).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].value().unwrap()["spec"]["ports"], serde_json::json!(["8080:80", "x"]));
        for (index, path, place) in [
            (0, "spec.ports[1]", "f.yaml:9:7"),
            (0, "spec.image", "f.yaml:6:3"),
            (0, "spec.nothing.there", "f.yaml:5:1"),
            (1, "kind", "f.yaml:11:1"),
        ] {
            assert_eq!(documents[index].place(path), place, "{path}");
        }
    }

    #[test]
    fn broken_yaml_is_refused_with_line_and_column() {
        let error = parse(Path::new("f.yaml"), "kind: App\nmetadata: [\n").unwrap_err().to_string();
        assert!(error.starts_with("f.yaml:2:11: "), "{error}");
        let twice = parse(Path::new("f.yaml"), "kind: App\nkind: App\n").unwrap_err().to_string();
        assert!(twice.starts_with("f.yaml:2:1: ") && twice.contains("kind"), "{twice}");
    }
}
