// SPDX-License-Identifier: Apache-2.0
//! The controller: the real core around a store that commits as a whole, and answers signed with real keys.

use std::collections::BTreeMap;

use controller_core::attest::{AttestRecord, Evidence, Known, judge};
use controller_core::compute::{Clear, Computed, Inputs, Seal, Site, compute};
use controller_core::intent::{Intent, Object};
use controller_core::ledger::Ledger;
use controller_core::onboard::{Decision, Registered, Request, decide};
use controller_core::resource::{
    AppSpec, AttachmentSpec, Attestation, DeviceSpec, JoinTokenSpec, NetworkSpec, RegistrySpec, SecretRef,
    SecretSpec, Spec,
};
use controller_core::restore::{self, Poll, Reported};
use eve_api::Message as _;
use eve_api::certs::{Role, build_controller_certs, cert_hash};
use eve_api::envelope::seal_controller;
use eve_api::wire::attest as wire;
use eve_api::wire::uuid::UuidResponse;
use model::config::{Credentials, DeviceConfig, UserData};
use model::id::DeviceId;
use model::report::{Info, InfoMessage};
use model::secret::{CipherBlock, CipherContext, SecretHandle};
use node_agent::agent::ask::{Ask, HttpReply};
use uuid::Uuid;

use crate::keys::keys;
use crate::node::store::MISSING_TAG;
use crate::scenario::Action;

/// An operator notices within a few changes that a store is to be restored.
const BACKUPS_MAX: usize = 8;
/// Longest time an answer is held.
pub(crate) const HOLD_MS: u64 = 35_000;
/// Stands in every secret: wherever it is found, a secret went astray.
pub const CANARY: &str = "c4n4ry";
const TOKEN: &str = "fleet";
const NETWORK: &str = "apps";
const REGISTRY: &str = "hub";

/// What is on the controller's disk: written as a whole or not at all.
#[derive(Clone, Debug, Default)]
struct Stored {
    intent: Intent,
    ledgers: BTreeMap<Uuid, Ledger>,
    /// By serial number, which stands for the key.
    nodes: BTreeMap<String, NodeRecord>,
    /// Newest info of each object.
    info: BTreeMap<(Uuid, String), InfoMessage>,
}

#[derive(Clone, Debug, Default)]
struct NodeRecord {
    id: Uuid,
    has_key: bool,
    attest: AttestRecord,
}

#[derive(Clone, Debug)]
pub struct Published {
    pub hash: String,
    pub config: DeviceConfig,
    body: Vec<u8>,
}

/// What a request is answered with.
#[derive(Debug)]
pub enum Reply {
    Now(HttpReply),
    /// When something changes, at the latest when the longest hold is over.
    Held {
        device: Uuid,
        hash: String,
    },
}

#[derive(Debug)]
pub struct Controller {
    stored: Stored,
    /// As it was before each of the last changes of the operator.
    backups: Vec<Stored>,
    /// Made so far: no uid is given twice, whatever was restored.
    objects: u64,
    /// What each device was known to have reported when it came back after a restore.
    pub settled: BTreeMap<Uuid, Reported>,
    pub published: BTreeMap<Uuid, Published>,
    site: Site,
    holds: bool,
    clear_secrets: bool,
    /// Devices whose config is another one since this was last taken.
    changed: Vec<Uuid>,
    next_token: u64,
}

impl Controller {
    pub fn new(holds: bool, clear_secrets: bool, intervals: (u32, u32)) -> Controller {
        let site = Site {
            advertise: "controller.example".into(),
            ca_pem: keys().root_pem.clone(),
            cert_hash: "certs-1".into(),
            epoch: 1,
            pull_user: "device".into(),
            pull_password: format!("{CANARY}-pull"),
            poll_interval_s: holds.then_some(5),
        };
        let mut controller = Controller {
            stored: Stored::default(),
            backups: Vec::new(),
            objects: 0,
            settled: BTreeMap::new(),
            published: BTreeMap::new(),
            site,
            holds,
            clear_secrets,
            changed: Vec::new(),
            next_token: 0,
        };
        let (metric_s, config_s) = intervals;
        let mut labels = BTreeMap::new();
        labels.insert("metric".into(), metric_s.to_string());
        labels.insert("config".into(), config_s.to_string());
        controller.put(
            TOKEN,
            Spec::JoinToken(JoinTokenSpec {
                serials: vec!["*".into()],
                attestation: Attestation::Software,
                device_labels: labels,
                ..JoinTokenSpec::default()
            }),
        );
        controller.put(
            NETWORK,
            Spec::Network(NetworkSpec { subnet: Some("10.11.0.0/24".into()), ..NetworkSpec::default() }),
        );
        let mut secret = SecretSpec::default();
        secret.data.insert("username".into(), "robot".into());
        secret.data.insert("password".into(), format!("{CANARY}-registry"));
        controller.put("hub-login", Spec::Secret(secret));
        controller.put(
            REGISTRY,
            Spec::Registry(RegistrySpec {
                url: "registry.example".into(),
                credentials: Some("hub-login".into()),
                ..RegistrySpec::default()
            }),
        );
        controller
    }

