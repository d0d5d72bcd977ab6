// SPDX-License-Identifier: Apache-2.0
//! Data an app is given at its start, as EVE gives it to containers: `KEY=VALUE` lines, or a `#cloud-config` with
//! `write_files` and, in `runcmd`, `KEY=VALUE` entries.
//!
//! Pure, and run by the app's own first process after it gave up the node (`container::child`): the text comes from the controller's user and is bounded in size, depth and number of files. Error texts name
//! lines and keys, never values: they may be secret.

use std::io::Read;

use base64::Engine;
use serde::Deserialize;

use crate::container::FileToWrite;

/// What eve-api carries of it, decoded.
const MAX_BYTES: usize = 4 << 20;
const MAX_VARIABLES: usize = 4096;
const MAX_FILES: usize = 1024;
/// All files together, unpacked: they have to fit the memory of the app's first process.
const MAX_FILES_BYTES: usize = 8 << 20;
const DEFAULT_MODE: u32 = 0o644;
const CLOUD_CONFIG: &str = "#cloud-config";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    pub files: Vec<FileToWrite>,
    /// Entries that were not understood and are left out: what was meant for a whole machine.
    pub ignored: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    #[error("larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("line {line}: not KEY=VALUE")]
    NotAVariable { line: usize },
    #[error("more than {MAX_VARIABLES} variables or {MAX_FILES} files")]
    TooMany,
    #[error("not a valid cloud-config: {place}")]
    Yaml { place: String },
    #[error("write_files {path}: {what}")]
    File { path: String, what: &'static str },
}

pub fn parse(untrusted: &str) -> Result<Given, UserDataError> {
    if untrusted.len() > MAX_BYTES {
        return Err(UserDataError::TooLarge);
    }
    let text = untrusted.trim_start_matches('\u{feff}').trim_start();
    if text.lines().next().is_some_and(|line| line.trim_end() == CLOUD_CONFIG) {
        parse_cloud_config(text)
    } else {
        parse_lines(untrusted)
    }
}

fn parse_lines(untrusted: &str) -> Result<Given, UserDataError> {
    let mut given = Given::default();
    for (n, line) in untrusted.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let variable = parse_line(line).ok_or(UserDataError::NotAVariable { line: n + 1 })?;
        given.env.push(variable);
        if given.env.len() > MAX_VARIABLES {
            return Err(UserDataError::TooMany);
        }
    }
    Ok(given)
}

/// A line `KEY=VALUE` is meant as it stands, quotes and spaces of the value too; with `export` it is a shell's.
fn parse_line(text: &str) -> Option<String> {
    let text = text.trim_start();
    if text.starts_with("export ") {
        return parse_assignment(text);
    }
    let (key, value) = split_variable(text)?;
    Some(format!("{key}={value}"))
}

/// A shell's `KEY=VALUE` or `export KEY=VALUE`; one pair of quotes around the value is taken off.
fn parse_assignment(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("export ").map_or(text, str::trim_start);
    let (key, value) = split_variable(text)?;
    let value = value.trim();
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value);
    Some(format!("{key}={unquoted}"))
}

fn split_variable(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let key = key.trim_end();
    let is_name = !key.is_empty()
        && !key.contains(|c: char| c.is_whitespace() || c.is_control())
        && !key.starts_with(|c: char| c.is_ascii_digit());
    if !is_name || value.contains('\0') {
        return None;
    }
    Some((key, value))
}

#[derive(Deserialize)]
struct CloudConfig {
    #[serde(default)]
    write_files: Option<Vec<WriteFile>>,
    #[serde(default)]
    runcmd: Option<Vec<Command>>,
}

#[derive(Deserialize)]
struct WriteFile {
    path: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    encoding: Option<String>,
    #[serde(default)]
    owner: Option<String>,
    #[serde(default)]
    append: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Shell(String),
    Program(serde::de::IgnoredAny),
}

fn parse_cloud_config(untrusted: &str) -> Result<Given, UserDataError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_depth: 32,
            max_nodes: 100_000,
            max_aliases: 100,
        },
        with_snippet: false,
    };
    let config: Option<CloudConfig> = serde_saphyr::from_str_with_options(untrusted, options)
        .map_err(|error| UserDataError::Yaml { place: place_of(&error) })?;
    let mut given = Given::default();
    let Some(config) = config else { return Ok(given) };
    let (files, commands) = (config.write_files.unwrap_or_default(), config.runcmd.unwrap_or_default());
    if files.len() > MAX_FILES || commands.len() > MAX_VARIABLES {
        return Err(UserDataError::TooMany);
    }
    let mut total = 0;
    for file in files {
        let file = file_of(file, MAX_FILES_BYTES - total)?;
        total += file.content.len();
        given.files.push(file);
    }
    for (n, command) in commands.into_iter().enumerate() {
        let variable = match &command {
            Command::Shell(text) => parse_assignment(text),
            Command::Program(_) => None,
        };
        match variable {
            Some(variable) => given.env.push(variable),
            None => given.ignored.push(format!("runcmd entry {}", n + 1)),
        }
    }
    Ok(given)
}

