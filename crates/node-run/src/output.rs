// SPDX-License-Identifier: Apache-2.0
//! An app's output as log lines: bounded in length, rate and memory, with every loss counted.
//!
//! Pure: bytes and the time go in, lines come out. Owns the ring that holds lines while the log process is away.

use std::collections::VecDeque;

use ipc::limits::MAX_LOG_LINE_BYTES;
use model::time::MonoMs;

/// Lines per second an app may write for long.
const RATE_PER_S: u64 = 1000;
/// Lines it may write at once: a start banner, a stack trace.
const BURST: u64 = 5000;
/// Lines kept while nobody takes them.
const MAX_WAITING_LINES: usize = 2048;
/// Their bytes.
const MAX_WAITING_BYTES: usize = 512 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A line, or how many are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Text {
        stream: Stream,
        text: String,
    },
    /// Lines dropped here: written faster than allowed, or not taken in time.
    Lost(u64),
}

/// Both streams of one app.
#[derive(Debug)]
pub struct Output {
    partial: [Vec<u8>; 2],
    waiting: VecDeque<Line>,
    waiting_bytes: usize,
    /// Dropped since the last line in `waiting`.
    lost: u64,
    tokens: u64,
    refilled: MonoMs,
}

impl Output {
    pub fn new(now: MonoMs) -> Output {
        Output {
            partial: [Vec::new(), Vec::new()],
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            lost: 0,
            tokens: BURST,
            refilled: now,
        }
    }

    /// Takes what was read of a stream.
    pub fn push(&mut self, now: MonoMs, stream: Stream, mut bytes: &[u8]) {
        self.refill(now);
        while !bytes.is_empty() {
            let partial = &mut self.partial[stream as usize];
            let room = MAX_LOG_LINE_BYTES - partial.len();
            let end = bytes.iter().position(|byte| *byte == b'\n');
            match end {
                Some(end) if end <= room => {
                    partial.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() < room => {
                    partial.extend_from_slice(bytes);
                    return;
                }
                // Too long: cut into several lines.
                _ => {
                    partial.extend_from_slice(&bytes[..room]);
                    bytes = &bytes[room..];
                }
            }
            let line = std::mem::take(partial);
            self.line(stream, &line);
        }
    }

    /// The stream is at its end: what stands without a newline is a line too.
    pub fn finish(&mut self, stream: Stream) {
        let line = std::mem::take(&mut self.partial[stream as usize]);
        if !line.is_empty() {
            self.line(stream, &line);
        }
    }

    /// The oldest line; taken off only by [`Output::taken`].
    pub fn next(&self) -> Option<Line> {
        match self.waiting.front() {
            Some(line) => Some(line.clone()),
            None => (self.lost > 0).then_some(Line::Lost(self.lost)),
        }
    }

    pub fn taken(&mut self) {
        match self.waiting.pop_front() {
            Some(Line::Text { text, .. }) => self.waiting_bytes -= text.len(),
            Some(Line::Lost(_)) => {}
            None => self.lost = 0,
        }
    }

    fn refill(&mut self, now: MonoMs) {
        let due = now.since_ms(self.refilled).saturating_mul(RATE_PER_S) / 1000;
        if due > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(due));
            self.refilled = now;
        }
    }

    fn line(&mut self, stream: Stream, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_full =
            self.waiting.len() >= MAX_WAITING_LINES || self.waiting_bytes + line.len() > MAX_WAITING_BYTES;
        if self.tokens == 0 || is_full {
            self.lost += 1;
            return;
        }
        self.tokens -= 1;
        if self.lost > 0 {
            self.waiting.push_back(Line::Lost(std::mem::take(&mut self.lost)));
        }
        let text = String::from_utf8_lossy(line).into_owned();
        self.waiting_bytes += text.len();
        self.waiting.push_back(Line::Text { stream, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(output: &mut Output) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(line) = output.next() {
            output.taken();
            lines.push(line);
        }
        assert_eq!(output.waiting_bytes, 0);
        lines
    }

    fn text(stream: Stream, text: &str) -> Line {
        Line::Text { stream, text: text.into() }
    }

    #[test]
    fn lines_are_put_together_from_pieces_per_stream() {
        let mut output = Output::new(MonoMs(0));
        output.push(MonoMs(0), Stream::Stdout, b"one\r\ntw");
        output.push(MonoMs(0), Stream::Stderr, b"bad \xff\n\n");
        output.push(MonoMs(0), Stream::Stdout, b"o\nrest");
        output.finish(Stream::Stdout);
        output.finish(Stream::Stderr);
        let want = [
            text(Stream::Stdout, "one"),
            text(Stream::Stderr, "bad \u{fffd}"),
            text(Stream::Stderr, ""),
            text(Stream::Stdout, "two"),
            text(Stream::Stdout, "rest"),
        ];
        assert_eq!(drain(&mut output), want);
    }

    #[test]
    fn long_lines_are_cut_and_nothing_of_them_is_lost() {
        let mut output = Output::new(MonoMs(0));
        let long = vec![b'x'; MAX_LOG_LINE_BYTES * 2 + 5];
        for piece in long.chunks(777) {
            output.push(MonoMs(0), Stream::Stdout, piece);
        }
        output.push(MonoMs(0), Stream::Stdout, b"\n");
        let lengths: Vec<_> = drain(&mut output)
            .into_iter()
            .map(|line| match line {
                Line::Text { text, .. } => text.len(),
                Line::Lost(_) => 0,
            })
            .collect();
        assert_eq!(lengths, [MAX_LOG_LINE_BYTES, MAX_LOG_LINE_BYTES, 5]);
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted_in_its_place() {
        let mut output = Output::new(MonoMs(0));
        for _ in 0..MAX_WAITING_LINES + 10 {
            output.push(MonoMs(0), Stream::Stdout, b"a\n");
        }
        for _ in 0..5 {
            output.taken();
        }
        output.push(MonoMs(0), Stream::Stdout, b"b\n");
        let lines = drain(&mut output);
        assert_eq!(lines.len(), MAX_WAITING_LINES - 5 + 2);
        assert_eq!(lines[lines.len() - 2..], [Line::Lost(10), text(Stream::Stdout, "b")]);
    }

    #[test]
    fn a_flood_is_held_to_the_rate() {
        let mut output = Output::new(MonoMs(0));
        let mut got = 0;
        for ms in 0..10_000 {
            output.push(MonoMs(ms), Stream::Stderr, b"x\nx\nx\nx\nx\n");
            got += drain(&mut output).iter().filter(|line| matches!(line, Line::Text { .. })).count() as u64;
        }
        let (least, most) = (BURST + 9 * RATE_PER_S, BURST + 10 * RATE_PER_S);
        assert!((least..=most).contains(&got), "{got}");
    }
}