    /// The process is started anew: what it had not stored is gone.
    pub fn restart(&mut self) {
        self.published.clear();
    }

    /// An info message is kept so.
    pub fn info(&self, device: Uuid) -> impl Iterator<Item = (&String, &InfoMessage)> {
        let of_device = self.stored.info.iter().filter(move |((id, _), _)| *id == device);
        of_device.map(|((_, key), message)| (key, message))
    }

    pub fn device_of(&self, serial: &str) -> Option<Uuid> {
        self.stored.nodes.get(serial).map(|node| node.id)
    }

    /// Devices whose held answers may end.
    pub fn take_changed(&mut self) -> Vec<Uuid> {
        std::mem::take(&mut self.changed)
    }

    // ---- the operator

    fn put(&mut self, name: &str, spec: Spec) {
        self.objects += 1;
        let uid = Uuid::new_v5(&Uuid::nil(), format!("{name}/{}", self.objects).as_bytes());
        self.stored.intent.put(Object {
            name: name.into(),
            uid,
            labels: BTreeMap::new(),
            generation: 1,
            spec,
        });
    }

    /// Carries out an action, when the result is valid; says what became of it.
    pub fn act(&mut self, action: Action, now_ms: i64) -> String {
        let before = self.stored.clone();
        let text = match self.change(action) {
            Some(text) => text,
            None => return format!("{action:?}: nothing to do"),
        };
        let problems = controller_core::validate::problems(&self.stored.intent);
        if !problems.is_empty() {
            self.stored = before;
            return format!("{action:?}: refused");
        }
        self.backups.push(before);
        if self.backups.len() > BACKUPS_MAX {
            self.backups.remove(0);
        }
        let ids: Vec<Uuid> = self.stored.nodes.values().map(|node| node.id).collect();
        for id in ids {
            self.republish(id, now_ms);
        }
        text
    }

    /// The store becomes what it was so many changes ago. What devices reported is still there, or is gone as well. Devices
    /// that joined later would have to join again by hand: no such backup is taken.
    pub fn restore(&mut self, changes: u8, has_reports: bool, now_ms: i64) {
        let keep = self.backups.len().saturating_sub(usize::from(changes));
        let has_all =
            |backup: &&Stored| self.stored.nodes.keys().all(|serial| backup.nodes.contains_key(serial));
        let Some(backup) = self.backups.get(keep).filter(has_all).cloned() else { return };
        self.backups.truncate(keep);
        let info = std::mem::replace(&mut self.stored, backup).info;
        self.stored.info = if has_reports { info } else { BTreeMap::new() };
        for ledger in self.stored.ledgers.values_mut() {
            ledger.is_restored = true;
        }
        self.site.epoch = (self.site.epoch + 1).max(now_ms / 1_000);
        self.published.clear();
    }

    /// A planted fault.
    pub fn end_doubt(&mut self) {
        self.stored.ledgers.values_mut().for_each(|ledger| ledger.is_restored = false);
    }

    /// A device that came from a backup polls for the first time.
    fn settle(&mut self, device: Uuid, known: &str, now_ms: i64) {
        let Some(ledger) = self.stored.ledgers.get(&device).filter(|ledger| ledger.is_restored).cloned()
        else {
            return;
        };
        let mut reported = Reported::default();
        for (_, message) in self.info(device) {
            match &message.info {
                Info::App(app) if !app.is_gone() => {
                    reported.versions.insert(app.app, app.version.clone());
                }
                Info::Volume(volume) => {
                    let highest = reported.generations.entry(volume.key.id).or_default();
                    *highest = volume.key.generation.max(*highest);
                }
                _ => {}
            }
        }
        let computed = self.computed(device, now_ms);
        let config = computed.as_ref().map(|computed| &computed.config);
        let poll = Poll { device: DeviceId(device), known, epoch: self.site.epoch };
        let settled = restore::settle(&ledger, poll, config, &reported);
        self.settled.insert(device, reported);
        self.stored.ledgers.insert(device, settled);
        self.republish(device, now_ms);
    }

