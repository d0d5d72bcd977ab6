// SPDX-License-Identifier: Apache-2.0
//! The controller's state: intent in memory and in the store, registered nodes, published configs.
//!
//! One lock (`changing`) serializes everything that changes intent, ledgers or published configs; it is held while the
//! store commits, so what is published was stored first. Those who look take `project` for a moment, and copy it when they
//! need longer. Requests of devices take neither, but for the first poll of a device after a start.
//! Order of locks: changing, project, a node's record.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use controller_core::compute::{Computed, Inputs, Seal, Site, compute};
use controller_core::intent::{Intent, Object};
use controller_core::ledger::Ledger;
use controller_core::resource::{DEFAULT_PROJECT, Kind, Spec};
use eve_api::Message as _;
use eve_api::certs::{PublicKey, Role};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::access::Tokens;
use crate::audit::Audit;
use crate::ca::{Ca, CaError};
use crate::change::Change;
use crate::feed::Feed;
use crate::files::FileError;
use crate::node::{CERT_ECDH, ConfigState, Node, NodeRecord, Ordered, Published, lock};
use crate::objects::Stored;
use crate::observed::{Ended, Observed, begin, end, read_heartbeats, write_heartbeats};
use crate::seal::DeviceSeal;
use crate::store::{Store, StoreError, Txn};
use crate::telemetry::Counters;
use crate::telemetry::otlp::LogQueue;

/// Why something the state was asked for failed. All are this side's fault.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("observed state")]
    Observed(#[source] std::io::Error),
    #[error("stored entry {0} cannot be read")]
    Entry(String),
    #[error("config of device/{device} would crash nodes: {}", problems.join("; "))]
    Unsound { device: String, problems: Vec<String> },
    #[error("device does not exist")]
    NoDevice,
    #[error("signing failed")]
    Signing,
}

/// What an onboarding certificate opens.
#[derive(Clone, Debug)]
pub struct Onboarding {
    pub token: String,
    pub cert_der: Vec<u8>,
}

/// An onboarding certificate that the controller made, with its key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OnboardingKey {
    pub format: u32,
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for OnboardingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnboardingKey").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// Where the epoch is stored.
pub(crate) const EPOCH_KEY: &str = "default/epoch";

/// `controller_epoch`: another one makes devices send all their info again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    format: u32,
    pub epoch: i64,
}

impl Default for Epoch {
    fn default() -> Epoch {
        Epoch { format: 1, epoch: 1 }
    }
}

impl Epoch {
    /// One that no controller has used before, whatever was restored how often: the time in seconds.
    pub(crate) fn raised(self, now_ms: i64) -> Epoch {
        Epoch { epoch: (self.epoch + 1).max(now_ms.div_euclid(1000)), ..self }
    }
}

/// Objects and ledgers of the project. A copy is cheap: what is in it is shared until one side changes it.
#[derive(Clone, Debug, Default)]
pub struct Project {
    pub stored: Arc<BTreeMap<(Kind, String), Stored>>,
    pub intent: Arc<Intent>,
    pub ledgers: Arc<BTreeMap<Uuid, Ledger>>,
    /// Name of each device by its id.
    pub device_names: Arc<HashMap<Uuid, String>>,
    /// How often an object of this name was deleted.
    pub incarnations: Arc<BTreeMap<(Kind, String), u64>>,
}

/// The right to change the project.
#[derive(Debug)]
pub struct Changing<'a> {
    project: &'a Mutex<Project>,
    _turn: MutexGuard<'a, ()>,
}

impl Changing<'_> {
    /// Changes it. Short: requests wait meanwhile.
    pub fn project<T>(&self, change: impl FnOnce(&mut Project) -> T) -> T {
        change(&mut lock(self.project))
    }
}

/// A config in its wire form, not signed yet.
#[derive(Debug)]
pub struct Rendered {
    pub hash: String,
    payload: Vec<u8>,
    ordered: Ordered,
}

/// Nodes by both their names.
#[derive(Debug, Default)]
struct Nodes {
    by_id: HashMap<Uuid, Arc<Node>>,
    by_cert: HashMap<[u8; 32], Arc<Node>>,
}

