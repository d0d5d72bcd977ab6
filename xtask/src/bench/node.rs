// SPDX-License-Identifier: Apache-2.0
//! What needs a controller and a hosted node; one laboratory serves all of it: first idle, then with changes, then with
//! an app.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tests::lab::{Lab, Place};

use super::{Bench, Figure, app, memory, push, wait_closely};

pub(super) const NAMES: &[&str] =
    &[memory::NODE, memory::CONTROLLER, push::NODE, push::ECHO, push::EVE, app::NAME];

const NUMBER: u8 = 41;

pub(super) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let mut lab = Lab::start(Place::new("bench", NUMBER)?)?;
    let mut figures = Vec::new();
    let is_wanted = |names: &[&str]| names.iter().any(|name| bench.is_wanted(name));
    if is_wanted(&[memory::NODE, memory::CONTROLLER]) {
        figures.extend(memory::measure(&mut lab)?);
    }
    if is_wanted(&[push::NODE, push::ECHO]) {
        figures.extend(push::measure_node(&mut lab)?);
    }
    if is_wanted(&[app::NAME]) {
        figures.push(app::measure(&mut lab)?);
    }
    if is_wanted(&[push::EVE]) {
        figures.push(push::measure_eve(bench, &mut lab)?);
    }
    figures.retain(|figure| bench.is_wanted(figure.name));
    Ok(figures)
}

/// Microseconds of a day.
const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

/// A moment of a day, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeOfDay(i64);

impl TimeOfDay {
    pub(super) fn now() -> TimeOfDay {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        TimeOfDay::of_epoch_us(since.as_micros() as i64)
    }

    pub(super) fn of_epoch_us(us: i64) -> TimeOfDay {
        TimeOfDay(us.rem_euclid(DAY_US))
    }

    /// `HH:MM:SS.ffffff`
    fn parse(text: &str) -> Option<TimeOfDay> {
        let (clock, micros) = text.split_once('.')?;
        let parts: Vec<i64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [hour, minute, second] = parts[..] else { return None };
        Some(TimeOfDay(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros.parse::<i64>().ok()?))
    }

    /// Milliseconds since an earlier moment, over midnight too; negative when it was later by less than half a day.
    pub(super) fn since_ms(self, earlier: TimeOfDay) -> f64 {
        let us = (self.0 - earlier.0 + DAY_US / 2).rem_euclid(DAY_US) - DAY_US / 2;
        us as f64 / 1_000.0
    }
}

/// A line the node mirrors to its standard error.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: TimeOfDay,
    pub(super) text: String,
}

/// Follows the node's mirrored log.
pub(super) struct NodeLog {
    path: PathBuf,
    offset: u64,
}

impl NodeLog {
    /// From the present end on.
    pub(super) fn follow(path: &Path) -> anyhow::Result<NodeLog> {
        let offset = std::fs::metadata(path)?.len();
        Ok(NodeLog { path: path.to_owned(), offset })
    }

    /// Complete lines since the last look.
    pub(super) fn read(&mut self) -> anyhow::Result<Vec<Line>> {
        let mut file =
            File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.offset += end as u64;
        Ok(String::from_utf8_lossy(&bytes[..end]).lines().filter_map(line).collect())
    }

    /// All lines up to one that holds `text`; that one last.
    pub(super) fn until(&mut self, text: &str, timeout: Duration) -> anyhow::Result<Vec<Line>> {
        let mut seen = Vec::new();
        wait_closely(&format!("the node says {text:?}"), timeout, || {
            seen.extend(self.read()?);
            let at = seen.iter().position(|line: &Line| line.text.contains(text));
            Ok(at.map(|at| seen.drain(..=at).collect()))
        })
    }
}

fn line(text: &str) -> Option<Line> {
    let (time, rest) = text.split_once(' ')?;
    Some(Line { at: TimeOfDay::parse(time)?, text: rest.to_owned() })
}

#[cfg(test)]
mod test {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn times_of_day_are_compared_over_midnight() {
        let time = |text| TimeOfDay::parse(text).unwrap();
        assert_eq!(time("00:00:01.500000").since_ms(time("23:59:59.000000")), 2_500.0);
        assert_eq!(time("10:00:00.000000").since_ms(time("10:00:00.001000")), -1.0);
        assert_eq!(TimeOfDay::of_epoch_us(DAY_US * 7 + 5), TimeOfDay(5));
        assert!(line("no time here").is_none());
        assert_eq!(line("12:00:00.000001 agent    info  a config came").unwrap().at, time("12:00:00.000001"));
    }
}