    fn change(&mut self, action: Action) -> Option<String> {
        let name = |app: u8| format!("app-{app}");
        match action {
            Action::AddApp(app) => {
                if self.stored.intent.apps.contains_key(&name(app)) {
                    return None;
                }
                let secret = format!("env-{app}");
                self.set_secret(app, 0);
                let mut env = BTreeMap::new();
                env.insert("TOKEN".into(), SecretRef { name: secret, key: "value".into() });
                let spec = AppSpec {
                    image: format!("web{app}:1"),
                    registry: REGISTRY.into(),
                    selector: Some(BTreeMap::new()),
                    networks: vec![AttachmentSpec {
                        network: NETWORK.into(),
                        address: None,
                        mac: None,
                        acl: None,
                    }],
                    secret_env: if app == 3 { BTreeMap::new() } else { env },
                    ..app_spec()
                };
                self.put(&name(app), Spec::App(spec));
            }
            Action::DeleteApp(app) => {
                self.stored.intent.apps.remove(&name(app))?;
            }
            Action::SetSecret(app, value) => {
                self.stored.intent.apps.get(&name(app))?;
                self.set_secret(app, value);
            }
            Action::SetInterval(seconds) => {
                for device in self.stored.intent.devices.values_mut() {
                    let value = seconds.to_string();
                    device.spec.properties.insert("timer.deviceinfo.interval".into(), value);
                }
            }
            Action::SetImage(app, 4) => {
                self.app(app)?.image = format!("web{app}:{MISSING_TAG}");
            }
            Action::SetImage(app, tag) => self.app(app)?.image = format!("web{app}:{tag}"),
            Action::Restart(app) => self.app(app)?.restart_counter += 1,
            Action::Purge(app) => self.app(app)?.purge_counter += 1,
            Action::Activate(app) => self.app(app)?.activate = true,
            Action::Deactivate(app) => self.app(app)?.activate = false,
            Action::SetMemory(app, mib) => self.app(app)?.resources.memory = format!("{mib}Mi"),
        }
        Some(format!("{action:?}"))
    }

    fn app(&mut self, app: u8) -> Option<&mut AppSpec> {
        let object = self.stored.intent.apps.get_mut(&format!("app-{app}"))?;
        object.generation += 1;
        Some(&mut object.spec)
    }

    fn set_secret(&mut self, app: u8, value: u8) {
        let mut secret = SecretSpec::default();
        secret.data.insert("value".into(), format!("{CANARY}-{app}-{value}"));
        self.put(&format!("env-{app}"), Spec::Secret(secret));
    }

    fn computed(&self, device: Uuid, now_ms: i64) -> Option<Computed> {
        let name = &self.stored.intent.devices.values().find(|d| d.uid == device)?.name;
        let has_key = self.stored.nodes.values().any(|node| node.id == device && node.has_key);
        let seal = DeviceSeal { device, keeps_clear: self.clear_secrets };
        let inputs = Inputs {
            intent: &self.stored.intent,
            site: &self.site,
            device: name,
            seal: has_key.then_some(&seal as &dyn Seal),
        };
        let none = Ledger::default();
        let ledger = self.stored.ledgers.get(&device).unwrap_or(&none);
        let mut computed = compute(inputs, ledger, now_ms)?;
        if self.clear_secrets {
            show_secrets(&mut computed.config);
        }
        Some(computed)
    }

    /// Computes and stores; what is published was stored first.
    fn republish(&mut self, device: Uuid, now_ms: i64) {
        let Some(Computed { config, mut ledger, .. }) = self.computed(device, now_ms) else { return };
        let hash = format!("{}@{}", config.version, ledger.timestamp_ms);
        ledger.publish(&hash);
        self.stored.ledgers.insert(device, ledger);
        if self.published.get(&device).is_some_and(|old| old.hash == hash) {
            return;
        }
        let body = sealed(eve_api::render::config_response(&config, &hash));
        self.published.insert(device, Published { hash, config, body });
        self.changed.push(device);
    }

    // ---- devices

