// SPDX-License-Identifier: Apache-2.0
//! `/attest`: publishing node certificates, nonces, quotes, escrow of volume keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller_core::attest::{Evidence, Known, NONCE_MS, Verdict, judge};
use eve_api::Message as _;
use eve_api::certs::{self, PublicKey};
use eve_api::wire::attest::{
    AttestStorageKeys, AttestStorageKeysResp, AttestStorageKeysResponseCode, AttestVolumeKey, TpmHashAlgo,
    ZAttestNonceResp, ZAttestQuote, ZAttestQuoteResp, ZAttestReq, ZAttestReqType, ZAttestRespType,
    ZAttestResponse, ZAttestResponseCode,
};
use eve_api::wire::certs::ZCert;
use hyper::StatusCode;
use trust::quote::{PCR_BYTES, Pcrs, QuoteError, QuoteKey, verify_quote};
use x509_cert::der::{Decode as _, Encode as _};

use super::{Answer, Outcome, malformed};
use crate::node::{CERT_ECDH, CERT_ENDORSEMENT, CERT_QUOTE, Node, lock};
use crate::state::{Controller, now_ms, text_hash};

/// Bytes of a nonce; 12 to 32 are allowed, or EVE's TPM agent refuses.
const NONCE_BYTES: usize = 32;
/// Random bytes of a token; it travels as text of twice the length.
const TOKEN_BYTES: usize = 32;
/// In half of its starts EVE sends the quote before the certificates; a refusal would cost it 15 s.
const CERT_WAIT: Duration = Duration::from_secs(2);
/// Types of certificates that nodes publish.
const NODE_CERT_TYPES: std::ops::RangeInclusive<i32> = 10..=13;
/// Certificates in one message; there are four types.
const MAX_CERTS: usize = 8;
/// Escrowed keys, and bytes of each.
const MAX_ESCROW_KEYS: usize = 8;
const MAX_ESCROW_BYTES: usize = 16 * 1024;

pub(super) async fn attest(controller: &Arc<Controller>, node: Arc<Node>, payload: Vec<u8>) -> Outcome {
    let request = ZAttestReq::decode(payload.as_slice()).map_err(|_| malformed("not a ZAttestReq"))?;
    let controller = controller.clone();
    let kind = ZAttestReqType::try_from(request.req_type).unwrap_or(ZAttestReqType::AttestReqNone);
    let answer = match kind {
        ZAttestReqType::AttestReqNone => return Err(malformed("unknown request type")),
        ZAttestReqType::AttestReqNonce => nonce(&node),
        ZAttestReqType::AttestReqCert => {
            let (controller, node) = (controller.clone(), node.clone());
            tokio::task::spawn_blocking(move || publish(&controller, &node, &request.certs)).await??
        }
        ZAttestReqType::AttestReqQuote => {
            let quote = request.quote.unwrap_or_default();
            if !is_empty(&quote) {
                wait_for_certificate(&node).await;
            }
            let (controller, node) = (controller.clone(), node.clone());
            tokio::task::spawn_blocking(move || take_quote(&controller, &node, &quote)).await??
        }
        ZAttestReqType::StoreKeys => {
            let keys = request.storage_keys.unwrap_or_default();
            let (controller, node) = (controller.clone(), node.clone());
            tokio::task::spawn_blocking(move || escrow(&controller, &node, &keys)).await??
        }
    };
    Ok(Answer::envelope(StatusCode::CREATED, controller.seal(answer.encode_to_vec())?))
}

fn nonce(node: &Node) -> ZAttestResponse {
    let nonce = crate::files::random_bytes(NONCE_BYTES);
    *lock(&node.nonce) = Some((nonce.clone(), now_ms()));
    ZAttestResponse {
        resp_type: ZAttestRespType::AttestRespNonce.into(),
        nonce: Some(ZAttestNonceResp { nonce }),
        ..ZAttestResponse::default()
    }
}

