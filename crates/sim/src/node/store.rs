// SPDX-License-Identifier: Apache-2.0
//! store: the real plan, on a catalog of records on the simulated disk; pulls take their time and may fail.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ipc::topics::{ContentDesired as ContentTopic, ContentObserved as SeenTopic};
use ipc::topics::{
    StorageObserved as StorageTopic, VolumeDesired as VolumeTopic, VolumeObserved as MadeTopic,
};
use model::config::VolumeOrigin;
use model::desired::{ContentDesired, ContentSources, ImageConfig, VolumeDesired};
use model::id::{ContentTreeId, Digest, VolumeKey};
use model::observed::{
    Blob, ContentObserved, ContentState, Image, MadeVolume, StorageObserved, VolumeObserved,
};
use model::reason::{Fault, Reason, Retry};
use model::time::MonoMs;
use node_store::catalog::{ContentRecord, Held, Order};
use node_store::plan::{Inputs, Step, plan};
use reconcile::Backoff;
use service::files::{Files as _, erase, replace};
use uuid::Uuid;

use super::{Cx, Input, Name, Out};
use crate::Fact;
use crate::disk::{Disk, View};

/// As the process has them.
const RETRY_MS: (u64, u64) = (2_000, 300_000);
const RARE_RETRY_MS: (u64, u64) = (60_000, 1_800_000);
/// How long a pull takes.
const PULL_MS: (u64, u64) = (800, 40_000);
const MAX_RECORD_BYTES: u64 = 1 << 20;
const IMAGES: &str = "images";
const VOLUMES: &str = "volumes";
const MIB: u64 = 1 << 20;

/// A tag that no registry has.
pub const MISSING_TAG: &str = "missing";

#[derive(Debug)]
struct Running {
    order: Order,
    number: u64,
    is_cancelled: bool,
}

#[derive(Debug)]
struct Failed {
    order: Order,
    backoff: Backoff,
    retry_at: MonoMs,
    fault: Fault,
}

#[derive(Debug)]
pub struct Store {
    files: View,
    pub held: BTreeMap<ContentTreeId, ContentRecord>,
    pub made: BTreeMap<VolumeKey, MadeVolume>,
    pulls: BTreeMap<ContentTreeId, Running>,
    failed: BTreeMap<ContentTreeId, Failed>,
    volume_faults: BTreeMap<VolumeKey, Fault>,
    may_have_garbage: bool,
    said_content: BTreeSet<String>,
    said_volumes: BTreeSet<String>,
    deadline: Option<MonoMs>,
    drops_used: bool,
}

impl Store {
    pub fn load(disk: Rc<Disk>, drops_used: bool) -> Store {
        let files = View::new(disk, Name::Store);
        // Records are in the directory that is there from the start; what cannot be read is dropped.
        let _ = files.make_dir(IMAGES);
        let _ = files.make_dir(VOLUMES);
        let read = |dir: &str, name: &String| files.read(&format!("{dir}/{name}"), MAX_RECORD_BYTES).ok();
        let names = files.list(IMAGES).unwrap_or_default();
        let held = names.iter().filter_map(|name| {
            let record: ContentRecord = serde_json::from_slice(&read(IMAGES, name)?).ok()?;
            (record.id.to_string() == *name).then_some((record.id, record))
        });
        let held = held.collect();
        let names = files.list(VOLUMES).unwrap_or_default();
        let made = names.iter().filter_map(|name| {
            let (key, made): (VolumeKey, MadeVolume) = postcard::from_bytes(&read(VOLUMES, name)?).ok()?;
            (key.to_string() == *name).then_some((key, made))
        });
        let made = made.collect();
        Store {
            files,
            held,
            made,
            pulls: BTreeMap::new(),
            failed: BTreeMap::new(),
            volume_faults: BTreeMap::new(),
            may_have_garbage: true,
            said_content: BTreeSet::new(),
            said_volumes: BTreeSet::new(),
            deadline: None,
            drops_used,
        }
    }

