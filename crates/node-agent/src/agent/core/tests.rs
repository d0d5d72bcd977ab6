// SPDX-License-Identifier: Apache-2.0
//! The core against a controller and a vault played by the test; no socket, no clock.

use super::*;
use eve_api::Message as _;
use eve_api::certs::{Role, build_controller_certs, cert_hash};
use eve_api::envelope::{EcdsaSigner, seal_controller};
use eve_api::wire::attest as wire;
use eve_api::wire::uuid::UuidResponse;
use model::config::{ConfigItem, Datastore, DatastoreKind};
use model::id::DatastoreId;
use model::secret::{CipherContext, SecretHandle};
use model::time::{Wall, WallTime};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use uuid::Uuid;

const DEVICE: DeviceId = DeviceId(Uuid::from_u128(42));

fn now(ms: u64) -> Now {
    Now { mono: MonoMs(ms), wall: Wall::Trusted(WallTime { seconds: 1_800_000_000, nanos: 0 }) }
}

/// A controller's keys; every new one has other certificates under the same root.
struct Controller {
    root: (CertificateParams, KeyPair),
    root_pem: String,
    signing_pem: String,
    signing: EcdsaSigner,
    ecdh_pem: String,
}

impl Controller {
    fn new() -> Controller {
        let root_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = params.self_signed(&root_key).unwrap().pem();
        let mut out = Controller {
            root: (params, root_key),
            root_pem,
            signing_pem: String::new(),
            signing: EcdsaSigner::from_pem(KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap(),
            ecdh_pem: String::new(),
        };
        out.rotate_signing();
        out.rotate_ecdh();
        out
    }

    fn issue(&self) -> (String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.root.0, &self.root.1);
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        (params.signed_by(&key, &issuer).unwrap().pem(), key)
    }

    fn rotate_signing(&mut self) {
        let (pem, key) = self.issue();
        self.signing_pem = pem;
        self.signing = EcdsaSigner::from_pem(key.serialize_pem().as_bytes()).unwrap();
    }

    fn rotate_ecdh(&mut self) {
        self.ecdh_pem = self.issue().0;
    }

    fn seal(&self, payload: Vec<u8>) -> Option<HttpReply> {
        let body = seal_controller(payload, self.signing_pem.as_bytes(), &self.signing).unwrap();
        Some(HttpReply { status: 200, untrusted_body: body })
    }

    fn certs(&self) -> Option<HttpReply> {
        let certs = [(Role::Signing, self.signing_pem.as_bytes()), (Role::Ecdh, self.ecdh_pem.as_bytes())];
        self.seal(build_controller_certs(certs))
    }

    fn config(&self, config: &DeviceConfig, hash: &str) -> Option<HttpReply> {
        self.seal(render::config_response(config, hash))
    }

    fn attest(&self, ask: &Ask) -> Option<HttpReply> {
        let mut response = wire::ZAttestResponse::default();
        match ask {
            Ask::PublishCerts { .. } => response.resp_type = wire::ZAttestRespType::AttestRespCert.into(),
            Ask::Nonce { .. } => {
                response.resp_type = wire::ZAttestRespType::AttestRespNonce.into();
                response.nonce = Some(wire::ZAttestNonceResp { nonce: vec![1; 20] });
            }
            _ => {
                response.resp_type = wire::ZAttestRespType::AttestRespQuoteResp.into();
                response.quote_resp = Some(wire::ZAttestQuoteResp {
                    response: wire::ZAttestResponseCode::Success.into(),
                    integrity_token: b"token".to_vec(),
                    ..Default::default()
                });
            }
        }
        self.seal(response.encode_to_vec())
    }
}

/// What the core did, in order.
#[derive(Default)]
struct Fake {
    asks: Vec<Ask>,
    configs: Vec<DeviceConfig>,
    /// Number of asks when the first config was published.
    asks_before_config: Option<usize>,
    trusted: Vec<Vec<String>>,
}