#[derive(Debug)]
pub struct Controller {
    /// The data directory.
    pub data: PathBuf,
    pub ca: Ca,
    pub site: Site,
    /// Longest time an answer is held.
    pub hold: Duration,
    pub observed: Observed,
    /// What operators watch.
    pub feed: Feed,
    pub audit: Audit,
    pub tokens: Tokens,
    pub admin_token: String,
    /// The answer to `/certs`.
    pub certs_body: Bytes,
    store: Arc<dyn Store>,
    changing: Mutex<()>,
    project: Mutex<Project>,
    nodes: RwLock<Nodes>,
    onboarding: RwLock<HashMap<[u8; 32], Onboarding>>,
    /// Turns of devices whose config is computed for the first time since the start.
    pub computing: Semaphore,
    /// Registrations that were refused.
    pub(crate) refusals: crate::refusals::Refusals,
    pub counters: Counters,
    pub started: Instant,
    /// Log lines of nodes go here too, where they are exported.
    pub exported_logs: Option<LogQueue>,
    /// One gathering of figures at a time.
    pub gathering: Semaphore,
    /// One backup at a time.
    pub backups: Arc<Semaphore>,
    /// Changes that were planned last, by the hash of their plan.
    pub planned: Mutex<VecDeque<(String, Change)>>,
}

/// What [`Controller::open`] needs besides the data directory.
#[derive(Clone, Debug)]
pub struct Settings {
    pub advertise: String,
    pub hold: Duration,
    pub exported_logs: Option<LogQueue>,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

pub(crate) fn object_key(kind: Kind, name: &str) -> String {
    format!("{DEFAULT_PROJECT}/object/{}/{name}", kind.singular())
}

pub(crate) fn incarnation_key(kind: Kind, name: &str) -> String {
    format!("{DEFAULT_PROJECT}/incarnation/{}/{name}", kind.singular())
}

pub(crate) fn node_key(id: Uuid) -> String {
    format!("{DEFAULT_PROJECT}/node/{id}")
}

pub(crate) fn ledger_key(id: Uuid) -> String {
    format!("{DEFAULT_PROJECT}/ledger/{id}")
}

pub(crate) fn onboarding_key(token: Uuid) -> String {
    format!("{DEFAULT_PROJECT}/onboarding/{token}")
}

/// JSON of what is stored; the types have no maps with odd keys, so this cannot fail.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Text of SHA-256 in base64 for URLs: what hashes of configs look like.
pub(crate) fn text_hash(bytes: &[u8]) -> String {
    use base64::Engine as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest)
}

impl Controller {
    /// Opens the data directory; the first time everything in it is made.
    pub fn open(data: &Path, store: Arc<dyn Store>, settings: Settings) -> Result<Controller, StateError> {
        let ca = Ca::open(&data.join("pki"))?;
        let token = crate::files::read_or_make(&data.join("admin-token"), || {
            crate::files::random_hex(32).into_bytes()
        })?;
        let pull = crate::files::read_or_make(&data.join("pull-password"), || {
            crate::files::random_hex(24).into_bytes()
        })?;
        let set = eve_api::certs::build_controller_certs([
            (Role::Signing, ca.signing_pem.as_slice()),
            (Role::Ecdh, ca.ecdh_pem.as_slice()),
        ]);
        let observed = Observed::open(&data.join("observed")).map_err(StateError::Observed)?;
        let mut epoch: Epoch = match store.get(EPOCH_KEY)? {
            Some(entry) => {
                serde_json::from_slice(&entry.value).map_err(|_| StateError::Entry(EPOCH_KEY.into()))?
            }
            None => Epoch::default(),
        };
        if begin(&data.join("observed")).map_err(StateError::Observed)? == Ended::WithMachine {
            tracing::warn!(
                "the machine went down under the controller: devices are asked for all info again"
            );
            epoch = epoch.raised(now_ms());
            store.commit(&Txn { puts: vec![(EPOCH_KEY.into(), to_bytes(&epoch))], ..Txn::default() })?;
        }
        let site = Site {
            advertise: settings.advertise,
            ca_pem: ca.root_pem.clone(),
            cert_hash: text_hash(&set),
            epoch: epoch.epoch,
            pull_user: PULL_USER.into(),
            pull_password: String::from_utf8_lossy(&pull).trim().into(),
            poll_interval_s: (!settings.hold.is_zero()).then_some(HELD_POLL_INTERVAL_S),
        };
        let admin_token = String::from_utf8_lossy(&token).trim().to_owned();
        let mut controller = Controller {
            data: data.to_owned(),
            audit: Audit::open(store.clone())?,
            tokens: Tokens::open(&*store, &admin_token)?,
            certs_body: Bytes::new(),
            ca,
            site,
            hold: settings.hold,
            observed,
            feed: Feed::new(jiff::Timestamp::now().as_microsecond().unsigned_abs()),
            admin_token,
            store,
            changing: Mutex::default(),
            project: Mutex::default(),
            nodes: RwLock::default(),
            onboarding: RwLock::default(),
            computing: Semaphore::new(COMPUTING),
            refusals: crate::refusals::Refusals::default(),
            counters: Counters::default(),
            started: Instant::now(),
            exported_logs: settings.exported_logs,
            gathering: Semaphore::new(1),
            backups: Arc::new(Semaphore::new(1)),
            planned: Mutex::default(),
        };
        controller.certs_body = controller.seal(set)?;
        controller.load()?;
        Ok(controller)
    }

