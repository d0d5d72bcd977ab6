// SPDX-License-Identifier: Apache-2.0
//! The process log: takes lines of services and apps, keeps them in rings on disk, hands them out in batches.
//!
//! Every source has its own channel from init (kind `source`), so that it cannot speak as another one: its key is a
//! service's name, `init`, or `shim/<app id>`. Services share one ring, each app has its own; the largest ring pays
//! when the quota is used up, so a noisy app loses its own lines and nobody else's.

pub(crate) mod ring;
mod shelf;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use ipc::boot::{LogFrame, LogOrigin};
use ipc::calls::{Log, LogRequest};
use ipc::frame::{Channel, FrameError};
use ipc::limits::MAX_LOG_LINE_BYTES;
use model::id::AppId;
use model::log::LogSeverity;
use service::log::human_line;
use service::{ChannelEvent, Event, IncomingCall, Service, clock};

use shelf::{Line, Shelf, Stream};

/// Frames taken from one source in one go.
const TAKE_FRAMES: usize = 64;
/// Rounds of that at the end: more frames than the socket of a source holds; one that goes on writing is left.
const DRAIN_TAKES: usize = 32;
/// Lines reach the disk at the latest after this long.
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Bytes of all rings, unless the setting `log-quota-mib` says otherwise.
const QUOTA_BYTES: u64 = 32 << 20;

/// Why the process cannot work.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the manifest grants no directory")]
    NoDirectory,
    #[error("the directory of the rings cannot be used")]
    Directory(#[source] std::io::Error),
}

/// Serves until init asks to stop.
pub fn run(mut service: Service) -> Result<(), LogError> {
    let dir = service.dirs().state.clone().ok_or(LogError::NoDirectory)?;
    let setting = |name: &str| service.settings().get(name).map(String::as_str);
    let quota = setting("log-quota-mib").and_then(|mib| mib.parse::<u64>().ok());
    let quota = quota.map_or(QUOTA_BYTES, |mib| mib << 20);
    let is_verbose = setting("verbose").is_some();
    let shelf = Shelf::open(&dir, quota, clock::wall_time()).map_err(LogError::Directory)?;
    let mut log = Logs { shelf, sources: BTreeMap::new(), is_verbose };
    let mut sync_at = None;
    loop {
        match service.next(sync_at) {
            Event::Channel(ChannelEvent::Opened { key, channel, .. }) => {
                log.sources.insert(key, channel);
            }
            Event::Channel(ChannelEvent::Readable { key, .. }) => drop(log.take(&key)),
            Event::Channel(ChannelEvent::Closed { key, .. }) => {
                log.sources.remove(&key);
                if let Some(app) = app_of(&key) {
                    log.shelf.app_ended(app);
                }
            }
            Event::Call(call) => log.answer(call),
            Event::Deadline => {
                sync_at = None;
                log.shelf.sync();
            }
            Event::Stop => {
                log.drain();
                log.shelf.sync();
                return Ok(());
            }
            Event::Topics(_)
            | Event::Channel(ChannelEvent::Writable { .. })
            | Event::Worker(())
            | Event::Readable(_) => {}
        }
        if sync_at.is_none() && log.shelf.is_dirty() {
            sync_at = Some(clock::mono().plus_ms(SYNC_AFTER.as_millis() as u64));
        }
    }
}

/// What is left in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    Perhaps,
}

struct Logs {
    shelf: Shelf,
    sources: BTreeMap<String, Arc<Channel>>,
    is_verbose: bool,
}

impl Logs {
    /// Lines that wait at the end of this process: whoever sent them counts them as written. From here on nobody can send
    /// another one: it is told so, and keeps the line for the next log.
    fn drain(&mut self) {
        for channel in self.sources.values() {
            // One whose other end is gone has nothing more to say.
            let _ = rustix::net::shutdown(channel.as_ref(), rustix::net::Shutdown::Read);
        }
        let keys: Vec<String> = self.sources.keys().cloned().collect();
        for key in keys {
            for _ in 0..DRAIN_TAKES {
                if self.take(&key) == Left::Nothing {
                    break;
                }
            }
        }
    }

    fn take(&mut self, key: &str) -> Left {
        let Some(channel) = self.sources.get(key).cloned() else { return Left::Nothing };
        for _ in 0..TAKE_FRAMES {
            match channel.try_recv::<LogFrame>() {
                Ok(Some((frame, _))) => self.keep(key, frame),
                Ok(None) | Err(FrameError::Closed) => return Left::Nothing,
                Err(error) => {
                    let content = format!("unreadable line of {key}: {error}");
                    self.write(Stream::Device, "log", LogSeverity::Error, content);
                }
            }
        }
        Left::Perhaps
    }

    fn keep(&mut self, key: &str, frame: LogFrame) {
        let (stream, source) = match (app_of(key), frame.origin) {
            (Some(app), LogOrigin::App { name }) => (Stream::App { app, name }, app.to_string()),
            (Some(app), _) => (Stream::Device, format!("shim {app}")),
            (None, LogOrigin::Service { name }) if key == "init" => (Stream::Device, name),
            (None, _) => (Stream::Device, key.to_string()),
        };
        if frame.lost > 0 {
            let content = format!("{} lines of {source} were lost", frame.lost);
            self.write(Stream::Device, "log", LogSeverity::Warning, content);
        }
        let content = cut(frame.content);
        let line = Line { severity: frame.severity, at: frame.at, source, content };
        // init shows its own: they are there when this process is not.
        if key != "init" {
            self.show(&line);
        }
        self.shelf.push(&stream, line);
    }

    fn write(&mut self, stream: Stream, source: &str, severity: LogSeverity, content: String) {
        let line = Line { severity, at: clock::wall_time(), source: source.into(), content };
        self.show(&line);
        self.shelf.push(&stream, line);
    }

    fn show(&self, line: &Line) {
        if self.is_verbose {
            let text = human_line(line.at, &line.source, line.severity, &line.content);
            // Only for a human who looks on; it may be gone.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
    }

    fn answer(&mut self, call: IncomingCall) {
        let reply = match call.decode::<Log>() {
            Ok(LogRequest::Next) => self.shelf.next_batch(),
            Ok(LogRequest::Taken { batch }) => self.shelf.taken(batch),
            // An unreadable question has no answer: its asker gives up at its time-out.
            Err(_) => return,
        };
        // An asker that is gone asks again.
        let _ = call.reply::<Log>(&reply, &[]);
    }
}

/// A process that keeps to the rules cuts its own lines; one that was taken over does not.
fn cut(mut content: String) -> String {
    if content.len() > MAX_LOG_LINE_BYTES {
        content.truncate(content.floor_char_boundary(MAX_LOG_LINE_BYTES));
    }
    content
}

fn app_of(key: &str) -> Option<AppId> {
    key.strip_prefix("shim/")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_over_the_limit_is_cut_between_letters() {
        assert_eq!(cut("short".into()), "short");
        let long = cut("ä".repeat(MAX_LOG_LINE_BYTES));
        assert!(long.len() <= MAX_LOG_LINE_BYTES && long.chars().all(|c| c == 'ä'));
    }
}
