// SPDX-License-Identifier: Apache-2.0
//! The controller as its two kinds of clients meet it, without a network: requests go straight to the services.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use base64::Engine as _;
use bytes::Bytes;
use eve_api::Message as _;
use eve_api::envelope::{EcdsaSigner, seal_device, seal_register, unseal_controller};
use eve_api::wire::attest::{ZAttestQuote, ZAttestReq, ZAttestReqType, ZAttestResponse};
use eve_api::wire::certs::ZCert;
use eve_api::wire::config::{ConfigRequest, ConfigResponse};
use eve_api::wire::uuid::UuidResponse;
use http_body_util::{BodyExt as _, Full};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::state::{Controller, Settings};
use crate::store::SqliteStore;
use crate::{device_api, operator_api};

mod access;
mod overload;
mod registration;
mod requests;
mod restore;
mod watch;

const DEVICE_API: &str = "/api/v2/edgedevice";
/// Longer than any test: a held answer that ends did so for a reason.
const HOLD: Duration = Duration::from_secs(300);

fn open(data: &Path, hold: Duration) -> Arc<Controller> {
    crate::files::private_dir(data).unwrap();
    let store = Arc::new(SqliteStore::open(&data.join("intent.db")).unwrap());
    let settings = Settings { advertise: "controller.example:8443".into(), hold, exported_logs: None };
    Arc::new(Controller::open(data, store, settings).unwrap())
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn api(
    controller: &Arc<Controller>,
    method: Method,
    path: &str,
    body: Value,
    version: Option<&str>,
) -> Reply {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}/projects/default/{path}", operator_api::BASE))
        .header(header::AUTHORIZATION, format!("Bearer {}", controller.admin_token));
    if let Some(version) = version {
        request = request.header(header::IF_MATCH, format!("\"{version}\""));
    }
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = operator_api::router(controller.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Reply { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
}

async fn apply(controller: &Arc<Controller>, objects: Value) -> Value {
    let reply = api(controller, Method::POST, "apply", json!({ "objects": objects }), None).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json());
    reply.json()
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "selvedge/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn hello(image: &str) -> Value {
    json!([
        object("Secret", "s", json!({ "data": { "greeting": "hello from a secret" } })),
        object("Network", "n", json!({ "subnet": "10.1.0.0/24" })),
        object(
            "App",
            "hello",
            json!({
                "image": image, "selector": {}, "networks": [{ "network": "n" }], "ports": ["8080:80"],
                "secretEnv": { "GREETING": { "name": "s", "key": "greeting" } },
            })
        ),
    ])
}

/// A node that speaks just enough of the protocol.
struct Node {
    controller: Arc<Controller>,
    key: KeyPair,
    issuer: CertificateParams,
    pem: String,
    signer: EcdsaSigner,
    hash: [u8; 32],
    id: String,
    token: Vec<u8>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Node {
    fn new(controller: &Arc<Controller>) -> Node {
        let key = KeyPair::generate().unwrap();
        let mut issuer = params("EVE");
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = issuer.self_signed(&key).unwrap();
        Node {
            controller: controller.clone(),
            signer: EcdsaSigner::from_pem(key.serialize_pem().as_bytes()).unwrap(),
            hash: eve_api::certs::der_hash(cert.der()),
            pem: cert.pem(),
            issuer,
            key,
            id: String::new(),
            token: Vec::new(),
        }
    }

    async fn send(&self, path: &str, body: Vec<u8>) -> Reply {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{DEVICE_API}/{path}"))
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let (parts, body) = device_api::answer(&self.controller, request).await.into_parts();
        Reply { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }

    async fn post(&self, path: &str, payload: Vec<u8>) -> Reply {
        self.send(path, seal_device(payload, &self.hash, &self.signer).unwrap()).await
    }

    fn open(&self, reply: &Reply) -> Vec<u8> {
        unseal_controller(&reply.body, &self.controller.ca.signing_pem).unwrap()
    }

    async fn register(&self, serial: &str) -> StatusCode {
        let bundle =
            api(&self.controller, Method::GET, "jointokens/t/bundle", Value::Null, None).await.json();
        let cert = bundle["onboard.cert.pem"].as_str().unwrap();
        let signer = EcdsaSigner::from_pem(bundle["onboard.key.pem"].as_str().unwrap().as_bytes()).unwrap();
        let hash = eve_api::certs::der_hash(&eve_api::certs::first_der(cert.as_bytes()).unwrap());
        let payload = eve_api::register::build_registration(self.pem.as_bytes(), serial, "");
        self.send("register", seal_register(payload, cert.as_bytes(), &hash, &signer).unwrap()).await.status
    }

    async fn onboard(&mut self, serial: &str) {
        assert_eq!(self.register(serial).await, StatusCode::CREATED);
        let reply = self.post("uuid", Vec::new()).await;
        self.id = UuidResponse::decode(self.open(&reply).as_slice()).unwrap().uuid;
        let quote = ZAttestReq {
            req_type: ZAttestReqType::AttestReqQuote.into(),
            quote: Some(ZAttestQuote::default()),
            ..ZAttestReq::default()
        };
        let reply = self.attest(quote).await;
        let answer = ZAttestResponse::decode(self.open(&reply).as_slice()).unwrap();
        self.token = answer.quote_resp.unwrap().integrity_token;
        assert!(!self.token.is_empty());
    }

    async fn attest(&self, request: ZAttestReq) -> Reply {
        self.post(&format!("id/{}/attest", self.id), request.encode_to_vec()).await
    }

    async fn publish_ecdh(&self) -> StatusCode {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.issuer, &self.key);
        let pem = params("ecdh").signed_by(&key, &issuer).unwrap().pem();
        let cert = ZCert {
            hash_algo: 1,
            cert_hash: eve_api::certs::cert_hash(pem.as_bytes()).to_vec(),
            r#type: 13,
            cert: pem.into_bytes(),
            ..ZCert::default()
        };
        let req_type = ZAttestReqType::AttestReqCert.into();
        self.attest(ZAttestReq { req_type, certs: vec![cert], ..ZAttestReq::default() }).await.status
    }

    async fn poll(&self, known: &str) -> Reply {
        let request = ConfigRequest { config_hash: known.into(), integrity_token: self.token.clone() };
        self.post(&format!("id/{}/config", self.id), request.encode_to_vec()).await
    }

    async fn config(&self, known: &str) -> ConfigResponse {
        let reply = self.poll(known).await;
        assert_eq!(reply.status, StatusCode::OK);
        ConfigResponse::decode(self.open(&reply).as_slice()).unwrap()
    }
}

async fn with_node(data: &Path) -> (Arc<Controller>, Node) {
    let controller = open(data, HOLD);
    apply(&controller, json!([object("JoinToken", "t", json!({ "serials": ["S1"] }))])).await;
    let mut node = Node::new(&controller);
    node.onboard("S1").await;
    (controller, node)
}

#[tokio::test]
async fn a_held_poll_is_answered_by_the_change_and_secrets_follow_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let first = node.config("").await;
    let (second, _) = tokio::join!(node.config(&first.config_hash), apply(&controller, hello("hello:1")));
    let config = second.config.unwrap();
    assert_eq!(config.apps.len(), 1);
    assert!(config.apps[0].cipher_data.is_none(), "there is no key to encrypt for yet");
    let (third, status) = tokio::join!(node.config(&second.config_hash), node.publish_ecdh());
    assert_eq!(status, StatusCode::CREATED);
    let third = third.config.unwrap();
    assert!(third.apps[0].cipher_data.is_some() && third.datastores[0].cipher_data.is_some());
    assert!(third.config_timestamp > config.config_timestamp);
    assert_eq!(node.publish_ecdh().await, StatusCode::BAD_REQUEST, "another certificate of the same type");
}

#[tokio::test]
async fn the_same_intent_has_the_same_hash_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    apply(&controller, hello("hello:1")).await;
    node.publish_ecdh().await;
    let before = node.config("").await;
    drop(controller);
    let node = Node { controller: open(dir.path(), HOLD), ..node };
    let after = node.config("").await;
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_deleted_device_is_told_so_and_may_not_come_back_with_its_old_token() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let known = node.config("").await.config_hash;
    let gone = api(&controller, Method::DELETE, "devices/s1", Value::Null, None);
    let (held, deleted) = tokio::join!(node.poll(&known), gone);
    assert_eq!((held.status, deleted.status), (StatusCode::NOT_FOUND, StatusCode::OK));
    assert_eq!(node.poll(&known).await.status, StatusCode::NOT_FOUND);
    assert_eq!(node.post("uuid", Vec::new()).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(node.register("S1").await, StatusCode::CREATED, "the serial is free again");
}

#[tokio::test]
async fn when_a_device_was_heard_is_known_after_the_controller_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, _node) = with_node(dir.path()).await;
    controller.save_heartbeats();
    drop(controller);
    let controller = open(dir.path(), HOLD);
    let shown = api(&controller, Method::GET, "devices/s1", Value::Null, None).await.json();
    assert!(shown["status"]["lastSeen"].is_string());
    assert_eq!(shown["status"]["conditions"][1]["status"], "True", "connected");
}

