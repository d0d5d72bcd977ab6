// SPDX-License-Identifier: Apache-2.0
//! A watch of the operator API: changes as they come, line by line, also over connections that break.
//!
//! The controller ends each line with the version it stands for, and says at least every 15 s that the watch lives. After
//! [`SILENCE`] without a line the connection counts as dead. A lost watch is taken up again from the last version, so
//! nothing is missed and nothing told twice, unless the controller does not know that version any more: then it tells
//! everything anew.

use std::io::{BufRead, BufReader, Read as _};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use controller::operator_api::Problem;
use serde_json::Value;

use crate::client::{ApiError, Client};

/// Three of the controller's signs of life.
const SILENCE: Duration = Duration::from_secs(45);
/// Longest pause before another try.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// An object with its status; a longer line is none of the controller's.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// `ADDED` and `MODIFIED`.
    Object(Value),
    Deleted(Value),
    /// Everything up to here was told; the first one ends what was there from the start.
    UpToDate,
}

/// Watches a path of the project until `on` gives `false` or an error. `path` may have a query already.
pub(crate) fn follow(
    client: &Client,
    path: &str,
    mut on: impl FnMut(Told) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut version: Option<String> = None;
    let mut has_connected = false;
    let mut lost = Lost::default();
    loop {
        let mark = if path.contains('?') { '&' } else { '?' };
        let from = version.as_ref().map(|text| format!("&resourceVersion={text}")).unwrap_or_default();
        let ended = match client.stream(&format!("{path}{mark}watch=true{from}"), SILENCE) {
            Ok(body) => {
                has_connected = true;
                lost.found();
                read(&mut BufReader::new(body), &mut version, &mut on)?
            }
            Err(error) => match error.downcast_ref::<ApiError>().map(|api| api.problem.status) {
                Some(410) => Ended::TooOld,
                // Busy or starting: try again. Anything else the controller says will not become better.
                Some(429 | 503) if has_connected => Ended::Lost(format!("{error:#}")),
                Some(_) => return Err(error),
                None if has_connected => Ended::Lost(format!("{error:#}")),
                None => return Err(error),
            },
        };
        match ended {
            Ended::Enough => return Ok(()),
            Ended::TooOld if version.take().is_some() => {}
            Ended::TooOld => lost.pause("the controller does not know where to go on"),
            Ended::Lost(why) => lost.pause(&why),
        }
    }
}

enum Ended {
    Enough,
    TooOld,
    Lost(String),
}

/// Pauses that grow, and one line of talk per loss.
#[derive(Default)]
struct Lost {
    tries: u32,
}

impl Lost {
    fn pause(&mut self, why: &str) {
        if self.tries == 1 {
            eprintln!("connection lost ({why}); trying again until it is back");
        }
        let pause = Duration::from_millis(200).saturating_mul(1 << self.tries.min(8));
        sleep(pause.min(MAX_PAUSE));
        self.tries += 1;
    }

    fn found(&mut self) {
        if self.tries > 1 {
            eprintln!("connected again; going on where it was lost");
        }
        self.tries = 0;
    }
}

fn read(
    lines: &mut impl BufRead,
    version: &mut Option<String>,
    on: &mut impl FnMut(Told) -> anyhow::Result<bool>,
) -> anyhow::Result<Ended> {
    loop {
        let mut line = Vec::new();
        match lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(Ended::Lost("the controller closed it".into())),
            Ok(_) => {}
            Err(error) => return Ok(Ended::Lost(error.to_string())),
        }
        // A line that broke off comes again whole.
        let Ok(mut line) = serde_json::from_slice::<Value>(&line) else {
            return Ok(Ended::Lost("a line broke off".into()));
        };
        let object = line["object"].take();
        let told = match line["type"].as_str() {
            Some("ADDED" | "MODIFIED") => Told::Object(object),
            Some("DELETED") => Told::Deleted(object),
            Some("BOOKMARK") => Told::UpToDate,
            Some("ERROR") => {
                let problem: Problem =
                    serde_json::from_value(object).context("the controller's error cannot be read")?;
                return match problem.status {
                    410 => Ok(Ended::TooOld),
                    _ => Err(ApiError { problem }.into()),
                };
            }
            _ => {
                return Err(anyhow!("the controller does not know watches")
                    .context("give the controller the version of this program"));
            }
        };
        let newest = line["resourceVersion"].as_str().map(str::to_owned);
        if !on(told)? {
            return Ok(Ended::Enough);
        }
        if newest.is_some() {
            *version = newest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_and_the_version_of_the_last_whole_one_is_kept() {
        let text = concat!(
            r#"{"type":"ADDED","object":{"n":1}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{},"resourceVersion":"17"}"#,
            "\n",
            r#"{"type":"DELETED","object":{"n":2},"resourceVersion":"18"}"#,
            "\n",
            r#"{"type":"MODIFIED","obj"#,
        );
        let (mut told, mut version) = (Vec::new(), None);
        let ended = read(&mut text.as_bytes(), &mut version, &mut |one| {
            told.push(one);
            Ok(true)
        });
        assert!(matches!(ended.unwrap(), Ended::Lost(_)));
        let object = |n: u64| serde_json::json!({ "n": n });
        assert_eq!(told, [Told::Object(object(1)), Told::UpToDate, Told::Deleted(object(2))]);
        assert_eq!(version.as_deref(), Some("18"));
    }

    #[test]
    fn a_version_that_is_too_old_is_no_error_and_other_problems_are() {
        let line = |status: u16| {
            format!(
                r#"{{"type":"ERROR","object":{{"type":"urn:x","title":"X","status":{status},"detail":"d"}}}}"#
            )
        };
        let read = |text: String| read(&mut text.as_bytes(), &mut None, &mut |_| Ok(true));
        assert!(matches!(read(line(410)).unwrap(), Ended::TooOld));
        assert!(read(line(500)).is_err());
        assert!(read(r#"{"items":[]}"#.into()).is_err());
    }
}
