// SPDX-License-Identifier: Apache-2.0
//! Log lines of this process, from any thread, to the process log.
//!
//! A line never waits: while log is full or being restarted, up to [`QUEUE_LINES`] lines are kept and the rest are
//! counted as lost. Before the process was taken over, lines go to stderr, which init forwards. init itself is there before
//! log and after it: it shows its lines to a human itself ([`show`]).

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::boot::{LogFrame, LogOrigin};
use ipc::frame::{Channel, FrameError};
use ipc::limits::MAX_LOG_LINE_BYTES;
use model::log::LogSeverity;
use model::time::WallTime;

use crate::clock;

/// Lines kept while log cannot take them: at most 2 MiB.
const QUEUE_LINES: usize = 256;

struct Sink {
    channel: Option<Arc<Channel>>,
    /// There is or will be a channel: stderr is not for lines any more.
    is_launched: bool,
    queue: VecDeque<LogFrame>,
    lost: u32,
    shown: Shown,
}

/// Which lines of this process are shown on its own stderr besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    None,
    /// Warnings and errors while there is no log to take them.
    WithoutLog,
    All,
}

static SINK: Mutex<Sink> = Mutex::new(Sink {
    channel: None,
    is_launched: false,
    queue: VecDeque::new(),
    lost: 0,
    shown: Shown::None,
});

pub fn error(text: Arguments<'_>) {
    write(LogSeverity::Error, text);
}

pub fn warn(text: Arguments<'_>) {
    write(LogSeverity::Warning, text);
}

pub fn info(text: Arguments<'_>) {
    write(LogSeverity::Info, text);
}

pub fn debug(text: Arguments<'_>) {
    write(LogSeverity::Debug, text);
}

/// One line of this process.
pub fn write(severity: LogSeverity, text: Arguments<'_>) {
    push(severity, text.to_string(), LogOrigin::Own);
}

/// For shims: one line of the app's console. False when there is no room: keep the line and read no further.
pub fn app_line(app_name: &str, severity: LogSeverity, content: &str) -> bool {
    if !has_room() {
        return false;
    }
    push(severity, content.to_string(), LogOrigin::App { name: app_name.into() });
    true
}

/// A line would not be lost.
pub fn has_room() -> bool {
    let mut sink = lock();
    sink.flush();
    sink.queue.len() < QUEUE_LINES
}

/// Cuts a line at the limit, at a character, and says so.
pub fn cut(mut line: String) -> String {
    const MARK: &str = " [cut]";
    if line.len() > MAX_LOG_LINE_BYTES {
        let end = line.floor_char_boundary(MAX_LOG_LINE_BYTES - MARK.len());
        line.truncate(end);
        line.push_str(MARK);
    }
    line
}

/// For init: one line that a service wrote to its stderr.
pub fn service_line(service: &str, content: &str) {
    push(LogSeverity::Error, content.to_string(), LogOrigin::Service { name: service.into() });
}

/// From now on lines wait for a channel and do not go to stderr.
pub fn launched() {
    lock().is_launched = true;
}

/// For init: what of its lines goes to stderr, in the form of [`human_line`].
pub fn show(shown: Shown) {
    lock().shown = shown;
}

/// A line for a human who looks on. The time is UTC, to the microsecond: fine enough to see what waited for what.
pub fn human_line(at: WallTime, source: &str, severity: LogSeverity, content: &str) -> String {
    let severity = match severity {
        LogSeverity::Debug => "debug",
        LogSeverity::Info => "info",
        LogSeverity::Warning => "warn",
        LogSeverity::Error => "error",
    };
    let second = at.seconds.rem_euclid(24 * 60 * 60);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let micros = at.nanos / 1_000;
    format!("{hour:02}:{minute:02}:{second:02}.{micros:06} {source:<8} {severity:<5} {content}\n")
}

/// The channel to log; replaces the one before.
pub fn install(channel: Channel) {
    let mut sink = lock();
    sink.channel = Some(Arc::new(channel));
    sink.flush();
}

/// Sends what waits, as far as it goes.
pub fn flush() {
    lock().flush();
}

/// True while lines wait for a channel that is full.
pub fn is_waiting() -> bool {
    let sink = lock();
    sink.channel.is_some() && !sink.queue.is_empty()
}

fn push(severity: LogSeverity, content: String, origin: LogOrigin) {
    let mut sink = lock();
    if !sink.is_launched {
        drop(sink);
        // stderr may be closed; a lost line is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{severity:?}: {content}");
        return;
    }
    sink.flush();
    let (at, content) = (clock::wall_time(), cut(content));
    let is_shown = match sink.shown {
        Shown::None => false,
        Shown::WithoutLog => sink.channel.is_none() && severity >= LogSeverity::Warning,
        Shown::All => true,
    };
    if is_shown {
        let source = if let LogOrigin::Service { name } = &origin { name } else { "init" };
        // As above.
        let _ = std::io::stderr().write_all(human_line(at, source, severity, &content).as_bytes());
    }
    if sink.queue.len() >= QUEUE_LINES {
        sink.lost = sink.lost.saturating_add(1);
        return;
    }
    let lost = std::mem::take(&mut sink.lost);
    sink.queue.push_back(LogFrame { severity, at, content, origin, lost });
    sink.flush();
}

impl Sink {
    fn flush(&mut self) {
        while let (Some(channel), Some(frame)) = (&self.channel, self.queue.front()) {
            match channel.try_send(frame, &[]) {
                Ok(true) => {
                    self.queue.pop_front();
                }
                Ok(false) => return,
                Err(FrameError::Closed | FrameError::Os { .. }) => self.channel = None,
                // The frame itself cannot be sent and never will.
                Err(_) => {
                    self.queue.pop_front();
                }
            }
        }
    }
}

fn lock() -> MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_a_human_has_the_time_of_day_in_utc() {
        let line = |seconds, nanos| human_line(WallTime { seconds, nanos }, "net", LogSeverity::Info, "up");
        assert_eq!(line(0, 0), "00:00:00.000000 net      info  up\n");
        assert_eq!(line(1_700_000_000, 1_234_999), "22:13:20.001234 net      info  up\n");
        assert_eq!(line(-1, 0), "23:59:59.000000 net      info  up\n");
    }

    #[test]
    fn a_long_line_is_cut_at_a_character() {
        let line = "é".repeat(MAX_LOG_LINE_BYTES);
        let cut = cut(line);
        assert!(cut.len() <= MAX_LOG_LINE_BYTES);
        assert!(cut.ends_with("é [cut]"));
    }
}