    pub fn deadline(&self) -> Option<MonoMs> {
        self.deadline
    }

    pub fn handle(&mut self, cx: &mut Cx<'_>, input: Input) {
        match input {
            Input::Start => {
                ipc::client::Topics::subscribe::<ContentTopic>(cx.topics);
                ipc::client::Topics::subscribe::<VolumeTopic>(cx.topics);
                self.turn(cx);
                let total_bytes = 32 << 30;
                let disk =
                    StorageObserved { path: "/persist".into(), total_bytes, used_bytes: 0, content_bytes: 0 };
                cx.put::<StorageTopic>("/persist", &disk);
                cx.all_stand::<SeenTopic>();
                cx.all_stand::<MadeTopic>();
                cx.all_stand::<StorageTopic>();
                return;
            }
            Input::Pulled(id, number) => self.pulled(cx, id, number),
            Input::Topics | Input::Wake => {}
            Input::Done(_) | Input::Shim(..) => return,
        }
        self.turn(cx);
    }

    fn turn(&mut self, cx: &mut Cx<'_>) {
        let content: BTreeMap<ContentTreeId, ContentDesired> =
            cx.all::<ContentTopic>().into_values().map(|desired| (desired.id, desired)).collect();
        let volumes: BTreeMap<VolumeKey, VolumeDesired> =
            cx.all::<VolumeTopic>().into_values().map(|desired| (desired.key, desired)).collect();
        self.failed
            .retain(|id, failed| content.get(id).is_some_and(|desired| Order::of(desired) == failed.order));
        let mut done: Vec<Step> = Vec::new();
        for _ in 0..4 {
            let pulling = self.pulls.iter().map(|(id, running)| (*id, running.order.clone())).collect();
            let waiting = self.failed.iter();
            let waiting = waiting.map(|(id, one)| (*id, (one.order.clone(), one.retry_at))).collect();
            let (steps, next) = plan(&Inputs {
                now: cx.now.mono,
                content: &content,
                is_content_synced: cx.is_synced::<ContentTopic>(),
                volumes: &volumes,
                is_volumes_synced: cx.is_synced::<VolumeTopic>(),
                held: &self.held,
                made: &self.made,
                // Made at once.
                making: &BTreeSet::new(),
                pulling: &pulling,
                waiting: &waiting,
                may_have_garbage: self.may_have_garbage,
            });
            self.deadline = next;
            let mut steps: Vec<Step> = steps.into_iter().filter(|step| !done.contains(step)).collect();
            if self.drops_used && cx.now.mono.0 > 3_600_000 {
                steps.extend(self.made.keys().map(|key| Step::DropVolume(*key)));
                self.drops_used = false;
            }
            if steps.is_empty() {
                break;
            }
            for step in &steps {
                self.carry_out(cx, *step, &content, &volumes);
            }
            done.extend(steps);
        }
        self.tell_content(cx, &content);
        self.tell_volumes(cx, &volumes);
    }

