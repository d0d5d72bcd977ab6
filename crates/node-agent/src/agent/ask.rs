// SPDX-License-Identifier: Apache-2.0
//! Everything the agent asks its controller, and how an answer is read. Pure: no socket, no clock, no key.
//!
//! An [`Ask`] becomes a [`Message`] (path, payload, who signs); the HTTP shell wraps, sends and brings back an
//! [`HttpReply`]; the readers here turn that into the [`Outcome`] a machine understands.

use eve_api::certs::cert_hash;
use eve_api::envelope::{EnvelopeError, unseal_controller};
use eve_api::parse::{ConfigResponse, config_response};
use eve_api::paths::{DeviceCall, Endpoint};
use eve_api::register::build_registration;
use eve_api::wire::attest as wire;
use eve_api::wire::certs::ZCert;
use eve_api::wire::common::HashAlgorithm;
use eve_api::wire::config::ConfigRequest;
use eve_api::wire::uuid::{UuidRequest, UuidResponse};
use eve_api::{Message as _, paths};
use ipc::calls::{NodeCert, NodeIdentity, TpmQuote};
use model::id::DeviceId;
use node_core::attest::Verdict;
use node_core::exchange::Outcome;

/// How long our node lets the controller hold a config answer.
pub const HOLD_S: u32 = 35;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Certs,
    Register {
        serial: String,
    },
    Uuid {
        serial: String,
    },
    Config {
        device: DeviceId,
        hash: String,
        token: Vec<u8>,
    },
    PublishCerts {
        device: DeviceId,
    },
    Nonce {
        device: DeviceId,
    },
    Quote {
        device: DeviceId,
        quote: Option<TpmQuote>,
        version: String,
    },
    Info {
        device: DeviceId,
        key: String,
        number: u64,
        payload: Vec<u8>,
    },
    Metrics {
        device: DeviceId,
        payload: Vec<u8>,
    },
    /// Look for logs; the batch stays with the thread that asks.
    ReadLogs,
    PostLogs {
        device: DeviceId,
        batch: u64,
        version: String,
    },
    TakenLogs {
        batch: u64,
    },
    /// The same for what apps talked to.
    ReadFlows,
    PostFlows {
        device: DeviceId,
        batch: u64,
    },
    TakenFlows {
        batch: u64,
    },
}

/// Requests of one lane follow each other; lanes do not wait for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The held config request.
    Config,
    Dialogue,
    Logs,
}

impl Ask {
    pub fn lane(&self) -> Lane {
        match self {
            Ask::Config { .. } => Lane::Config,
            Ask::Certs
            | Ask::Register { .. }
            | Ask::Uuid { .. }
            | Ask::PublishCerts { .. }
            | Ask::Nonce { .. }
            | Ask::Quote { .. }
            | Ask::Info { .. }
            | Ask::Metrics { .. } => Lane::Dialogue,
            Ask::ReadLogs
            | Ask::PostLogs { .. }
            | Ask::TakenLogs { .. }
            | Ask::ReadFlows
            | Ask::PostFlows { .. }
            | Ask::TakenFlows { .. } => Lane::Logs,
        }
    }
}

/// A request as HTTP has it, before its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub path: String,
    pub signer: Signer,
    /// Nothing for a GET.
    pub payload: Vec<u8>,
    /// Besides those every request has.
    pub headers: Vec<(&'static str, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// A GET without a body.
    Nobody,
    Device,
    Onboarding,
}

/// An answer, not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    pub status: u16,
    pub untrusted_body: Vec<u8>,
}

/// Success as EVE's sender sees it.
pub fn is_success(status: u16) -> bool {
    matches!(status, 200 | 201 | 204 | 304)
}

