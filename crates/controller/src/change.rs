// SPDX-License-Identifier: Apache-2.0
//! Plans and applies changes of intent. Both run the same code; an apply is a plan that is committed.
//!
//! A plan's hash covers the change of every object with the version it was computed from, and the change of every
//! device's config. An apply that names a hash is refused when its own plan has another one.

use std::collections::BTreeSet;
use std::sync::Arc;

use controller_core::affected::Affected;
use controller_core::flatten::{digest, flatten};
use controller_core::intent::Intent;
use controller_core::ledger::Ledger;
use controller_core::plan::{FieldChange, ObjectChange, Op, diff};
use controller_core::resource::Kind;
use controller_core::validate::{Problem, problems};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::access::Caller;
use crate::audit::Entry;
use crate::node::{ConfigState, Published, lock};
use crate::objects::{DocumentError, Sent, Stored};
use crate::observed::Event;
use crate::state::{
    Changing, Controller, OnboardingKey, Project, Rendered, StateError, incarnation_key, ledger_key,
    node_key, object_key, onboarding_key, to_bytes,
};
use crate::store::Txn;

/// Objects in one change.
pub(crate) const MAX_OBJECTS: usize = 10_000;

/// Devices whose changes are told to the field; of more, the changed objects are named.
const MAX_DETAILED: usize = 100;

/// Plans remembered, so that they can be applied by their hash alone.
const MAX_PLANNED: usize = 32;

/// What is to be changed, all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub puts: Vec<Sent>,
    pub deletes: Vec<(Kind, String)>,
}

impl Change {
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }
}

/// What a change does: to objects, and to the config of each device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Give it to apply, so that nothing else happens than was shown.
    pub hash: String,
    pub objects: Vec<IntentChange>,
    /// Devices whose config changes.
    pub devices: Vec<DeviceChange>,
    /// What may be meant otherwise.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Nothing changes.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.devices.is_empty()
    }
}

/// Change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IntentChange {
    pub op: Op,
    pub kind: Kind,
    pub name: String,
    pub fields: Vec<FieldChange>,
    /// Version the plan was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

/// Change of one device's config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceChange {
    pub name: String,
    pub id: Uuid,
    /// The device is deleted: it keeps what it runs and is refused from then on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_deleted: bool,
    pub changes: Vec<ObjectChange>,
    /// The plan is long: fields of this device's changes are left out. The hash covers them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_shortened: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{kind}/{name}: {source}", kind = kind.singular())]
    Document {
        kind: Kind,
        name: String,
        #[source]
        source: DocumentError,
    },
    #[error("{}/{name} stands twice in the change", kind.singular())]
    Twice { kind: Kind, name: String },
    #[error("more than {MAX_OBJECTS} objects in one change")]
    TooMany,
    #[error("{}/{name} does not exist", kind.singular())]
    NotFound { kind: Kind, name: String },
    #[error("{}/{name} has resourceVersion {found}, not {expected}", kind.singular())]
    Conflict { kind: Kind, name: String, expected: String, found: String },
    #[error("the intent would not be sound")]
    Unsound(Vec<Problem>),
    #[error("something the plan has read has changed since")]
    Stale(Box<Plan>),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Everything an apply needs after the plan.
struct Prepared {
    plan: Plan,
    intent: Intent,
    puts: Vec<Stored>,
    deletes: Vec<(Kind, String, Uuid)>,
    /// Configs that differ from what is published; none when only a plan is wanted.
    configs: Vec<(Uuid, Ledger, Rendered)>,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To be read.
    Plan,
    /// To be carried out.
    Apply,
}

impl Controller {
    /// What a change would do. Blocks.
    pub fn plan(&self, change: &Change) -> Result<Plan, ChangeError> {
        let plan = self.prepare(&self.snapshot(), change, Purpose::Plan)?.plan;
        let mut planned = lock(&self.planned);
        planned.retain(|(hash, _)| *hash != plan.hash);
        planned.push_back((plan.hash.clone(), change.clone()));
        if planned.len() > MAX_PLANNED {
            planned.pop_front();
        }
        Ok(plan)
    }

    /// The change that was planned under a hash, as long as it is remembered.
    pub fn planned(&self, hash: &str) -> Option<Change> {
        lock(&self.planned).iter().find(|(planned, _)| planned == hash).map(|(_, change)| change.clone())
    }

    /// Does a change. Blocks.
    pub fn apply(
        &self,
        caller: &Caller,
        change: &Change,
        expected: Option<&str>,
    ) -> Result<Plan, ChangeError> {
        let changing = self.changing();
        let prepared = self.prepare(&self.snapshot(), change, Purpose::Apply)?;
        if expected.is_some_and(|hash| hash != prepared.plan.hash) {
            return Err(ChangeError::Stale(Box::new(prepared.plan)));
        }
        self.carry_out(&changing, caller, prepared)
    }