    fn carry_out(
        &mut self,
        cx: &mut Cx<'_>,
        step: Step,
        content: &BTreeMap<ContentTreeId, ContentDesired>,
        volumes: &BTreeMap<VolumeKey, VolumeDesired>,
    ) {
        match step {
            Step::Pull(id) => {
                let Some(desired) = content.get(&id) else { return };
                let number = cx.machine.token();
                let running = Running { order: Order::of(desired), number, is_cancelled: false };
                self.pulls.insert(id, running);
                let wait_ms = cx.chance.between(PULL_MS.0, PULL_MS.1);
                cx.out.push(Out::Later(wait_ms, Name::Store, Input::Pulled(id, number)));
            }
            Step::Cancel(id) => {
                if let Some(running) = self.pulls.get_mut(&id) {
                    running.is_cancelled = true;
                    let input = Input::Pulled(id, running.number);
                    cx.out.push(Out::Later(200, Name::Store, input));
                }
            }
            Step::MakeVolume(key) => {
                let Some(desired) = volumes.get(&key) else { return };
                let made = match desired.origin {
                    VolumeOrigin::Blank => MadeVolume::Directory,
                    VolumeOrigin::Content(tree) => match self.held.get(&tree).map(|record| &record.held) {
                        Some(Held::Image(image)) => MadeVolume::Image(image.clone()),
                        Some(Held::File(_)) | None => return,
                    },
                };
                let bytes = postcard::to_allocvec(&(key, &made)).unwrap_or_default();
                match replace(&self.files, VOLUMES, &key.to_string(), &bytes) {
                    Ok(()) => {
                        self.volume_faults.remove(&key);
                        self.made.insert(key, made);
                        cx.out.push(Out::Fact(Fact::VolumeMade { key }));
                    }
                    Err(error) => {
                        self.volume_faults.insert(key, Fault::new(Reason::DiskFull, error.to_string()));
                        self.deadline = Some(cx.now.mono.plus_ms(RETRY_MS.0));
                    }
                }
            }
            Step::DropContent(id) => {
                self.may_have_garbage = true;
                if erase(&self.files, IMAGES, &id.to_string()).is_ok() {
                    self.held.remove(&id);
                }
            }
            Step::DropVolume(key) => {
                self.may_have_garbage = true;
                if !cx.effect() {
                    return;
                }
                // Said before: the record is gone with the first of the two effects.
                cx.out.push(Out::Fact(Fact::VolumeDropped { key }));
                if erase(&self.files, VOLUMES, &key.to_string()).is_ok() {
                    self.made.remove(&key);
                }
            }
            Step::Sweep => {
                if !cx.effect() {
                    return;
                }
                self.may_have_garbage = false;
                let held = self.held.values().filter_map(|record| match &record.held {
                    Held::Image(image) => Some(image),
                    Held::File(_) => None,
                });
                let made = self.made.values().filter_map(|made| match made {
                    MadeVolume::Image(image) => Some(image),
                    _ => None,
                });
                let images = held.chain(made);
                let layers = images.flat_map(|image| image.layers.iter().copied()).collect();
                cx.out.push(Out::Fact(Fact::Swept { layers }));
            }
        }
    }

    fn pulled(&mut self, cx: &mut Cx<'_>, id: ContentTreeId, number: u64) {
        if self.pulls.get(&id).is_none_or(|running| running.number != number) {
            return;
        }
        let Some(running) = self.pulls.remove(&id) else { return };
        self.may_have_garbage = true;
        if running.is_cancelled {
            return;
        }
        let desired = cx.all::<ContentTopic>().into_values().find(|desired| desired.id == id);
        let Some(desired) = desired else { return };
        let result = self.fetch(cx, &desired).and_then(|image| {
            let record = ContentRecord::new(id, running.order.clone(), Held::Image(image));
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            match replace(&self.files, IMAGES, &id.to_string(), &bytes) {
                Ok(()) => Ok(record),
                Err(error) => Err(Fault::new(Reason::DiskFull, error.to_string())),
            }
        });
        match result {
            Ok(record) => {
                self.failed.remove(&id);
                self.held.insert(id, record);
            }
            Err(fault) => self.fail(cx, id, running.order, fault),
        }
    }

    fn fetch(&self, cx: &Cx<'_>, desired: &ContentDesired) -> Result<Image, Fault> {
        let ContentSources::Registries(sources) = &desired.sources else {
            return Err(Fault::new(Reason::InvalidConfig, "files are not simulated"));
        };
        let Some(source) = sources.first() else {
            return Err(Fault::new(Reason::InvalidConfig, "no source"));
        };
        if cx.machine.is_registry_down || cx.machine.lease.is_none() {
            return Err(Fault::new(Reason::RegistryUnreachable, "registry does not answer"));
        }
        if source.reference == MISSING_TAG {
            return Err(Fault::new(Reason::ImageNotFound, "no such tag"));
        }
        Ok(image(&source.repository, &source.reference, desired.digest))
    }