/// The request of an ask; `None` for those that do not go to the controller, or whose body only the log lane has.
pub fn message(ask: &Ask, identity: &NodeIdentity) -> Option<Message> {
    let device_call = |device: &DeviceId, call: DeviceCall<'_>, payload: Vec<u8>| Message {
        path: Endpoint::Device { device: &device.to_string(), call }.to_string(),
        signer: Signer::Device,
        payload,
        headers: Vec::new(),
    };
    let attest = |device: &DeviceId, request: wire::ZAttestReq| {
        device_call(device, DeviceCall::Attest, request.encode_to_vec())
    };
    let soft_serial = identity.soft_serial.clone().unwrap_or_default();
    let serials = |serial: &String| {
        let headers =
            [(paths::HEADER_SERIAL, serial.clone()), (paths::HEADER_SOFT_SERIAL, soft_serial.clone())];
        headers.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    };
    Some(match ask {
        Ask::Certs => Message {
            path: Endpoint::Certs.to_string(),
            signer: Signer::Nobody,
            payload: Vec::new(),
            headers: Vec::new(),
        },
        Ask::Register { serial } => Message {
            path: Endpoint::Register.to_string(),
            signer: Signer::Onboarding,
            payload: build_registration(identity.device_cert_pem.as_bytes(), serial, &soft_serial),
            headers: serials(serial),
        },
        Ask::Uuid { serial } => Message {
            path: Endpoint::Uuid.to_string(),
            signer: Signer::Device,
            payload: UuidRequest::default().encode_to_vec(),
            headers: serials(serial),
        },
        Ask::Config { device, hash, token } => {
            let request = ConfigRequest { config_hash: hash.clone(), integrity_token: token.clone() };
            let mut message = device_call(device, DeviceCall::Config, request.encode_to_vec());
            message.headers.push(("Prefer", format!("wait={HOLD_S}")));
            message
        }
        Ask::PublishCerts { device } => attest(
            device,
            wire::ZAttestReq {
                req_type: wire::ZAttestReqType::AttestReqCert.into(),
                certs: identity.node_certs.iter().map(node_cert).collect(),
                ..wire::ZAttestReq::default()
            },
        ),
        Ask::Nonce { device } => attest(
            device,
            wire::ZAttestReq {
                req_type: wire::ZAttestReqType::AttestReqNonce.into(),
                ..wire::ZAttestReq::default()
            },
        ),
        Ask::Quote { device, quote, version } => attest(device, quote_request(quote.as_ref(), version)),
        Ask::Info { device, payload, .. } => device_call(device, DeviceCall::Info, payload.clone()),
        Ask::Metrics { device, payload } => device_call(device, DeviceCall::Metrics, payload.clone()),
        Ask::ReadLogs
        | Ask::PostLogs { .. }
        | Ask::TakenLogs { .. }
        | Ask::ReadFlows
        | Ask::PostFlows { .. }
        | Ask::TakenFlows { .. } => return None,
    })
}

fn node_cert(cert: &NodeCert) -> ZCert {
    use eve_api::wire::certs::{ZCertMetaData, ZCertMetaDataType};
    ZCert {
        hash_algo: HashAlgorithm::Sha25616bytes.into(),
        cert_hash: cert_hash(cert.pem.as_bytes()).to_vec(),
        r#type: cert.kind,
        cert: cert.pem.clone().into_bytes(),
        meta_data_items: cert
            .tpm_public
            .iter()
            .map(|public| ZCertMetaData {
                r#type: ZCertMetaDataType::Tpm2Public.into(),
                meta_data: public.clone(),
            })
            .collect(),
        ..ZCert::default()
    }
}

fn quote_request(quote: Option<&TpmQuote>, version: &str) -> wire::ZAttestReq {
    let mut message = wire::ZAttestQuote {
        versions: vec![wire::AttestVersionInfo {
            version_type: wire::AttestVersionType::Eve.into(),
            version: version.to_owned(),
        }],
        ..wire::ZAttestQuote::default()
    };
    if let Some(quote) = quote {
        message.attest_data = quote.attest_data.clone();
        message.signature = quote.signature.clone();
        let pcr = |(index, value): &(u32, [u8; 32])| wire::TpmPcrValue {
            index: *index,
            hash_algo: wire::TpmHashAlgo::Sha256.into(),
            value: value.to_vec(),
        };
        message.pcr_values = quote.pcrs.iter().map(pcr).collect();
    }
    wire::ZAttestReq {
        req_type: wire::ZAttestReqType::AttestReqQuote.into(),
        quote: Some(message),
        ..wire::ZAttestReq::default()
    }
}

/// An answer that nothing is read from but its status.
pub fn read_status(reply: Option<&HttpReply>) -> Outcome {
    match reply {
        None => Outcome::NoAnswer,
        Some(reply) if is_success(reply.status) => Outcome::Good(()),
        Some(reply) => Outcome::Status(reply.status),
    }
}

