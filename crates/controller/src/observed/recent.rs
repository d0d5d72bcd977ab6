// SPDX-License-Identifier: Apache-2.0
//! The newest events in memory, for those who watch.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use super::Event;
use crate::node::lock;

/// Events kept in memory. Who is further behind is served from disk.
const MAX_RECENT: usize = 4096;

/// Why what was asked for is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Older than what is in memory.
    OnDisk,
    /// Later than the newest: the number is of another history.
    Future,
}

#[derive(Debug)]
pub struct Recent {
    events: Mutex<VecDeque<Event>>,
    newest: watch::Sender<u64>,
}

impl Recent {
    pub(super) fn new() -> Recent {
        Recent { events: Mutex::default(), newest: watch::channel(0).0 }
    }

    /// Enters an event that is stored.
    pub(super) fn push(&self, event: Event) {
        let sequence = event.sequence;
        let mut events = lock(&self.events);
        events.push_back(event);
        if events.len() > MAX_RECENT {
            events.pop_front();
        }
        drop(events);
        self.newest.send_replace(sequence);
    }

    /// Everything after a sequence number.
    pub(crate) fn since(&self, sequence: u64) -> Result<Vec<Event>, Behind> {
        let events = lock(&self.events);
        let newest = events.back().map_or(0, |event| event.sequence);
        match events.front() {
            _ if sequence > newest => Err(Behind::Future),
            Some(first) if first.sequence > sequence + 1 => Err(Behind::OnDisk),
            _ => Ok(events.iter().filter(|event| event.sequence > sequence).cloned().collect()),
        }
    }

    /// Wakes at every new event.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_memory_is_on_disk_or_of_another_history() {
        let recent = Recent::new();
        assert_eq!(recent.since(0), Ok(Vec::new()));
        assert_eq!(recent.since(1), Err(Behind::Future));
        let event = |sequence| Event {
            sequence,
            at_ms: 0,
            object: "app/a".into(),
            reason: "Created".into(),
            message: String::new(),
        };
        (1..=MAX_RECENT as u64 + 1).for_each(|sequence| recent.push(event(sequence)));
        assert_eq!(recent.since(0), Err(Behind::OnDisk));
        assert_eq!(recent.since(1).map(|events| events.len()), Ok(MAX_RECENT));
        assert_eq!(recent.since(MAX_RECENT as u64 + 1), Ok(Vec::new()));
    }
}
