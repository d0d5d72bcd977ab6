// SPDX-License-Identifier: Apache-2.0
//! The part of the planner that decides about versions of the operating system: [`node_core::base_os`] with its one file.
//!
//! The file says into which version the box was told to start and what that has to reach. It is on disk before init is told. It
//! keeps its own format, apart from that of the apps: a version that is tried writes nothing that the one before cannot
//! read.

use std::collections::BTreeSet;
use std::io;

use ipc::client::Topics;
use ipc::topics;
use model::id::AppId;
use model::observed::RunState;
use model::status::ContentTreeStatus;
use model::time::MonoMs;
use node_core::base_os::{self, Inputs, Memory, Watch};
use service::files::{Files, replace};
use service::log;

use super::state::checksum;

const NAME: &str = "base-os";
const MAGIC: &[u8; 7] = b"SELVUPD";
const FORMAT: u8 = 1;
/// A larger file is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Wait after a failed write.
const RETRY_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct BaseOsPlanner {
    files: Box<dyn Files>,
    memory: Memory,
    watch: Watch,
    /// What was published has been said once.
    is_synced: bool,
    /// Status of the content tree that is a version of the operating system.
    pub(super) content: Option<ContentTreeStatus>,
    /// When to decide again though nothing changed.
    pub(super) again: Option<MonoMs>,
}

/// What decisions depend on besides the topics, for the flight recorder: also whether all was said.
pub(super) type Snapshot = (Memory, Watch, bool, Option<ContentTreeStatus>);

impl BaseOsPlanner {
    pub(super) fn load(files: Box<dyn Files>) -> BaseOsPlanner {
        let memory = match read(&*files) {
            Ok(memory) => memory,
            Err(what) => {
                log::warn(format_args!("what was known of updates is dropped: {what}"));
                Memory::default()
            }
        };
        BaseOsPlanner::restore(files, (memory, Watch::default(), false, None))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        (self.memory.clone(), self.watch.clone(), self.is_synced, self.content.clone())
    }

    pub(super) fn restore(
        files: Box<dyn Files>,
        (memory, watch, is_synced, content): Snapshot,
    ) -> BaseOsPlanner {
        BaseOsPlanner { files, memory, watch, is_synced, content, again: None }
    }

    pub(super) fn subscribe(topics: &mut impl Topics) {
        topics.subscribe::<topics::SlotsObserved>();
        topics.subscribe::<topics::UpdateObserved>();
        topics.subscribe::<topics::AgentObserved>();
    }

    /// Decides anew.
    pub(super) fn round(&mut self, topics: &mut impl Topics, wanted: &BTreeSet<AppId>, now: MonoMs) {
        self.again = self.decide(topics, wanted, now);
    }

    fn decide(&mut self, topics: &mut impl Topics, wanted: &BTreeSet<AppId>, now: MonoMs) -> Option<MonoMs> {
        let is_known =
            topics.is_synced::<topics::SlotsObserved>() && topics.is_synced::<topics::NodeObserved>();
        let is_complete = topics.is_synced::<topics::UpdateObserved>()
            && topics.is_synced::<topics::AgentObserved>()
            && topics.is_synced::<topics::AppObserved>();
        let slots = topics.get::<topics::SlotsObserved>("");
        let is_on_trial = slots.as_ref().is_some_and(|slots| slots.own().tries.is_some());
        // a version on trial is judged also when a service is never there; nothing else is decided before all is
        if !is_known || !(is_complete || is_on_trial) {
            return None;
        }
        let config = topics.get::<topics::Config>("");
        let update = topics.get::<topics::UpdateObserved>("");
        let agent = topics.get::<topics::AgentObserved>("");
        let apps = topics.all::<topics::AppObserved>().into_values();
        let running = apps.filter(|app| matches!(app.state, RunState::Running { .. })).map(|app| app.app);
        let inputs = Inputs {
            now,
            config: config.as_ref(),
            slots: slots.as_ref(),
            update: update.as_ref(),
            agent: agent.as_ref(),
            running: &running.collect(),
            wanted,
            start: topics.get::<topics::NodeObserved>("").map_or(0, |node| node.restart_counter),
        };
        let plan = base_os::plan(inputs, &self.memory, &self.watch);
        if plan.memory != self.memory {
            if let Err(error) = write(&*self.files, &plan.memory) {
                log::error(format_args!("nothing is done about versions, {NAME} cannot be written: {error}"));
                return Some(now.plus_ms(RETRY_MS));
            }
            self.say(&plan.memory);
        }
        (self.memory, self.watch, self.content) = (plan.memory, plan.watch, plan.content);
        topics.publish::<topics::BootDesired>("", &plan.boot);
        match &plan.update {
            Some(update) => topics.publish::<topics::UpdateDesired>("", update),
            None => topics.remove::<topics::UpdateDesired>(""),
        }
        match &plan.status {
            Some(status) => topics.publish::<topics::BaseOsStatus>("", status),
            None => topics.remove::<topics::BaseOsStatus>(""),
        }
        if !self.is_synced {
            self.is_synced = true;
            topics.synced::<topics::BootDesired>();
            topics.synced::<topics::UpdateDesired>();
            topics.synced::<topics::BaseOsStatus>();
        }
        plan.deadline
    }

    fn say(&self, next: &Memory) {
        match (&self.memory.trial, &next.trial) {
            (None, Some(trial)) => log::info(format_args!("version {} is to be tried", trial.version)),
            (Some(trial), None) if next.failed.is_none() => {
                log::info(format_args!("version {} stays", trial.version));
            }
            _ => {}
        }
        if let Some(failed) = next.failed.as_ref().filter(|_| next.failed != self.memory.failed) {
            log::error(format_args!("version {}: {}", failed.version, failed.fault));
        }
    }
}

fn read(files: &dyn Files) -> Result<Memory, String> {
    let bytes = match files.read(NAME, FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
        Err(error) => return Err(error.to_string()),
    };
    let torn = || format!("the file {NAME} is torn, or not ours");
    let (format, rest) = bytes.strip_prefix(MAGIC).and_then(<[u8]>::split_first).ok_or_else(torn)?;
    if *format != FORMAT {
        return Err(format!("the file {NAME} has format {format}, this version reads {FORMAT}"));
    }
    let (sum, body) = rest.split_at_checked(8).ok_or_else(torn)?;
    if checksum(body).to_be_bytes() != sum {
        return Err(torn());
    }
    postcard::from_bytes(body).map_err(|_| torn())
}

fn write(files: &dyn Files, memory: &Memory) -> io::Result<()> {
    let body = postcard::to_allocvec(memory).map_err(io::Error::other)?;
    let whole = [&MAGIC[..], &[FORMAT], &checksum(&body).to_be_bytes(), &body].concat();
    replace(files, "", NAME, &whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::files::Directory;
    use std::fs;

    #[test]
    fn what_is_known_of_a_trial_comes_back_and_a_torn_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let files = Directory::new(dir.path());
        assert_eq!(read(&files), Ok(Memory::default()));
        let trial = base_os::Trial {
            version: "2.0".into(),
            retry_counter: 3,
            start: 7,
            had_controller: true,
            apps: BTreeSet::new(),
            verdict: None,
        };
        let memory = Memory { trial: Some(trial), failed: None, update_counter: 1 };
        write(&files, &memory).unwrap();
        assert_eq!(read(&files), Ok(memory));
        let whole = fs::read(dir.path().join(NAME)).unwrap();
        for length in 0..whole.len() {
            fs::write(dir.path().join(NAME), &whole[..length]).unwrap();
            assert!(read(&files).is_err(), "{length}");
        }
    }
}
