// SPDX-License-Identifier: Apache-2.0
//! Log lines of services and apps.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::time::WallTime;

/// error: someone must act; warning: odd but handled; info: state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogSeverity {
    Debug,
    Info,
    Warning,
    Error,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Counts the lines of one source; gaps are lost lines.
    pub number: u64,
    pub severity: LogSeverity,
    /// Service name, or the app's id.
    pub source: String,
    pub content: String,
    pub at: WallTime,
}