#[tokio::test]
async fn a_wait_of_zero_is_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_, node) = with_node(dir.path()).await;
    let known = node.config("").await.config_hash;
    let request = ConfigRequest { config_hash: known, integrity_token: node.token.clone() };
    let body = seal_device(request.encode_to_vec(), &node.hash, &node.signer).unwrap();
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{DEVICE_API}/id/{}/config", node.id))
        .header("Prefer", "wait=0")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = device_api::answer(&node.controller, request).await;
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn a_required_tpm_lets_no_empty_quote_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let spec = json!({ "serial": "S1", "attestation": "required" });
    apply(&controller, json!([object("Device", "s1", spec)])).await;
    let req_type = ZAttestReqType::AttestReqQuote.into();
    let request = ZAttestReq { req_type, quote: Some(ZAttestQuote::default()), ..ZAttestReq::default() };
    let reply = node.attest(request).await;
    let answer = ZAttestResponse::decode(node.open(&reply).as_slice()).unwrap().quote_resp.unwrap();
    assert!(answer.response != 1 && answer.integrity_token.is_empty());
    let shown = api(&controller, Method::GET, "devices/s1", Value::Null, None).await.json();
    assert_eq!(shown["status"]["attestationPolicy"], "required");
}

#[tokio::test]
async fn apply_of_a_plan_is_refused_when_what_it_read_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, _node) = with_node(dir.path()).await;
    apply(&controller, hello("hello:1")).await;
    let change = json!({ "objects": hello("hello:2") });
    let plan = api(&controller, Method::POST, "plan", change.clone(), None).await.json();
    assert_eq!(plan["devices"][0]["name"], "s1");
    // Somebody else raises the memory of the same app.
    let mut other = hello("hello:1");
    other[2]["spec"]["resources"] = json!({ "memory": "1Gi" });
    apply(&controller, other).await;
    let mut stale = change;
    stale["plan"] = plan["hash"].clone();
    let reply = api(&controller, Method::POST, "apply", stale.clone(), None).await;
    assert_eq!((reply.status, reply.json()["title"].clone()), (StatusCode::CONFLICT, json!("PlanStale")));
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
    let fresh = api(&controller, Method::POST, "plan", stale, None).await.json();
    let done = api(&controller, Method::POST, "apply", json!({ "plan": fresh["hash"] }), None).await;
    assert_eq!(done.json()["devices"], fresh["devices"], "the apply did what the plan said");
    let again = api(&controller, Method::POST, "plan", json!({ "objects": hello("hello:2") }), None).await;
    assert_eq!(again.json()["objects"], json!([]));
}