impl Effects for Fake {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        self.asks.push(ask);
        Ok(())
    }
    fn vault(&mut self, request: VaultRequest) -> Result<VaultReply, Fault> {
        Ok(match request {
            VaultRequest::Seal { .. } => VaultReply::Sealed(SecretHandle::Sealed { sealed: vec![7] }),
            VaultRequest::Quote { .. } => VaultReply::Quote(None),
            VaultRequest::TrustControllerCerts { ecdh_pems } => {
                self.trusted.push(ecdh_pems);
                VaultReply::Done
            }
            other => panic!("{other:?}"),
        })
    }
    fn publish_config(&mut self, config: &DeviceConfig) {
        self.asks_before_config.get_or_insert(self.asks.len());
        self.configs.push(config.clone());
    }
    fn publish_observed(&mut self, _observed: &AgentObserved) {}
    fn log(&mut self, _severity: LogSeverity, _text: String) {}
}

struct Rig {
    controller: Controller,
    dir: tempfile::TempDir,
    core: Core,
    fake: Fake,
    ms: u64,
}

impl Rig {
    fn new() -> Rig {
        let controller = Controller::new();
        let dir = tempfile::tempdir().unwrap();
        let core = core(&controller, dir.path());
        Rig { controller, dir, core, fake: Fake::default(), ms: 0 }
    }

    fn start(&mut self) {
        self.core.start(now(self.ms), &mut self.fake);
    }

    /// The same node after a restart of the agent.
    fn restart(&mut self) {
        self.core = core(&self.controller, self.dir.path());
        self.fake = Fake::default();
        self.start();
    }

    fn answer(&mut self, ask: Ask, reply: Option<HttpReply>) {
        self.core.done(
            now(self.ms),
            Done::Http {
                ask,
                result: reply.ok_or_else(|| Fault::new(Reason::ControllerUnreachable, "silent")),
            },
            &mut self.fake,
        );
    }

    /// Answers everything but config requests as a good controller does, and returns those.
    fn settle(&mut self) -> Vec<Ask> {
        let mut configs = Vec::new();
        while !self.fake.asks.is_empty() {
            let ask = self.fake.asks.remove(0);
            let ok = Some(HttpReply { status: 201, untrusted_body: vec![] });
            let reply = match &ask {
                Ask::Config { .. } => {
                    configs.push(ask);
                    continue;
                }
                Ask::ReadLogs => {
                    self.core.done(now(self.ms), Done::Logs { batch: None }, &mut self.fake);
                    continue;
                }
                Ask::ReadFlows => {
                    self.core.done(now(self.ms), Done::Flows { batch: None, lost: None }, &mut self.fake);
                    continue;
                }
                Ask::Certs => self.controller.certs(),
                Ask::Uuid { .. } => self
                    .controller
                    .seal(UuidResponse { uuid: DEVICE.to_string(), ..Default::default() }.encode_to_vec()),
                Ask::PublishCerts { .. } | Ask::Nonce { .. } | Ask::Quote { .. } => {
                    self.controller.attest(&ask)
                }
                _ => ok,
            };
            self.answer(ask, reply);
        }
        configs
    }

    /// Lets time pass until the config is asked for again.
    fn next_config_ask(&mut self) -> Ask {
        for _ in 0..100 {
            if let Some(ask) = self.settle().pop() {
                return ask;
            }
            self.ms = self.core.deadline().unwrap().0.max(self.ms);
            self.core.wake(now(self.ms), &mut self.fake);
        }
        panic!("no config request");
    }

    fn onboarded() -> (Rig, Ask) {
        let mut rig = Rig::new();
        rig.start();
        let ask = rig.next_config_ask();
        (rig, ask)
    }
}

