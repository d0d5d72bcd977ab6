// SPDX-License-Identifier: Apache-2.0
//! What happened, one line per change.

use std::fmt::Display;

/// Newest lines that are kept when nobody listens: enough to see what led to a failure.
const KEPT: usize = 60;

/// Lines of one world.
#[derive(Debug, Default)]
pub struct Story {
    pub is_whole: bool,
    lines: std::collections::VecDeque<String>,
}

impl Story {
    pub fn new(is_whole: bool) -> Story {
        Story { is_whole, ..Story::default() }
    }

    pub fn line(&mut self, at_ms: u64, who: &str, text: impl Display) {
        if !self.is_whole && self.lines.len() >= KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{} {who:<10} {text}", moment(at_ms)));
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

/// Day and time of a moment of the world.
pub(crate) fn moment(ms: u64) -> String {
    let (s, ms) = (ms / 1_000, ms % 1_000);
    format!("d{} {:02}:{:02}:{:02}.{ms:03}", s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60)
}
