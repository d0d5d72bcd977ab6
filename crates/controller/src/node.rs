// SPDX-License-Identifier: Apache-2.0
//! A registered node: what is stored of it, and what is kept in memory while the controller runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use controller_core::attest::AttestRecord;
use controller_core::resource::Attestation;
use eve_api::certs::PublicKey;
use model::config::{AppInstance, DeviceConfig};
use model::id::AppId;
use model::secret::CipherBlock;
use model::time::WallTime;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

/// Version of the stored form.
pub(crate) const FORMAT: u32 = 1;

/// eve-api `ZCertType` of certificates that nodes publish.
pub(crate) const CERT_ECDH: i32 = 13;
pub(crate) const CERT_QUOTE: i32 = 11;
pub(crate) const CERT_ENDORSEMENT: i32 = 12;

/// What is stored of a node. Certificates are kept byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    pub format: u32,
    pub device_pem: String,
    pub serial: String,
    pub soft_serial: String,
    /// Name of the join token it came with.
    pub join_token: String,
    /// Policy of that token at the time.
    pub attestation: Attestation,
    pub registered_ms: i64,
    /// Published certificates by their type.
    #[serde(default)]
    pub certs: BTreeMap<i32, String>,
    #[serde(default)]
    pub attest: AttestRecord,
    /// Escrowed volume keys: `AttestVolumeKey` messages in hex.
    #[serde(default)]
    pub escrow: Vec<String>,
}

/// A config as devices get it.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    pub hash: String,
    /// The signed answer.
    pub body: Bytes,
    pub config: Ordered,
}

/// What is kept of a published config to compare reports with.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered {
    pub version: String,
    pub timestamp: Option<WallTime>,
    pub apps: Vec<OrderedApp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedApp {
    pub id: AppId,
    pub version: String,
}

impl Ordered {
    pub fn of(config: &DeviceConfig) -> Ordered {
        let app = |app: &AppInstance| OrderedApp { id: app.id, version: app.version.clone() };
        Ordered {
            version: config.version.clone(),
            timestamp: config.timestamp,
            apps: config.apps.iter().map(app).collect(),
        }
    }
}

/// What `/config` waits for.
#[derive(Clone, Debug, Default)]
pub enum ConfigState {
    /// Not computed since the start.
    #[default]
    Unknown,
    Published(Arc<Published>),
    /// The device was deleted.
    Gone,
}

/// A node in memory.
#[derive(Debug)]
pub struct Node {
    pub id: Uuid,
    /// SHA-256 of its certificate: how it names itself.
    pub cert_hash: [u8; 32],
    pub key: PublicKey,
    pub serial: String,
    pub soft_serial: String,
    record: Mutex<NodeRecord>,
    /// Secrets encrypted for it, by object and digest of the clear text: the key agreement behind each is slow.
    pub sealed: Mutex<HashMap<(Uuid, [u8; 32]), CipherBlock>>,
    /// What the Device asks for, where it does.
    policy: Mutex<Option<Attestation>>,
    /// The one nonce given out and not used yet, and when.
    pub nonce: Mutex<Option<(Vec<u8>, i64)>>,
    /// Certificates were published: a quote that came before them can go on.
    pub certs_published: Notify,
    pub config: watch::Sender<ConfigState>,
    last_seen_ms: AtomicI64,
    /// Its ledger comes from a backup and the node has not been asked yet what it has.
    is_restored: AtomicBool,
}

/// A lock whose holder panicked still holds consistent data here: every write is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// `None` when the stored certificate cannot be read.
    pub fn new(id: Uuid, record: NodeRecord) -> Option<Node> {
        let cert_der = eve_api::certs::first_der(record.device_pem.as_bytes()).ok()?;
        Some(Node {
            id,
            cert_hash: eve_api::certs::der_hash(&cert_der),
            key: PublicKey::from_der(&cert_der).ok()?,
            serial: record.serial.clone(),
            soft_serial: record.soft_serial.clone(),
            sealed: Mutex::new(HashMap::new()),
            record: Mutex::new(record),
            policy: Mutex::new(None),
            nonce: Mutex::new(None),
            certs_published: Notify::new(),
            config: watch::channel(ConfigState::Unknown).0,
            last_seen_ms: AtomicI64::new(0),
            is_restored: AtomicBool::new(false),
        })
    }

    /// A copy of what is stored.
    pub fn record(&self) -> NodeRecord {
        lock(&self.record).clone()
    }

    /// Looks at what is stored without copying.
    pub fn with_record<T>(&self, look: impl FnOnce(&NodeRecord) -> T) -> T {
        look(&lock(&self.record))
    }

    /// Changes what is stored; the lock is held meanwhile, so changes come one after another.
    pub fn update_record<T>(&self, change: impl FnOnce(&mut NodeRecord) -> T) -> T {
        change(&mut lock(&self.record))
    }

    /// What the node must prove.
    pub fn policy(&self) -> Attestation {
        let of_device = *lock(&self.policy);
        of_device.unwrap_or_else(|| self.with_record(|record| record.attestation))
    }

    pub fn set_policy(&self, policy: Option<Attestation>) {
        *lock(&self.policy) = policy;
    }

    /// Gives when it was seen before.
    pub fn seen(&self, now_ms: i64) -> i64 {
        self.last_seen_ms.swap(now_ms, Ordering::Relaxed)
    }

    pub fn is_restored(&self) -> bool {
        self.is_restored.load(Ordering::Relaxed)
    }

    pub fn set_restored(&self, is_restored: bool) {
        self.is_restored.store(is_restored, Ordering::Relaxed);
    }

    /// 0: not since the start.
    pub fn last_seen_ms(&self) -> i64 {
        self.last_seen_ms.load(Ordering::Relaxed)
    }
}