fn core(controller: &Controller, dir: &std::path::Path) -> Core {
    let identity = NodeIdentity {
        device_cert_pem: controller.ecdh_pem.clone(),
        onboarding_cert_pem: Some("PEM".into()),
        node_certs: vec![],
        soft_serial: None,
        server: "controller".into(),
        root_certs_pem: controller.root_pem.clone(),
        tls_root_certs_pem: controller.root_pem.clone(),
    };
    Core::new(Setup {
        identity,
        disk: Disk::new(service::files::Directory::new(dir)),
        seed: 1,
        serial: Some("S".into()),
    })
}

fn config(version: &str, seconds: i64) -> DeviceConfig {
    DeviceConfig {
        version: version.into(),
        timestamp: Some(WallTime { seconds, nanos: 0 }),
        ..DeviceConfig::empty(DEVICE)
    }
}

fn versions(fake: &Fake) -> Vec<&str> {
    fake.configs.iter().map(|config| &*config.version).collect()
}

#[test]
fn a_new_node_onboards_attests_and_asks_with_its_token() {
    let (rig, ask) = Rig::onboarded();
    assert_eq!(ask, Ask::Config { device: DEVICE, hash: String::new(), token: b"token".to_vec() });
    assert!(rig.core.is_attested());
    assert_eq!(rig.fake.trusted, [[rig.controller.ecdh_pem.clone()]]);
}

#[test]
fn a_saved_config_is_published_before_any_request_even_when_its_signer_is_gone() {
    let (mut rig, ask) = Rig::onboarded();
    let reply = rig.controller.config(&config("1", 5), "h");
    rig.answer(ask, reply);
    assert_eq!(versions(&rig.fake), ["1"]);
    rig.controller.rotate_signing();
    rig.restart();
    assert_eq!(versions(&rig.fake), ["1"]);
    assert_eq!(rig.fake.asks_before_config, Some(0));
    // And what is older than it stays ignored after the restart.
    let ask = rig.next_config_ask();
    let reply = rig.controller.config(&config("0", 4), "old");
    rig.answer(ask, reply);
    assert_eq!(versions(&rig.fake), ["1"]);
}

#[test]
fn a_config_that_could_not_be_saved_is_in_force_and_saved_when_there_is_room() {
    let (mut rig, ask) = Rig::onboarded();
    let path = rig.dir.path().join("lastconfig");
    std::fs::create_dir_all(path.join("in the way")).unwrap();
    let reply = rig.controller.config(&config("1", 5), "h");
    rig.answer(ask, reply);
    assert_eq!(versions(&rig.fake), ["1"]);
    std::fs::remove_dir_all(&path).unwrap();
    let ask = rig.next_config_ask();
    rig.answer(ask, Some(HttpReply { status: 304, untrusted_body: vec![] }));
    rig.restart();
    assert_eq!(versions(&rig.fake), ["1"]);
}

#[test]
fn torn_saved_configs_are_dropped() {
    let (mut rig, ask) = Rig::onboarded();
    let reply = rig.controller.config(&config("1", 5), "h");
    rig.answer(ask, reply);
    let path = rig.dir.path().join("lastconfig");
    let whole = std::fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(37) {
        std::fs::write(&path, &whole[..length]).unwrap();
        rig.restart();
        assert!(rig.fake.configs.is_empty(), "cut at {length}");
    }
}

#[test]
fn forged_foreign_and_old_answers_change_nothing() {
    let (mut rig, ask) = Rig::onboarded();
    let reply = rig.controller.config(&config("2", 9), "h2");
    rig.answer(ask, reply);
    let good = rig.controller.config(&config("3", 10), "h3").unwrap();
    let foreign = DeviceConfig { id: DeviceId(Uuid::from_u128(43)), ..config("3", 10) };
    let mut flipped = good.clone();
    let last = flipped.untrusted_body.len() - 1;
    flipped.untrusted_body[last] ^= 1;
    let replies = [
        Some(flipped),
        Some(HttpReply { untrusted_body: good.untrusted_body[..last / 2].to_vec(), ..good.clone() }),
        Some(HttpReply { untrusted_body: vec![], ..good.clone() }),
        Some(HttpReply { status: 503, ..good.clone() }),
        rig.controller.config(&foreign, "h3"),
        rig.controller.config(&config("1", 8), "h1"),
        None,
    ];
    for reply in replies {
        let ask = rig.next_config_ask();
        assert!(matches!(&ask, Ask::Config { hash, .. } if hash == "h2"), "{ask:?}");
        rig.answer(ask, reply);
        assert_eq!(versions(&rig.fake), ["2"]);
    }
    let ask = rig.next_config_ask();
    rig.answer(ask, Some(good));
    assert_eq!(versions(&rig.fake), ["2", "3"]);
}