#[tokio::test]
async fn a_write_with_an_old_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let network = |subnet: &str| object("Network", "n", json!({ "subnet": subnet }));
    let put = |subnet: &str, version: Option<&'static str>| {
        let (controller, body) = (controller.clone(), network(subnet));
        async move { api(&controller, Method::PUT, "networks/n", body, version).await }
    };
    let created = put("10.0.0.0/24", None).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let version = created.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    assert_eq!(created.headers[header::ETAG], format!("\"{version}\"").as_str());
    assert_eq!(put("10.0.1.0/24", Some("999")).await.status, StatusCode::CONFLICT);
    let version: &'static str = version.leak();
    let changed = put("10.0.1.0/24", Some(version)).await;
    assert_eq!(changed.json()["metadata"]["generation"], 2);
    assert_eq!(put("10.0.2.0/24", Some(version)).await.status, StatusCode::CONFLICT);
    let delete = api(&controller, Method::DELETE, "networks/n", Value::Null, Some(version)).await;
    assert_eq!(delete.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn wrong_objects_are_refused_with_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let spec = json!({ "image": "UPPER", "registry": "nowhere", "devices": ["gone"], "ports": ["80"] });
    let change = json!({ "objects": [object("App", "bad", spec)] });
    let reply = api(&controller, Method::POST, "apply", change, None).await;
    assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY);
    let paths: Vec<_> = reply.json()["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(paths, ["spec.devices[0]", "spec.image", "spec.ports", "spec.ports[0]", "spec.registry"]);
    assert_eq!(
        api(&controller, Method::GET, "apps/bad", Value::Null, None).await.status,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn nobody_passes_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let ask = |uri: String, token: &'static str| {
        let router = operator_api::router(controller.clone());
        let request =
            Request::builder().uri(uri).header(header::AUTHORIZATION, token).body(Body::empty()).unwrap();
        async move { router.oneshot(request).await.unwrap().status() }
    };
    let devices = format!("{}/projects/default/devices", operator_api::BASE);
    for token in ["", "Bearer", "Bearer ", "Bearer wrong", "Basic wrong"] {
        assert_eq!(ask(devices.clone(), token).await, StatusCode::UNAUTHORIZED, "{token}");
    }
    assert_eq!(ask("/healthz".into(), "").await, StatusCode::OK);
    assert_eq!(ask("/openapi.json".into(), "").await, StatusCode::OK);
}

#[tokio::test]
async fn a_body_without_end_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let node = Node::new(&controller);
    let reply = node.send("register", vec![0; 2 * 1024 * 1024]).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    let text = base64::engine::general_purpose::STANDARD.encode("no envelope");
    assert_eq!(node.send("uuid", text.into_bytes()).await.status, StatusCode::BAD_REQUEST);
}