    fn fail(&mut self, cx: &Cx<'_>, id: ContentTreeId, order: Order, fault: Fault) {
        let (first, longest) = match fault.reason.retry() {
            Retry::Automatic => RETRY_MS,
            Retry::AfterChange => RARE_RETRY_MS,
        };
        let old =
            self.failed.remove(&id).filter(|old| old.order == order && old.fault.reason == fault.reason);
        let mut backoff = old.map_or_else(|| Backoff::new(first, longest), |old| old.backoff);
        let retry_at = backoff.fail(cx.now.mono);
        self.failed.insert(id, Failed { order, backoff, retry_at, fault });
    }

    fn tell_content(&mut self, cx: &mut Cx<'_>, desired: &BTreeMap<ContentTreeId, ContentDesired>) {
        let mut said = BTreeSet::new();
        for (id, desired) in desired {
            let order = Order::of(desired);
            let held = self.held.get(id).filter(|record| record.order.serves(&order));
            let (state, fault) = match held {
                Some(record) => (loaded(record), None),
                None => (ContentState::ResolvingTag, self.failed.get(id).map(|failed| failed.fault.clone())),
            };
            let seen = ContentObserved { id: *id, generation: desired.generation, state, fault };
            cx.put::<SeenTopic>(&id.to_string(), &seen);
            said.insert(id.to_string());
        }
        for (id, record) in self.held.iter().filter(|(id, _)| !desired.contains_key(id)) {
            let state = loaded(record);
            let seen = ContentObserved { id: *id, generation: record.order.generation, state, fault: None };
            cx.put::<SeenTopic>(&id.to_string(), &seen);
            said.insert(id.to_string());
        }
        for id in std::mem::replace(&mut self.said_content, said).difference(&self.said_content) {
            cx.take_away::<SeenTopic>(id);
        }
    }

    fn tell_volumes(&mut self, cx: &mut Cx<'_>, desired: &BTreeMap<VolumeKey, VolumeDesired>) {
        self.volume_faults.retain(|key, _| desired.contains_key(key) && !self.made.contains_key(key));
        let mut said = BTreeSet::new();
        for key in desired.keys().chain(self.made.keys()) {
            let seen = VolumeObserved {
                key: *key,
                made: self.made.get(key).cloned(),
                used_bytes: 0,
                fault: self.volume_faults.get(key).cloned(),
            };
            cx.put::<MadeTopic>(&key.to_string(), &seen);
            said.insert(key.to_string());
        }
        for key in std::mem::replace(&mut self.said_volumes, said).difference(&self.said_volumes) {
            cx.take_away::<MadeTopic>(key);
        }
    }
}

fn loaded(record: &ContentRecord) -> ContentState {
    match &record.held {
        Held::Image(image) => ContentState::Loaded(image.clone()),
        Held::File(file) => ContentState::LoadedFile(file.clone()),
    }
}

/// What a registry has under a name.
fn image(repository: &str, reference: &str, digest: Option<Digest>) -> Image {
    let hash = |role: &str| {
        let id = Uuid::new_v5(&Uuid::nil(), format!("{repository}:{reference}/{role}").as_bytes());
        let mut out = [0; 32];
        out[..16].copy_from_slice(id.as_bytes());
        out[16..].copy_from_slice(id.as_bytes());
        Digest(out)
    };
    let layers = vec![hash("base"), hash("top")];
    let digest = digest.unwrap_or_else(|| hash("manifest"));
    let blobs = layers.iter().map(|layer| Blob {
        digest: *layer,
        size_bytes: 8 * MIB,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
    });
    let blobs = blobs.collect();
    Image { digest, total_bytes: 16 * MIB, config: ImageConfig::default(), layers, blobs }
}