    fn load(&self) -> Result<(), StateError> {
        let mut project = lock(&self.project);
        let bad = |key: &str| StateError::Entry(key.into());
        for (key, entry) in self.store.range(&format!("{DEFAULT_PROJECT}/object/"))? {
            let mut stored: Stored = serde_json::from_slice(&entry.value).map_err(|_| bad(&key))?;
            stored.revision = entry.revision;
            Arc::make_mut(&mut project.intent).put(stored.object().map_err(|_| bad(&key))?);
            Arc::make_mut(&mut project.stored).insert((stored.kind(), stored.name.clone()), stored);
        }
        for (key, entry) in self.store.range(&format!("{DEFAULT_PROJECT}/incarnation/"))? {
            let mut parts = key.splitn(4, '/').skip(2);
            let kind = parts.next().and_then(Kind::parse).ok_or_else(|| bad(&key))?;
            let name = parts.next().ok_or_else(|| bad(&key))?.to_owned();
            let count = serde_json::from_slice(&entry.value).map_err(|_| bad(&key))?;
            Arc::make_mut(&mut project.incarnations).insert((kind, name), count);
        }
        for (key, entry) in self.store.range(&format!("{DEFAULT_PROJECT}/ledger/"))? {
            let id = key.rsplit('/').next().and_then(|id| id.parse().ok()).ok_or_else(|| bad(&key))?;
            Arc::make_mut(&mut project.ledgers)
                .insert(id, serde_json::from_slice(&entry.value).map_err(|_| bad(&key))?);
        }
        for (key, entry) in self.store.range(&format!("{DEFAULT_PROJECT}/node/"))? {
            let id = key.rsplit('/').next().and_then(|id| id.parse().ok()).ok_or_else(|| bad(&key))?;
            let record: NodeRecord = serde_json::from_slice(&entry.value).map_err(|_| bad(&key))?;
            let node = Node::new(id, record).ok_or_else(|| bad(&key))?;
            node.set_restored(project.ledgers.get(&id).is_some_and(|ledger| ledger.is_restored));
            self.insert_node(Arc::new(node));
        }
        for (id, at_ms) in read_heartbeats(&self.observed_dir()) {
            if let Some(node) = self.node(id) {
                node.seen(at_ms);
            }
        }
        self.index_devices(&mut project);
        self.reload_onboarding(&project.intent)
    }

    /// Brings up to date what follows from the devices of the intent: their names by id, and what nodes must prove.
    pub fn index_devices(&self, project: &mut Project) {
        let devices = project.intent.devices.values();
        project.device_names = Arc::new(devices.map(|device| (device.uid, device.name.clone())).collect());
        for device in project.intent.devices.values() {
            if let Some(node) = self.node(device.uid) {
                node.set_policy(device.spec.attestation);
            }
        }
    }