/// Takes in node certificates. They are good for ever: another one of a known type is refused.
fn publish(controller: &Controller, node: &Node, certs: &[ZCert]) -> Result<ZAttestResponse, Answer> {
    if certs.len() > MAX_CERTS {
        return Err(malformed("too many certificates"));
    }
    let mut new = BTreeMap::new();
    for cert in certs {
        let pem = check_certificate(node, cert)?;
        if new.insert(cert.r#type, pem.clone()).is_some_and(|other| other != pem) {
            return Err(malformed(format!("two certificates of type {}", cert.r#type)));
        }
    }
    let mut changed = None;
    let before = node.with_record(|record| record.certs.clone());
    let after = controller.update_node(node, |record| {
        changed = new.iter().find(|(kind, pem)| record.certs.get(kind).is_some_and(|old| old != *pem));
        if changed.is_none() {
            record.certs.extend(new.clone());
        }
    })?;
    if let Some((kind, _)) = changed {
        tracing::warn!(device = %node.id, kind, "refused to change a node certificate");
        return Err(malformed(format!("the certificate of type {kind} is not the one published before")));
    }
    node.certs_published.notify_waiters();
    if before.get(&CERT_ECDH) != after.certs.get(&CERT_ECDH) {
        // Now secrets can be encrypted for the device.
        controller.republish(node.id)?;
    }
    Ok(ZAttestResponse { resp_type: ZAttestRespType::AttestRespCert.into(), ..ZAttestResponse::default() })
}

fn check_certificate(node: &Node, cert: &ZCert) -> Result<String, Answer> {
    let say = |why: &str| malformed(format!("certificate of type {}: {why}", cert.r#type));
    if !NODE_CERT_TYPES.contains(&cert.r#type) {
        return Err(say("unknown type"));
    }
    if cert.cert_hash != certs::cert_hash(&cert.cert) {
        return Err(say("certHash is not the first 16 bytes of SHA-256 of the certificate"));
    }
    let pem = String::from_utf8(cert.cert.clone()).map_err(|_| say("no PEM"))?;
    let der = certs::first_der(&cert.cert).map_err(|_| say("no PEM"))?;
    if !is_signed_by(&der, &node.key) {
        return Err(say("not signed by the device's key"));
    }
    if cert.r#type == CERT_ECDH && eve_api::cipher::check_ecdh_cert(&cert.cert).is_err() {
        return Err(say("no P-256 key"));
    }
    Ok(pem)
}

/// Whether a certificate carries the signature of a key.
fn is_signed_by(cert_der: &[u8], key: &PublicKey) -> bool {
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    };
    let Ok(cert) = x509_cert::Certificate::from_der(cert_der) else { return false };
    let Ok(signed) = cert.tbs_certificate().to_der() else { return false };
    let Some(signature) = cert.signature().as_bytes() else { return false };
    match key {
        PublicKey::P256(point) => {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(&signed, signature)
        }
        PublicKey::P384(point) => {
            UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point).verify(&signed, signature)
        }
        PublicKey::Rsa(key) => {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(&signed, signature)
        }
    }
    .is_ok()
}

fn is_empty(quote: &ZAttestQuote) -> bool {
    quote.attest_data.is_empty() && quote.signature.is_empty() && quote.pcr_values.is_empty()
}

async fn wait_for_certificate(node: &Node) {
    let published = node.certs_published.notified();
    if node.with_record(|record| !record.certs.contains_key(&CERT_QUOTE)) {
        // Whether it came shows in the record.
        let _ = tokio::time::timeout(CERT_WAIT, published).await;
    }
}

fn take_quote(controller: &Controller, node: &Node, quote: &ZAttestQuote) -> Result<ZAttestResponse, Answer> {
    let now_ms = now_ms();
    let record = node.record();
    let known = Known {
        has_endorsement: record.certs.contains_key(&CERT_ENDORSEMENT),
        has_quoted: record.attest.has_quoted,
    };
    let verdict = judge(node.policy(), known, evidence(node, quote, record.certs.get(&CERT_QUOTE), now_ms));
    let token = crate::files::random_hex(TOKEN_BYTES);
    let record = controller
        .update_node(node, |record| record.attest.enter(verdict, text_hash(token.as_bytes()), now_ms))?;
    tracing::info!(device = %node.id, ?verdict, "quote");
    let answer = match verdict {
        Verdict::Accept { is_proven } => ZAttestQuoteResp {
            response: ZAttestResponseCode::Success.into(),
            integrity_token: token.into_bytes(),
            // Only a node that proved itself gets its keys back.
            keys: if is_proven { escrowed(&record.escrow) } else { Vec::new() },
        },
        Verdict::NonceMismatch => code(ZAttestResponseCode::NonceMismatch),
        Verdict::NoCertificate => code(ZAttestResponseCode::NoCertFound),
        Verdict::Failed(_) => code(ZAttestResponseCode::QuoteFailed),
    };
    Ok(ZAttestResponse {
        resp_type: ZAttestRespType::AttestRespQuoteResp.into(),
        quote_resp: Some(answer),
        ..ZAttestResponse::default()
    })
}

fn code(code: ZAttestResponseCode) -> ZAttestQuoteResp {
    ZAttestQuoteResp { response: code.into(), ..ZAttestQuoteResp::default() }
}

/// Verifies a quote. The nonce is used up, whatever comes out.
fn evidence(node: &Node, quote: &ZAttestQuote, quote_pem: Option<&String>, now_ms: i64) -> Evidence {
    let nonce = lock(&node.nonce).take();
    if is_empty(quote) {
        return Evidence::Empty;
    }
    let Some(pem) = quote_pem else { return Evidence::NoCertificate };
    let key = match PublicKey::from_pem(pem.as_bytes()) {
        Ok(PublicKey::P256(point)) => QuoteKey::P256(point),
        Ok(PublicKey::Rsa(key)) => QuoteKey::Rsa(key),
        _ => return Evidence::Bad,
    };
    let mut pcrs = Pcrs::new();
    for pcr in &quote.pcr_values {
        let Ok(value) = <[u8; PCR_BYTES]>::try_from(pcr.value.as_slice()) else { return Evidence::Bad };
        if pcr.hash_algo != i32::from(TpmHashAlgo::Sha256) {
            return Evidence::Bad;
        }
        pcrs.insert(pcr.index, value);
    }
    let nonce = nonce.filter(|(_, given_ms)| now_ms - given_ms < NONCE_MS).map(|(nonce, _)| nonce);
    match verify_quote(&quote.attest_data, &quote.signature, &key, &nonce.unwrap_or_default(), &pcrs) {
        Ok(_) => Evidence::Good,
        Err(QuoteError::Nonce) => Evidence::WrongNonce,
        Err(_) => Evidence::Bad,
    }
}

/// Keeps volume keys for a node. They are encrypted; only its own TPM can open them.
fn escrow(controller: &Controller, node: &Node, keys: &AttestStorageKeys) -> Result<ZAttestResponse, Answer> {
    if keys.keys.len() > MAX_ESCROW_KEYS || keys.keys.iter().any(|key| key.key.len() > MAX_ESCROW_BYTES) {
        return Err(malformed("too many or too large keys"));
    }
    let token = text_hash(&keys.integrity_token);
    let is_trusted = node.with_record(|record| record.attest.accepts(&token, now_ms()));
    let response = if is_trusted {
        let stored = keys.keys.iter().map(|key| hex::encode(key.encode_to_vec())).collect();
        controller.update_node(node, |record| record.escrow = stored)?;
        AttestStorageKeysResponseCode::Success
    } else {
        AttestStorageKeysResponseCode::ItokenMismatch
    };
    Ok(ZAttestResponse {
        resp_type: ZAttestRespType::StoreKeys.into(),
        storage_keys_resp: Some(AttestStorageKeysResp { response: response.into() }),
        ..ZAttestResponse::default()
    })
}

fn escrowed(stored: &[String]) -> Vec<AttestVolumeKey> {
    let read = |text: &String| AttestVolumeKey::decode(hex::decode(text).ok()?.as_slice()).ok();
    stored.iter().filter_map(read).collect()
}