    pub fn handle(&mut self, serial: &str, ask: &Ask, now_ms: i64) -> Reply {
        Reply::Now(match ask {
            Ask::Certs => {
                let keys = keys();
                let set =
                    [(Role::Signing, keys.signing_pem.as_bytes()), (Role::Ecdh, keys.ecdh_pem.as_bytes())];
                body(sealed(build_controller_certs(set)))
            }
            Ask::Register { .. } => status(self.register(serial, now_ms)),
            Ask::Uuid { .. } => match self.stored.nodes.get(serial) {
                Some(node) => {
                    let uuid = node.id.to_string();
                    body(sealed(UuidResponse { uuid, ..UuidResponse::default() }.encode_to_vec()))
                }
                None => status(404),
            },
            Ask::PublishCerts { .. } | Ask::Nonce { .. } | Ask::Quote { .. } => {
                self.attest(serial, ask, now_ms)
            }
            Ask::Config { hash, token, .. } => return self.config(serial, hash, token, now_ms),
            Ask::Info { payload, .. } => {
                let (Some(id), Ok(message)) = (self.device_of(serial), eve_api::parse::info(payload)) else {
                    return Reply::Now(status(400));
                };
                self.stored.info.insert((id, object_key(&message.info)), message);
                status(201)
            }
            Ask::Metrics { .. } | Ask::PostLogs { .. } | Ask::PostFlows { .. } => status(201),
            Ask::ReadLogs | Ask::TakenLogs { .. } | Ask::ReadFlows | Ask::TakenFlows { .. } => status(400),
        })
    }

    fn register(&mut self, serial: &str, now_ms: i64) -> u16 {
        let hash = |serial: &str| {
            let id = Uuid::new_v5(&Uuid::nil(), serial.as_bytes());
            let mut out = [0; 32];
            out[..16].copy_from_slice(id.as_bytes());
            out
        };
        let Some(token) = self.stored.intent.join_tokens.get(TOKEN) else { return 403 };
        let request = Request { cert_hash: hash(serial), serial, soft_serial: serial };
        let known = self.stored.nodes.keys();
        let known = known.map(|serial| Registered { cert_hash: hash(serial), serial, soft_serial: serial });
        match decide(&token.spec, &request, known) {
            Decision::Known => 200,
            Decision::Conflict => 409,
            Decision::NotListed => 403,
            Decision::Join(_) => {
                let id = Uuid::new_v5(&Uuid::from_u128(1), serial.as_bytes());
                let labels = token.spec.device_labels.clone();
                let mut spec = DeviceSpec { serial: Some(serial.into()), ..DeviceSpec::default() };
                for (label, item) in
                    [("metric", "timer.metric.interval"), ("config", "timer.config.interval")]
                {
                    if let Some(value) = labels.get(label) {
                        spec.properties.insert(item.into(), value.clone());
                    }
                }
                if self.holds {
                    spec.properties.remove("timer.config.interval");
                }
                let name = serial.to_lowercase();
                self.stored
                    .intent
                    .devices
                    .insert(name.clone(), Object { name, uid: id, labels, generation: 1, spec });
                self.stored.nodes.insert(serial.into(), NodeRecord { id, ..NodeRecord::default() });
                self.republish(id, now_ms);
                201
            }
        }
    }

    fn attest(&mut self, serial: &str, ask: &Ask, now_ms: i64) -> HttpReply {
        let mut response = wire::ZAttestResponse::default();
        self.next_token += 1;
        let token = format!("token-{}", self.next_token);
        let Some(node) = self.stored.nodes.get_mut(serial) else { return status(404) };
        match ask {
            Ask::PublishCerts { .. } => {
                response.resp_type = wire::ZAttestRespType::AttestRespCert.into();
                if !std::mem::replace(&mut node.has_key, true) {
                    let id = node.id;
                    self.republish(id, now_ms);
                }
            }
            Ask::Nonce { .. } => {
                response.resp_type = wire::ZAttestRespType::AttestRespNonce.into();
                response.nonce = Some(wire::ZAttestNonceResp { nonce: vec![7; 32] });
            }
            _ => {
                let known = Known { has_endorsement: false, has_quoted: node.attest.has_quoted };
                let verdict = judge(Attestation::Software, known, Evidence::Empty);
                node.attest.enter(verdict, token.clone(), now_ms);
                response.resp_type = wire::ZAttestRespType::AttestRespQuoteResp.into();
                response.quote_resp = Some(wire::ZAttestQuoteResp {
                    response: wire::ZAttestResponseCode::Success.into(),
                    integrity_token: token.into_bytes(),
                    ..wire::ZAttestQuoteResp::default()
                });
            }
        }
        body(sealed(response.encode_to_vec()))
    }