    /// Reads the onboarding certificates of all join tokens anew.
    pub fn reload_onboarding(&self, intent: &Intent) -> Result<(), StateError> {
        let mut all = HashMap::new();
        for token in intent.join_tokens.values() {
            let pem = match &token.spec.certificate {
                Some(pem) => pem.clone(),
                None => match self.onboarding_of(token.uid)? {
                    Some(key) => key.cert_pem,
                    None => continue,
                },
            };
            let Ok(cert_der) = eve_api::certs::first_der(pem.as_bytes()) else {
                tracing::error!(token = token.name, "onboarding certificate cannot be read");
                continue;
            };
            let hash = eve_api::certs::der_hash(&cert_der);
            all.insert(hash, Onboarding { token: token.name.clone(), cert_der });
        }
        *self.onboarding.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    /// The onboarding certificate and key that the controller made for a token.
    pub fn onboarding_of(&self, token: Uuid) -> Result<Option<OnboardingKey>, StateError> {
        let key = onboarding_key(token);
        let Some(entry) = self.store.get(&key)? else { return Ok(None) };
        serde_json::from_slice(&entry.value).map(Some).map_err(|_| StateError::Entry(key))
    }

    /// Who an onboarding certificate belongs to, by the hash of its DER.
    pub fn onboarding(&self, hash: &[u8; 32]) -> Option<Onboarding> {
        self.onboarding.read().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    /// Signs a payload as devices expect it.
    pub fn seal(&self, payload: Vec<u8>) -> Result<Bytes, StateError> {
        eve_api::envelope::seal_controller(payload, &self.ca.signing_pem, &self.ca.signer)
            .map(Bytes::from)
            .map_err(|_| StateError::Signing)
    }

    pub fn node_by_cert(&self, hash: &[u8; 32]) -> Option<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).by_cert.get(hash).cloned()
    }