/// Where, not what: the text of the document stays out of faults and logs.
fn place_of(error: &serde_saphyr::Error) -> String {
    match error.location() {
        Some(at) => format!("line {}, column {}", at.line(), at.column()),
        None => "unknown place".to_owned(),
    }
}

fn file_of(file: WriteFile, room_bytes: usize) -> Result<FileToWrite, UserDataError> {
    let path = file.path;
    let fail = |what| UserDataError::File { path: path.clone(), what };
    if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
        return Err(fail("not an absolute path of a file"));
    }
    let mode = match &file.permissions {
        None => DEFAULT_MODE,
        Some(text) => parse_mode(text).ok_or_else(|| fail("permissions are not octal"))?,
    };
    let content = file.content.unwrap_or_default();
    let content = match file.encoding.as_deref().unwrap_or("text/plain") {
        "text/plain" | "" => content.into_bytes(),
        "b64" | "base64" => decode_base64(&content).ok_or_else(|| fail("content is not base64"))?,
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => {
            let packed = decode_base64(&content).ok_or_else(|| fail("content is not base64"))?;
            gunzip(&packed, room_bytes).ok_or_else(|| fail("content is not gzip or too large"))?
        }
        _ => return Err(fail("unknown encoding")),
    };
    if content.len() > room_bytes {
        return Err(fail("too large"));
    }
    let owner = file.owner.unwrap_or_default();
    Ok(FileToWrite { path, content, mode, owner, append: file.append })
}

/// `0644`, `644`, `0o644`; YAML may have quoted it.
fn parse_mode(text: &str) -> Option<u32> {
    let text = text.trim();
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let compact: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    base64::engine::general_purpose::STANDARD.decode(compact).ok()
}

fn gunzip(packed: &[u8], room_bytes: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let limit = room_bytes as u64 + 1;
    flate2::read::MultiGzDecoder::new(packed).take(limit).read_to_end(&mut out).ok()?;
    (out.len() <= room_bytes).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_variables() {
        let given =
            parse("# comment\nA=1\r\n\n export B = \"two words\" \nC=x=y\nD='q'\nE=\nF= \"\n").unwrap();
        assert_eq!(given.env, ["A=1", "B=two words", "C=x=y", "D='q'", "E=", "F= \""]);
        assert_eq!(parse("A=1\nnonsense").unwrap_err(), UserDataError::NotAVariable { line: 2 });
        assert_eq!(parse("=1").unwrap_err(), UserDataError::NotAVariable { line: 1 });
        assert_eq!(parse("").unwrap(), Given::default());
    }

    #[test]
    fn cloud_config_gives_files_and_variables() {
        let text = "#cloud-config\nhostname: ignored\nwrite_files:\n- path: /etc/a\n  content: |\n    hello\n    there\n  \
                    permissions: '0600'\n  owner: web:disk\n- {path: /b, encoding: b64, content: aGk=}\n\
                    - {path: /d, append: true, permissions: 0755}\nruncmd:\n- KEY=value\n- export X=1\n- apt update\n- [a, b]\n";
        let given = parse(text).unwrap();
        assert_eq!(given.env, ["KEY=value", "X=1"]);
        assert_eq!(given.ignored, ["runcmd entry 3", "runcmd entry 4"]);
        let [a, b, d] = &given.files[..] else { panic!("{:?}", given.files) };
        assert_eq!(a.content, b"hello\nthere\n");
        assert_eq!((a.path.as_str(), a.mode, a.owner.as_str()), ("/etc/a", 0o600, "web:disk"));
        assert_eq!((b.content.as_slice(), b.mode), (&b"hi"[..], 0o644));
        assert_eq!((d.append, d.mode), (true, 0o755));
    }

    #[test]
    fn packed_files_are_unpacked_up_to_the_limit() {
        use std::io::Write;
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            base64::engine::general_purpose::STANDARD.encode(encoder.finish().unwrap())
        };
        let config = |content: &str| {
            format!(
                "#cloud-config\nwrite_files:\n- path: /f\n  encoding: gzip+base64\n  content: {content}\n"
            )
        };
        assert_eq!(parse(&config(&pack(b"text"))).unwrap().files[0].content, b"text");
        let bomb = pack(&vec![0; MAX_FILES_BYTES + 1]);
        assert!(matches!(parse(&config(&bomb)), Err(UserDataError::File { .. })));
    }

    #[test]
    fn broken_configs_are_refused_without_their_content() {
        let secret = "hunter2";
        for text in [
            format!("#cloud-config\nwrite_files: {secret}\n"),
            format!("#cloud-config\nwrite_files:\n- path: relative\n  content: {secret}\n"),
            format!("#cloud-config\nwrite_files:\n- path: /a\n  encoding: b64\n  content: {secret}!\n"),
            format!("#cloud-config\nwrite_files:\n- path: /a\n  permissions: rwx\n  content: {secret}\n"),
            format!("#cloud-config\n{{{secret}\n"),
            format!("#cloud-config\n{}{secret}", "[".repeat(1000)),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(!error.contains(secret), "{error}");
        }
        assert_eq!(parse(&"x".repeat(MAX_BYTES + 1)).unwrap_err(), UserDataError::TooLarge);
        assert_eq!(parse("#cloud-config\n").unwrap(), Given::default());
    }
}
