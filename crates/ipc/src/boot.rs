// SPDX-License-Identifier: Apache-2.0
//! What init and a process say to each other over the one pair the process inherits.
//!
//! ```text
//! init ─ Launch ─ Channel* ─ Fd* ─ Go ──────────────── Channel (replaces one of the same role) … ─ Stop
//! process                             confined ─ Ready                                                └ exits
//! ```
//!
//! From Ready on init asks now and then with Ping and waits for the Pong of the process's main loop. Without init a
//! service ends: it sees its end of the pair closed. A process that outlives init ([`crate::manifest::Manifest::outlives_init`])
//! holds a duplicate of init's own end at [`RETURN_FD`]: the pair stays whole, and the next init takes that duplicate.

use std::collections::BTreeMap;

use model::log::LogSeverity;
use model::time::WallTime;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;

/// The descriptor a process finds its end at.
pub const INIT_FD: i32 = 3;
/// Where a process that outlives init holds init's own end of the pair, for the next init to take. It never uses it.
pub const RETURN_FD: i32 = 4;

#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    Launch(Box<Launch>),
    /// With one descriptor.
    Channel(Role),
    /// With one descriptor that is no channel, for `Service::fd`.
    Fd {
        name: String,
    },
    /// All that stands now has been handed over.
    Go,
    /// To be answered by the main loop: a process that does not is broken.
    Ping,
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// Confined; the main loop begins.
    Ready,
    Pong,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    pub manifest: Manifest,
    /// Which instance of a template: the app id. Else empty.
    pub key: String,
    pub settings: BTreeMap<String, String>,
    /// For bus alone: topics each service may read.
    pub readers: BTreeMap<String, Vec<String>>,
}

/// What a channel is for. A new one replaces the one of the same role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// To the bus.
    Bus,
    /// To the log.
    Log,
    /// Calls this process makes.
    CallTo { callee: String },
    /// Calls this process answers.
    CallFrom { service: String, key: String },
    /// Handed to the process as it is: `client` of the bus, `source` of the log, `shim`, `run`.
    Raw { kind: String, key: String },
}

/// Frames of a call channel.
#[derive(Debug, Serialize, Deserialize)]
pub struct CallFrame<'a> {
    /// Counted by the caller; the answer carries the same.
    pub id: u64,
    #[serde(borrow)]
    pub body: std::borrow::Cow<'a, [u8]>,
}

/// Frames of a log channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFrame {
    pub severity: LogSeverity,
    pub at: WallTime,
    /// One line, at most [`crate::limits::MAX_LOG_LINE_BYTES`].
    pub content: String,
    pub origin: LogOrigin,
    /// Lines lost before this one.
    pub lost: u32,
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogOrigin {
    /// The process itself.
    Own,
    /// A shim: its app wrote it to its console.
    App { name: String },
    /// init: this service wrote it to stderr.
    Service { name: String },
}