    fn config(&mut self, serial: &str, hash: &str, token: &[u8], now_ms: i64) -> Reply {
        let Some(node) = self.stored.nodes.get(serial) else { return Reply::Now(status(404)) };
        let token = String::from_utf8_lossy(token);
        if !node.attest.accepts(&token, now_ms) {
            return Reply::Now(status(403));
        }
        let id = node.id;
        self.settle(id, hash, now_ms);
        if !self.published.contains_key(&id) {
            self.republish(id, now_ms);
        }
        let is_same = self.published.get(&id).is_some_and(|published| published.hash == hash);
        if is_same && self.holds {
            return Reply::Held { device: id, hash: hash.into() };
        }
        Reply::Now(self.config_answer(id, hash))
    }

    /// What a config request is answered with now.
    pub fn config_answer(&self, device: Uuid, hash: &str) -> HttpReply {
        match self.published.get(&device) {
            Some(published) if published.hash == hash => status(304),
            Some(published) => body(published.body.clone()),
            None => status(503),
        }
    }
}

fn app_spec() -> AppSpec {
    AppSpec {
        image: String::new(),
        registry: String::new(),
        devices: Vec::new(),
        selector: None,
        networks: Vec::new(),
        ports: Vec::new(),
        acl: None,
        env: BTreeMap::new(),
        secret_env: BTreeMap::new(),
        user_data: None,
        volumes: Vec::new(),
        start_delay_seconds: 0,
        probe: None,
        resources: Default::default(),
        isolation: Default::default(),
        activate: true,
        restart_counter: 0,
        purge_counter: 0,
    }
}

/// The object an info message speaks of, as nodes name it in their queue.
pub(crate) fn object_key(info: &Info) -> String {
    match info {
        Info::Device(_) => "device".into(),
        Info::App(app) => format!("app/{}", app.app),
        Info::NetworkInstance(network) => format!("network/{}", network.id),
        Info::Volume(volume) => format!("volume/{}", volume.key),
        Info::ContentTree(tree) => format!("content/{}", tree.id),
        Info::Blobs(_) => "blobs".into(),
        Info::Other(kind) => format!("other/{kind}"),
    }
}

fn sealed(payload: Vec<u8>) -> Vec<u8> {
    let keys = keys();
    seal_controller(payload, keys.signing_pem.as_bytes(), &keys.signer).unwrap_or_default()
}

fn body(untrusted_body: Vec<u8>) -> HttpReply {
    HttpReply { status: 200, untrusted_body }
}

fn status(status: u16) -> HttpReply {
    HttpReply { status, untrusted_body: Vec::new() }
}

/// Encrypts for one device, in a manner that only hides.
struct DeviceSeal {
    device: Uuid,
    /// The block holds the clear text itself, to be shown on the wire.
    keeps_clear: bool,
}

const MASK: u8 = 0xa5;

impl Seal for DeviceSeal {
    fn context(&self) -> CipherContext {
        let hash = cert_hash(keys().ecdh_pem.as_bytes());
        let id = Uuid::new_v5(&self.device, b"context").to_string();
        CipherContext { id, device_cert_hash: hash.to_vec(), controller_cert_hash: hash.to_vec() }
    }

    fn seal(&self, object: Uuid, clear: &Clear) -> Option<CipherBlock> {
        let text = format!("{}\n{}\n{}", clear.user, clear.password, clear.user_data);
        let mask = if self.keeps_clear { 0 } else { MASK };
        let cipher_data: Vec<u8> = text.bytes().map(|byte| byte ^ mask).collect();
        let digest = Uuid::new_v5(&object, &cipher_data);
        Some(CipherBlock {
            context_id: self.context().id,
            initial_value: digest.as_bytes().to_vec(),
            cipher_data,
            clear_text_sha256: [digest.as_bytes().as_slice(), digest.as_bytes()].concat(),
        })
    }
}

/// A controller that does not encrypt.
fn show_secrets(config: &mut DeviceConfig) {
    let text = |handle: &SecretHandle| match handle {
        SecretHandle::Object { block, .. } => String::from_utf8_lossy(&block.cipher_data).into_owned(),
        SecretHandle::Sealed { .. } => String::new(),
    };
    for datastore in &mut config.datastores {
        if let Some(Credentials::Sealed(handle)) = &datastore.credentials {
            let text = text(handle);
            let mut lines = text.lines();
            let (user, password) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            let clear = Credentials::Clear { user: user.into(), password: password.into() };
            datastore.credentials = Some(clear);
        }
    }
    for app in &mut config.apps {
        if let Some(UserData::Sealed(handle)) = &app.user_data {
            let text = text(handle);
            app.user_data = Some(UserData::Clear(text.trim_start().into()));
        }
    }
    config.cipher_contexts.clear();
}