    fn prepare(&self, project: &Project, change: &Change, purpose: Purpose) -> Result<Prepared, ChangeError> {
        if change.puts.len() + change.deletes.len() > MAX_OBJECTS {
            return Err(ChangeError::TooMany);
        }
        let mut intent = Intent::clone(&project.intent);
        let mut out = Prepared {
            plan: Plan::default(),
            intent: Intent::default(),
            puts: Vec::new(),
            deletes: Vec::new(),
            configs: Vec::new(),
        };
        let mut seen = BTreeSet::new();
        let now = jiff::Timestamp::now().to_string();
        for sent in &change.puts {
            let (kind, name) = (sent.kind, sent.metadata.name.clone());
            if !seen.insert((kind, name.clone())) {
                return Err(ChangeError::Twice { kind, name });
            }
            let old = project.stored.get(&(kind, name.clone()));
            check_version(sent, old)?;
            let new = match old {
                Some(old) => old.updated(sent),
                None => Some(Stored::new(sent, self.new_uid(project, kind, &name), now.clone())),
            };
            let Some(new) = new else { continue };
            let typed =
                new.object().map_err(|source| ChangeError::Document { kind, name: name.clone(), source })?;
            intent.put(typed);
            out.plan.objects.push(self.intent_change(old, Some(&new)));
            out.puts.push(new);
        }
        for (kind, name) in &change.deletes {
            if !seen.insert((*kind, name.clone())) {
                return Err(ChangeError::Twice { kind: *kind, name: name.clone() });
            }
            let Some(old) = project.stored.get(&(*kind, name.clone())) else {
                return Err(ChangeError::NotFound { kind: *kind, name: name.clone() });
            };
            intent.remove(*kind, name);
            out.plan.objects.push(self.intent_change(Some(old), None));
            out.deletes.push((*kind, name.clone(), old.uid));
        }
        let problems = problems(&intent);
        if !problems.is_empty() {
            return Err(ChangeError::Unsound(problems));
        }
        self.device_changes(project, &intent, purpose, &mut out)?;
        out.plan.warnings = warnings(&intent, &out.puts);
        out.intent = intent;
        Ok(out)
    }