    pub fn node(&self, id: Uuid) -> Option<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id).cloned()
    }

    pub fn all_nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).by_id.values().cloned().collect()
    }

    pub fn insert_node(&self, node: Arc<Node>) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.by_cert.insert(node.cert_hash, node.clone());
        nodes.by_id.insert(node.id, node);
    }

    fn observed_dir(&self) -> PathBuf {
        self.data.join("observed")
    }

    /// Writes down when each node was heard last. Blocks.
    pub fn save_heartbeats(&self) {
        let nodes = self.all_nodes();
        let beats = nodes.iter().map(|node| (node.id, node.last_seen_ms())).filter(|(_, at_ms)| *at_ms > 0);
        if let Err(error) = write_heartbeats(&self.observed_dir(), beats) {
            tracing::error!(%error, "cannot write down when devices were heard");
        }
    }

    /// The controller stops in order. Blocks.
    pub fn end(&self) {
        self.save_heartbeats();
        if let Err(error) = end(&self.observed_dir()) {
            tracing::error!(%error, "cannot end in order; devices will say everything again");
        }
    }

    /// A node was heard.
    pub fn seen(&self, node: &Node) {
        let now_ms = now_ms();
        if now_ms - node.seen(now_ms) >= crate::operator_api::SILENCE_MS {
            self.feed.touch(Kind::Device, node.id);
        }
    }

    /// Forgets a node: its requests are refused from now on, held answers end.
    pub fn remove_node(&self, id: Uuid) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.by_id.remove(&id) {
            nodes.by_cert.remove(&node.cert_hash);
            node.config.send_replace(ConfigState::Gone);
        }
        drop(nodes);
        self.observed.forget(id);
    }

    /// Looks at the project. Short: requests wait meanwhile.
    pub fn with_project<T>(&self, look: impl FnOnce(&Project) -> T) -> T {
        look(&lock(&self.project))
    }

    /// The project as it is now, for those who take longer.
    pub fn snapshot(&self) -> Project {
        lock(&self.project).clone()
    }

    /// The right to change the project, as long as it is kept.
    pub fn changing(&self) -> Changing<'_> {
        Changing { project: &self.project, _turn: lock(&self.changing) }
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn commit(&self, txn: &Txn) -> Result<u64, StateError> {
        Ok(self.store.commit(txn)?)
    }

    /// Changes what is stored of a node. Stored before anybody sees it.
    pub fn update_node(
        &self,
        node: &Node,
        change: impl FnOnce(&mut NodeRecord),
    ) -> Result<NodeRecord, StateError> {
        node.update_record(|record| {
            let mut next = record.clone();
            change(&mut next);
            if next != *record {
                let puts = vec![(node_key(node.id), to_bytes(&next))];
                self.commit(&Txn { puts, ..Txn::default() })?;
                *record = next;
                self.feed.touch(Kind::Device, node.id);
            }
            Ok(record.clone())
        })
    }

    /// The config of a device as it follows from an intent.
    pub fn compute(
        &self,
        intent: &Intent,
        ledgers: &BTreeMap<Uuid, Ledger>,
        device: &str,
    ) -> Option<Computed> {
        let id = intent.devices.get(device)?.uid;
        let node = self.node(id);
        let device_pem =
            node.as_ref().and_then(|node| node.with_record(|r| r.certs.get(&CERT_ECDH).cloned()));
        let seal = node.as_ref().zip(device_pem.as_ref());
        let seal = seal.map(|(node, pem)| DeviceSeal::new(&self.ca, node, pem.as_bytes()));
        let inputs = Inputs { intent, site: &self.site, device, seal: seal.as_ref().map(|s| s as &dyn Seal) };
        let none = Ledger::default();
        compute(inputs, ledgers.get(&id).unwrap_or(&none), now_ms())
    }

    /// The wire form of a config with its hash.
    pub fn render(&self, device: &str, computed: &Computed) -> Result<Rendered, StateError> {
        let wire = eve_api::render::device_config(&computed.config);
        let problems = eve_api::problems::problems(&wire);
        if !problems.is_empty() {
            return Err(StateError::Unsound { device: device.into(), problems });
        }
        let hash = text_hash(&wire.encode_to_vec());
        let payload = eve_api::render::config_response(&computed.config, &hash);
        Ok(Rendered { ordered: Ordered::of(&computed.config), hash, payload })
    }

    /// Makes the signed answer of a config.
    pub fn sign(&self, rendered: Rendered) -> Result<Published, StateError> {
        let body = self.seal(rendered.payload)?;
        Ok(Published { hash: rendered.hash, body, config: rendered.ordered })
    }

    /// Computes and publishes a device's config anew after something other than the intent changed. Blocks.
    pub fn republish(&self, device: Uuid) -> Result<Arc<Published>, StateError> {
        let changing = self.changing();
        self.republish_with(&changing, device)
    }

    /// [`Controller::republish`] by somebody who has the right to change.
    pub fn republish_with(
        &self,
        changing: &Changing<'_>,
        device: Uuid,
    ) -> Result<Arc<Published>, StateError> {
        let project = self.snapshot();
        let name = project.device_names.get(&device).ok_or(StateError::NoDevice)?;
        let mut computed =
            self.compute(&project.intent, &project.ledgers, name).ok_or(StateError::NoDevice)?;
        let published = Arc::new(self.sign(self.render(name, &computed)?)?);
        computed.ledger.publish(&published.hash);
        let is_new = project.ledgers.get(&device) != Some(&computed.ledger);
        drop(project);
        if is_new {
            let puts = vec![(ledger_key(device), to_bytes(&computed.ledger))];
            self.commit(&Txn { puts, ..Txn::default() })?;
            changing.project(|project| {
                Arc::make_mut(&mut project.ledgers).insert(device, computed.ledger);
            });
        }
        self.publish(device, published.clone());
        Ok(published)
    }

    /// Hands a config to whoever waits for it.
    pub fn publish(&self, device: Uuid, published: Arc<Published>) {
        let Some(node) = self.node(device) else { return };
        node.config.send_if_modified(|state| {
            let is_same = matches!(state, ConfigState::Published(old) if old.hash == published.hash);
            if !is_same {
                *state = ConfigState::Published(published);
                self.feed.touch(Kind::Device, device);
            }
            !is_same
        });
    }

    /// Checks an envelope of an onboarding key.
    pub fn onboarding_key(onboarding: &Onboarding) -> Option<PublicKey> {
        PublicKey::from_der(&onboarding.cert_der).ok()
    }

    /// The object a stored document stands for, for `put` into an intent.
    pub fn typed(stored: &Stored) -> Result<Object<Spec>, StateError> {
        stored.object().map_err(|_| StateError::Entry(object_key(stored.kind(), &stored.name)))
    }
}

/// First configs computed at once: one works, the next is ready.
const COMPUTING: usize = 2;
/// User name of devices at the built-in registry.
pub(crate) const PULL_USER: &str = "device";
/// Pause between two held answers; with it unmodified EVE asks 1.7 times a minute.
const HELD_POLL_INTERVAL_S: u32 = 5;