/// The verified payload of a success.
fn read_payload(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome<Vec<u8>> {
    let Some(reply) = reply else { return Outcome::NoAnswer };
    if !is_success(reply.status) {
        return Outcome::Status(reply.status);
    }
    let Some(signing_pem) = signing_pem else { return Outcome::CertMiss };
    match unseal_controller(&reply.untrusted_body, signing_pem) {
        Ok(payload) => Outcome::Good(payload),
        Err(EnvelopeError::CertMiss) => Outcome::CertMiss,
        Err(_) => Outcome::Refused,
    }
}

fn map<T, U>(outcome: Outcome<T>, read: impl FnOnce(T) -> Option<U>) -> Outcome<U> {
    match outcome {
        Outcome::Good(value) => read(value).map_or(Outcome::Refused, Outcome::Good),
        Outcome::Status(status) => Outcome::Status(status),
        Outcome::NoAnswer => Outcome::NoAnswer,
        Outcome::CertMiss => Outcome::CertMiss,
        Outcome::Refused => Outcome::Refused,
    }
}

/// Answer to [`Ask::Uuid`].
pub fn read_uuid(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome<DeviceId> {
    map(read_payload(reply, signing_pem), |payload| {
        UuidResponse::decode(&*payload).ok()?.uuid.parse().ok().filter(|id: &DeviceId| !id.0.is_nil())
    })
}

/// What came for a config request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigReply {
    NotModified,
    /// Verified and parsed, not yet judged.
    Config(Box<ConfigResponse>),
}

/// Answer to [`Ask::Config`]. The payload verified; whether it may be applied is for the caller to say.
pub fn read_config(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome<ConfigReply> {
    if reply.is_some_and(|reply| reply.status == 304) {
        return Outcome::Good(ConfigReply::NotModified);
    }
    map(read_payload(reply, signing_pem), |payload| match config_response(&payload).ok()? {
        ConfigResponse { config: None, .. } => Some(ConfigReply::NotModified),
        response => Some(ConfigReply::Config(Box::new(response))),
    })
}

fn read_attest(
    reply: Option<&HttpReply>,
    signing_pem: Option<&[u8]>,
    kind: wire::ZAttestRespType,
) -> Outcome<wire::ZAttestResponse> {
    map(read_payload(reply, signing_pem), |payload| {
        wire::ZAttestResponse::decode(&*payload).ok().filter(|response| response.resp_type == i32::from(kind))
    })
}

/// Answer to [`Ask::PublishCerts`]. A success without a body is one.
pub fn read_certs_published(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome {
    if reply.is_some_and(|reply| is_success(reply.status) && reply.untrusted_body.is_empty()) {
        return Outcome::Good(());
    }
    map(read_attest(reply, signing_pem, wire::ZAttestRespType::AttestRespCert), |_| Some(()))
}

/// Answer to [`Ask::Nonce`].
pub fn read_nonce(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome<Vec<u8>> {
    let response = read_attest(reply, signing_pem, wire::ZAttestRespType::AttestRespNonce);
    map(response, |response| response.nonce.map(|nonce| nonce.nonce))
}

/// Answer to [`Ask::Quote`].
pub fn read_quote(reply: Option<&HttpReply>, signing_pem: Option<&[u8]>) -> Outcome<Verdict> {
    let response = read_attest(reply, signing_pem, wire::ZAttestRespType::AttestRespQuoteResp);
    map(response, |response| {
        let quote = response.quote_resp?;
        Some(match wire::ZAttestResponseCode::try_from(quote.response) {
            Ok(wire::ZAttestResponseCode::Success) => Verdict::Accepted { token: quote.integrity_token },
            Ok(wire::ZAttestResponseCode::NonceMismatch) => Verdict::NonceMismatch,
            Ok(wire::ZAttestResponseCode::NoCertFound) => Verdict::NoCertificate,
            Ok(wire::ZAttestResponseCode::QuoteFailed) => Verdict::QuoteFailed,
            Ok(wire::ZAttestResponseCode::Invalid) | Err(_) => Verdict::Invalid,
        })
    })
}