    /// The uid of a new object. A plan and the apply after it must agree on it, and an object that comes after a deleted
    /// one of its name must have another: so it follows from kind, name and how often the name was deleted.
    fn new_uid(&self, project: &Project, kind: Kind, name: &str) -> Uuid {
        let incarnation = project.incarnations.get(&(kind, name.to_owned())).copied().unwrap_or(0);
        let text = format!("uid/{}/{name}/{incarnation}", kind.singular());
        let tag = ring::hmac::sign(&self.ca.iv_key, text.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&tag.as_ref()[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    fn intent_change(&self, old: Option<&Stored>, new: Option<&Stored>) -> IntentChange {
        let fields = |stored: Option<&Stored>| -> Vec<(String, String)> {
            stored
                .map(|s| {
                    let mut fields = flatten(&s.labels);
                    fields.iter_mut().for_each(|(path, _)| path.insert_str(0, "metadata.labels."));
                    let mut spec = flatten(&s.plan_spec(&self.ca.iv_key));
                    spec.iter_mut().for_each(|(path, _)| path.insert_str(0, "spec."));
                    fields.extend(spec);
                    fields
                })
                .unwrap_or_default()
        };
        let (before, after) = (fields(old), fields(new));
        let get = |list: &[(String, String)], path: &str| {
            list.iter().find(|(p, _)| p == path).map(|(_, text)| text.clone())
        };
        let mut paths: Vec<&String> = after.iter().chain(&before).map(|(path, _)| path).collect();
        let mut once = BTreeSet::new();
        paths.retain(|path| once.insert(path.as_str()));
        let changes = paths.into_iter().map(|path| FieldChange {
            path: path.clone(),
            from: get(&before, path),
            to: get(&after, path),
        });
        let any = new.or(old);
        IntentChange {
            op: match (old, new) {
                (None, _) => Op::Add,
                (Some(_), None) => Op::Remove,
                _ => Op::Change,
            },
            kind: any.map_or(Kind::App, Stored::kind),
            name: any.map(|s| s.name.clone()).unwrap_or_default(),
            fields: changes.filter(|change| change.from != change.to).collect(),
            resource_version: old.map(|s| s.revision.to_string()),
        }
    }

    /// Fills in the changes of devices, and the hash of the plan.
    fn device_changes(
        &self,
        project: &Project,
        intent: &Intent,
        purpose: Purpose,
        out: &mut Prepared,
    ) -> Result<(), ChangeError> {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(digest(&out.plan.objects).as_bytes());
        let names: BTreeSet<&String> = project.intent.devices.keys().chain(intent.devices.keys()).collect();
        let changed = out.plan.objects.iter().map(|change| (change.kind, change.name.as_str()));
        let affected = Affected::by(changed);
        for name in names {
            if !affected.includes(name, &[&project.intent, intent]) {
                continue;
            }
            let Some(id) =
                intent.devices.get(name).or_else(|| project.intent.devices.get(name)).map(|o| o.uid)
            else {
                continue;
            };
            let new = self.compute(intent, &project.ledgers, name);
            let last = project.ledgers.get(&id).map(|ledger| &ledger.digest);
            if new.as_ref().is_some_and(|new| Some(&new.ledger.digest) == last) {
                continue;
            }
            let old = self.compute(&project.intent, &project.ledgers, name);
            let digests = [&old, &new].map(|c| c.as_ref().map_or("", |c| c.ledger.digest.as_str()));
            if digests[0] == digests[1] {
                continue;
            }
            let is_shortened = out.plan.devices.len() >= MAX_DETAILED;
            let mut changes = diff(old.as_ref().map(|c| &c.config), new.as_ref().map(|c| &c.config));
            if is_shortened {
                changes.iter_mut().for_each(|change| change.fields = Vec::new());
            }
            // The digests cover both configs to the last field.
            hash.update(digest(&(name, id, digests)).as_bytes());
            let is_deleted = new.is_none();
            if let Some(mut new) = new {
                // What would crash devices is refused in a plan already.
                let rendered = self.render(name, &new)?;
                if purpose == Purpose::Apply {
                    new.ledger.publish(&rendered.hash);
                    out.configs.push((id, new.ledger, rendered));
                }
            }
            let name = name.clone();
            out.plan.devices.push(DeviceChange { name, id, is_deleted, changes, is_shortened });
        }
        out.plan.hash = hex::encode(hash.finish());
        Ok(())
    }

    fn carry_out(
        &self,
        changing: &Changing<'_>,
        caller: &Caller,
        prepared: Prepared,
    ) -> Result<Plan, ChangeError> {
        let Prepared { plan, intent, mut puts, deletes, configs } = prepared;
        let incarnations = self.with_project(|project| project.incarnations.clone());
        let mut txn = Txn::default();
        for stored in &puts {
            let key = object_key(stored.kind(), &stored.name);
            txn.compares.push((key.clone(), stored.revision));
            txn.puts.push((key, to_bytes(stored)));
            if stored.kind() == Kind::JoinToken && self.needs_onboarding_key(&intent, stored)? {
                let (cert_pem, key_pem) =
                    crate::ca::make_onboarding(&stored.name).map_err(StateError::from)?;
                let made = OnboardingKey { format: 1, cert_pem, key_pem };
                txn.puts.push((onboarding_key(stored.uid), to_bytes(&made)));
            }
        }
        for (kind, name, uid) in &deletes {
            txn.deletes.push(object_key(*kind, name));
            let next = incarnations.get(&(*kind, name.clone())).copied().unwrap_or(0) + 1;
            txn.puts.push((incarnation_key(*kind, name), to_bytes(&next)));
            match kind {
                Kind::Device => txn.deletes.extend([node_key(*uid), ledger_key(*uid)]),
                Kind::JoinToken => txn.deletes.push(onboarding_key(*uid)),
                _ => {}
            }
        }
        drop(incarnations);
        for (id, ledger, _) in &configs {
            txn.puts.push((ledger_key(*id), to_bytes(ledger)));
        }
        if txn == Txn::default() {
            return Ok(plan);
        }
        let sign = |(id, ledger, rendered)| Ok((id, ledger, Arc::new(self.sign(rendered)?)));
        let configs: Vec<(Uuid, Ledger, Arc<Published>)> =
            configs.into_iter().map(sign).collect::<Result<_, StateError>>()?;
        let revision = self.audit.commit(txn, Entry::of_plan(caller, &plan))?;
        let is_token =
            puts.iter().map(Stored::kind).chain(deletes.iter().map(|d| d.0)).any(|k| k == Kind::JoinToken);
        let ledgers: Vec<(Uuid, Ledger)> =
            configs.iter().map(|(id, ledger, _)| (*id, ledger.clone())).collect();
        changing.project(|project| {
            let all = Arc::make_mut(&mut project.stored);
            for stored in &mut puts {
                stored.revision = revision;
                let before = all.insert((stored.kind(), stored.name.clone()), stored.clone());
                let (kind, uid, name) = (stored.kind(), stored.uid, &*stored.name);
                match before.map(|before| before.labels == stored.labels) {
                    None => self.feed.added(kind, uid, name),
                    Some(true) => self.feed.modified(kind, uid, name),
                    Some(false) => self.feed.relabelled(kind, uid, name),
                }
            }
            for (kind, name, uid) in &deletes {
                if let Some(old) = all.remove(&(*kind, name.clone())) {
                    self.feed.deleted(*kind, *uid, name, &old.labels);
                }
                *Arc::make_mut(&mut project.incarnations).entry((*kind, name.clone())).or_default() += 1;
            }
            let all = Arc::make_mut(&mut project.ledgers);
            all.extend(ledgers);
            for (_, _, uid) in deletes.iter().filter(|(kind, _, _)| *kind == Kind::Device) {
                all.remove(uid);
            }
            project.intent = Arc::new(intent);
            self.index_devices(project);
            self.touch_status(project, &plan);
        });
        for (_, _, uid) in deletes.iter().filter(|(kind, _, _)| *kind == Kind::Device) {
            self.remove_node(*uid);
        }
        if is_token {
            self.reload_onboarding(&self.snapshot().intent)?;
        }
        for (id, _, published) in configs {
            self.publish(id, published);
        }
        self.observed.enter_events(events(&plan));
        Ok(plan)
    }

    /// The status of what was changed, and of every app when the devices are others: they may be chosen or not now.
    fn touch_status(&self, project: &Project, plan: &Plan) {
        for change in &plan.objects {
            if let Some(stored) = project.stored.get(&(change.kind, change.name.clone())) {
                self.feed.touch(change.kind, stored.uid);
            }
        }
        if plan.objects.iter().any(|change| change.kind == Kind::Device) {
            for app in project.intent.apps.values() {
                self.feed.touch(Kind::App, app.uid);
            }
        }
    }

    fn needs_onboarding_key(&self, intent: &Intent, stored: &Stored) -> Result<bool, StateError> {
        let has_own = intent.join_tokens.get(&stored.name).is_some_and(|t| t.spec.certificate.is_some());
        Ok(!has_own && self.onboarding_of(stored.uid)?.is_none())
    }

    /// The config a node gets now; computed when this is the first look since the start. Blocks then.
    pub fn config_state(&self, node: &crate::node::Node) -> Result<ConfigState, StateError> {
        let state = node.config.borrow().clone();
        match state {
            ConfigState::Unknown => self.republish(node.id).map(ConfigState::Published),
            known => Ok(known),
        }
    }
}

fn check_version(sent: &Sent, old: Option<&Stored>) -> Result<(), ChangeError> {
    let Some(expected) = &sent.metadata.resource_version else { return Ok(()) };
    let found = old.map_or_else(|| "none".into(), |stored| stored.revision.to_string());
    if *expected == found {
        return Ok(());
    }
    Err(ChangeError::Conflict {
        kind: sent.kind,
        name: sent.metadata.name.clone(),
        expected: expected.clone(),
        found,
    })
}

fn warnings(intent: &Intent, puts: &[Stored]) -> Vec<String> {
    let mut out = Vec::new();
    for stored in puts.iter().filter(|s| s.kind() == Kind::App) {
        let Some(app) = intent.apps.get(&stored.name) else { continue };
        if !intent.devices.values().any(|device| controller_core::intent::is_chosen(&app.spec, device)) {
            out.push(format!("app/{} is chosen for no device; see spec.devices and spec.selector", app.name));
        }
    }
    out
}

fn events(plan: &Plan) -> Vec<Event> {
    let at_ms = crate::state::now_ms();
    let event = |object: String, reason: &str, message: String| Event {
        sequence: 0,
        at_ms,
        object,
        reason: reason.into(),
        message,
    };
    let objects = plan.objects.iter().map(|change| {
        let reason = match change.op {
            Op::Add => "Created",
            Op::Change => "Changed",
            Op::Remove => "Deleted",
        };
        event(
            format!("{}/{}", change.kind.singular(), change.name),
            reason,
            fields_changed(change.fields.len()),
        )
    });
    let devices = plan.devices.iter().filter(|device| !device.is_deleted).map(|device| {
        let of = |op| device.changes.iter().filter(|change| change.op == op).count();
        let message =
            format!("{} added, {} changed, {} removed", of(Op::Add), of(Op::Change), of(Op::Remove));
        event(format!("device/{}", device.name), "ConfigPublished", message)
    });
    objects.chain(devices).collect()
}

fn fields_changed(count: usize) -> String {
    if count == 1 { "1 field by the operator".into() } else { format!("{count} fields by the operator") }
}