#[test]
fn a_rotated_signer_is_found_through_the_certificates() {
    let (mut rig, ask) = Rig::onboarded();
    rig.controller.rotate_signing();
    rig.ms += 5_000;
    let reply = rig.controller.config(&config("1", 5), "h");
    rig.answer(ask, reply.clone());
    assert_eq!(versions(&rig.fake), [""; 0]);
    assert_eq!(rig.fake.asks.first(), Some(&Ask::Certs));
    let before = rig.ms;
    let ask = rig.next_config_ask();
    assert_eq!(rig.ms, before, "asked again at once with the new set");
    rig.answer(ask, reply);
    assert_eq!(versions(&rig.fake), ["1"]);
}

#[test]
fn a_config_whose_secrets_name_an_unknown_certificate_waits_for_the_new_set() {
    let (mut rig, ask) = Rig::onboarded();
    rig.controller.rotate_ecdh();
    rig.ms += 5_000;
    let context = CipherContext {
        id: "c".into(),
        device_cert_hash: vec![1; 16],
        controller_cert_hash: cert_hash(rig.controller.ecdh_pem.as_bytes()).to_vec(),
    };
    let config = DeviceConfig { cipher_contexts: vec![context], ..config("1", 5) };
    let reply = rig.controller.config(&config, "h");
    rig.answer(ask, reply);
    assert!(rig.fake.configs.is_empty());
    rig.settle();
    assert_eq!(versions(&rig.fake), ["1"]);
    assert_eq!(rig.fake.trusted.last(), Some(&vec![rig.controller.ecdh_pem.clone()]));
}

#[test]
fn clear_secrets_are_sealed_before_anything_is_published() {
    let (mut rig, ask) = Rig::onboarded();
    let store = Datastore {
        id: DatastoreId(Uuid::from_u128(1)),
        kind: DatastoreKind::ContainerRegistry,
        fqdn: "docker://registry.example".into(),
        path: String::new(),
        credentials: Some(model::config::Credentials::Clear { user: "u".into(), password: "hunter2".into() }),
        ca_pem: vec![],
    };
    let config = DeviceConfig { datastores: vec![store], ..config("1", 5) };
    let reply = rig.controller.config(&config, "h");
    rig.answer(ask, reply);
    let text = format!("{:?}", rig.fake.configs);
    assert!(text.contains("Sealed") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_refused_token_is_replaced_and_a_new_epoch_sends_everything_again() {
    let (mut rig, ask) = Rig::onboarded();
    rig.answer(ask, Some(HttpReply { status: 403, untrusted_body: vec![] }));
    let before = rig.ms;
    let ask = rig.next_config_ask();
    assert_eq!(rig.ms, before, "asked again as soon as there is a token");
    let items = vec![ConfigItem { key: "timer.metric.interval".into(), value: "3600".into() }];
    let first = DeviceConfig { items, ..config("1", 5) };
    let reply = rig.controller.config(&first, "h1");
    rig.answer(ask, reply);
    let ask = rig.next_config_ask();
    rig.ms += 60_000;
    let reply = rig.controller.config(&DeviceConfig { controller_epoch: 1, ..first }, "h2");
    rig.answer(ask, reply);
    assert!(rig.fake.asks.iter().any(|ask| matches!(ask, Ask::Info { key, .. } if key == "device")));
}
