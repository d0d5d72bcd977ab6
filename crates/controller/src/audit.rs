// SPDX-License-Identifier: Apache-2.0
//! Who changed what, when, by which plan, from where; and who was refused.
//!
//! An entry is written in the same commit as the change it tells of: there is no change without an entry, and none of a
//! change that did not happen. Values are cut, lists are counted where they are long; secrets never stand here. The last
//! [`MAX_CHANGES`] changes and the last [`MAX_REFUSALS`] refusals are kept, apart from each other, so that nobody can wash
//! out the one with the other.
//!
//! Keys: `PROJECT/audit/change/SEQUENCE` and `PROJECT/audit/refusal/SEQUENCE`, with one sequence for both.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use controller_core::plan::{FieldChange, Op};
use controller_core::resource::DEFAULT_PROJECT;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::access::{Caller, Role};
use crate::change::Plan;
use crate::node::lock;
use crate::state::{StateError, now_ms, to_bytes};
use crate::store::{Store, StoreError, Txn};

/// Version of the stored form.
const FORMAT: u32 = 1;
/// Changes kept: three years of ten a day.
const MAX_CHANGES: usize = 10_000;
/// Refusals kept.
const MAX_REFUSALS: usize = 2_000;
/// Refusals entered a minute; what is more is counted in the next entry. Each costs a write to the disk.
const REFUSALS_PER_MINUTE: u32 = 30;
/// Objects told in one entry.
const MAX_OBJECTS: usize = 100;
/// Fields told of one object.
const MAX_FIELDS: usize = 40;
/// Characters of a value.
const MAX_VALUE_CHARS: usize = 200;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    Apply,
    CreateToken,
    RevokeToken,
    Backup,
    Restore,
    CollectImages,
    /// Not done: the role of the caller does not allow it.
    Refused,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub format: u32,
    #[serde(default)]
    pub sequence: u64,
    pub at_ms: i64,
    /// Name of the token.
    pub who: String,
    pub role: Role,
    /// Address the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<AuditedObject>,
    /// Objects left out of the list.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_objects: usize,
    /// Devices whose config changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub devices: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What was done to one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuditedObject {
    pub op: Op,
    /// `app/hello`.
    pub object: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_fields: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Entry {
    /// An entry about something other than objects.
    pub(crate) fn new(caller: &Caller, action: Action, detail: impl Into<String>) -> Entry {
        Entry {
            format: FORMAT,
            sequence: 0,
            at_ms: now_ms(),
            who: caller.name.to_string(),
            role: caller.role,
            from: caller.from.map(|address| address.to_string()),
            action,
            plan: None,
            objects: Vec::new(),
            more_objects: 0,
            devices: 0,
            detail: detail.into(),
        }
    }

    /// An entry about a restore: done on the controller's host, with no token.
    pub(crate) fn of_restore(detail: String) -> Entry {
        let caller = Caller::local();
        Entry::new(&caller, Action::Restore, detail)
    }

    /// An entry about a plan that is carried out.
    pub(crate) fn of_plan(caller: &Caller, plan: &Plan) -> Entry {
        let short = |field: &FieldChange| FieldChange {
            path: cut(&field.path),
            from: field.from.as_deref().map(cut),
            to: field.to.as_deref().map(cut),
        };
        let objects = plan.objects.iter().take(MAX_OBJECTS).map(|change| AuditedObject {
            op: change.op,
            object: format!("{}/{}", change.kind.singular(), change.name),
            fields: change.fields.iter().take(MAX_FIELDS).map(short).collect(),
            more_fields: change.fields.len().saturating_sub(MAX_FIELDS),
        });
        Entry {
            plan: Some(plan.hash.clone()),
            objects: objects.collect(),
            more_objects: plan.objects.len().saturating_sub(MAX_OBJECTS),
            devices: plan.devices.len(),
            ..Entry::new(caller, Action::Apply, "")
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    changes: VecDeque<u64>,
    refusals: VecDeque<u64>,
    /// The minute refusals are counted in, how many it had, and how many were not entered.
    minute: i64,
    in_minute: u32,
    suppressed: u32,
}

#[derive(Debug)]
pub struct Audit {
    store: Arc<dyn Store>,
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

fn prefix(action: Action) -> String {
    let class = if action == Action::Refused { "refusal" } else { "change" };
    format!("{DEFAULT_PROJECT}/audit/{class}/")
}

fn key(action: Action, sequence: u64) -> String {
    format!("{}{sequence:020}", prefix(action))
}

impl Audit {
    pub(crate) fn open(store: Arc<dyn Store>) -> Result<Audit, StoreError> {
        let sequences = |action| -> Result<VecDeque<u64>, StoreError> {
            let entries = store.range(&prefix(action))?;
            Ok(entries.iter().filter_map(|(key, _)| key.rsplit('/').next()?.parse().ok()).collect())
        };
        let (changes, refusals) = (sequences(Action::Apply)?, sequences(Action::Refused)?);
        let last = changes.back().max(refusals.back()).copied().unwrap_or(0);
        let kept = Kept { next: last + 1, changes, refusals, ..Kept::default() };
        Ok(Audit { store, kept: Mutex::new(kept), newest: watch::channel(last).0 })
    }

    /// Commits a change together with its entry. Gives the revision of the commit. Blocks.
    pub(crate) fn commit(&self, mut txn: Txn, mut entry: Entry) -> Result<u64, StateError> {
        let mut kept = lock(&self.kept);
        entry.sequence = kept.next;
        txn.puts.push((key(entry.action, entry.sequence), to_bytes(&entry)));
        let (sequences, max) = match entry.action {
            Action::Refused => (&mut kept.refusals, MAX_REFUSALS),
            _ => (&mut kept.changes, MAX_CHANGES),
        };
        let dropped = (sequences.len() >= max).then(|| sequences.front().copied()).flatten();
        txn.deletes.extend(dropped.map(|sequence| key(entry.action, sequence)));
        let revision = self.store.commit(&txn)?;
        if dropped.is_some() {
            sequences.pop_front();
        }
        sequences.push_back(entry.sequence);
        kept.next += 1;
        drop(kept);
        self.newest.send_replace(entry.sequence);
        Ok(revision)
    }

    /// Enters a refusal, unless too many were in this minute. Blocks.
    pub(crate) fn refused(&self, caller: &Caller, what: &str) -> Result<(), StateError> {
        let mut entry = Entry::new(caller, Action::Refused, what);
        {
            let mut kept = lock(&self.kept);
            let minute = entry.at_ms / 60_000;
            if kept.minute != minute {
                (kept.minute, kept.in_minute) = (minute, 0);
            }
            if kept.in_minute >= REFUSALS_PER_MINUTE {
                kept.suppressed = kept.suppressed.saturating_add(1);
                return Ok(());
            }
            kept.in_minute += 1;
            let suppressed = std::mem::take(&mut kept.suppressed);
            if suppressed > 0 {
                entry.detail.push_str(&format!(" (and {suppressed} more refusals before)"));
            }
        }
        self.commit(Txn::default(), entry).map(drop)
    }

    /// Entries after a sequence number, oldest first, at most `limit`. Blocks.
    pub(crate) fn after(&self, sequence: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let mut entries: Vec<Entry> = Vec::new();
        for action in [Action::Apply, Action::Refused] {
            let page = self.store.page(&prefix(action), &key(action, sequence), limit)?;
            // One that cannot be read was written by a later version; what comes after it can.
            entries.extend(
                page.iter().filter_map(|(_, entry)| serde_json::from_slice::<Entry>(&entry.value).ok()),
            );
        }
        entries.sort_by_key(|entry| entry.sequence);
        entries.truncate(limit);
        Ok(entries)
    }

    /// The number from which `count` entries follow.
    pub(crate) fn tail(&self, count: usize) -> u64 {
        let kept = lock(&self.kept);
        let mut all: Vec<u64> = kept.changes.iter().rev().take(count).copied().collect();
        all.extend(kept.refusals.iter().rev().take(count));
        all.sort_unstable();
        let first = all.len().saturating_sub(count);
        all.get(first).map_or_else(|| kept.next.saturating_sub(1), |sequence| sequence.saturating_sub(1))
    }

    /// Wakes at every new entry.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SqliteStore;

    fn caller() -> Caller {
        Caller::new("alice", Role::Operator)
    }

    #[test]
    fn the_last_entries_are_kept_and_refusals_do_not_wash_out_changes() {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::in_memory().unwrap());
        let audit = Audit::open(store.clone()).unwrap();
        audit.commit(Txn::default(), Entry::new(&caller(), Action::CreateToken, "first")).unwrap();
        lock(&audit.kept).refusals = (1000..1000 + MAX_REFUSALS as u64).collect();
        for _ in 0..1000 {
            audit.refused(&caller(), "POST apply").unwrap();
        }
        let all = audit.after(0, 9999).unwrap();
        assert_eq!((all[0].detail.as_str(), all[0].sequence), ("first", 1));
        assert!((30..=60).contains(&(all.len() - 1)), "{} refusals", all.len() - 1);
        assert_eq!(lock(&audit.kept).refusals.len(), MAX_REFUSALS);
        let last = all.last().unwrap().sequence;
        assert_eq!(audit.after(last - 1, 10).unwrap().len(), 1);
        drop(audit);
        let audit = Audit::open(store).unwrap();
        audit.commit(Txn::default(), Entry::new(&caller(), Action::RevokeToken, "second")).unwrap();
        let newest = audit.after(audit.tail(1), 10).unwrap();
        assert_eq!((newest.len(), newest[0].detail.as_str(), newest[0].sequence), (1, "second", last + 1));
    }

    #[test]
    fn an_entry_of_a_commit_that_failed_is_not_there() {
        let store: Arc<dyn Store> = Arc::new(SqliteStore::in_memory().unwrap());
        let audit = Audit::open(store).unwrap();
        let stale = Txn { compares: vec![("p/a".into(), 7)], ..Txn::default() };
        audit.commit(stale, Entry::new(&caller(), Action::Backup, "")).unwrap_err();
        assert_eq!(audit.after(0, 10).unwrap(), []);
        assert_eq!(audit.tail(10), 0);
    }
}
