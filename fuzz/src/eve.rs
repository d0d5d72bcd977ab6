// SPDX-License-Identifier: Apache-2.0
//! The wire: envelopes, certificates, configs, reports, log files.

use std::io::Write as _;
use std::sync::OnceLock;

use eve_api::Message as _;
use eve_api::{certs, envelope, newlogs, parse, problems, register, render, wire};

const VECTORS: &str = include_str!("../../crates/eve-api/tests/vectors.json");

fn vectors() -> &'static serde_json::Value {
    static READ: OnceLock<serde_json::Value> = OnceLock::new();
    READ.get_or_init(|| serde_json::from_str(VECTORS).expect("the vectors are JSON"))
}

/// Nobody without the key makes an envelope that opens: only the payloads of the vectors come out.
pub(crate) fn envelope(data: &[u8]) {
    let vectors = vectors();
    let signing = vectors["pem"]["signing"].as_str().unwrap_or_default().trim_end();
    let device = certs::first_der(vectors["pem"]["device"].as_str().unwrap_or_default().as_bytes());
    let device = device.expect("the vectors hold certificates");
    let is_known = |payload: &[u8]| {
        let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        let envelopes = vectors["envelopes"].as_array().expect("the vectors hold envelopes");
        envelopes.iter().any(|envelope| envelope["payload"] == hex)
    };
    if let Ok(payload) = envelope::unseal_controller(data, signing.as_bytes()) {
        assert!(is_known(&payload), "forged");
    }
    if let Ok(envelope) = envelope::DeviceEnvelope::parse(data) {
        let _ = envelope.sender_pem();
        if let Ok(payload) = envelope.verify(&device) {
            assert!(is_known(&payload), "forged");
        }
    }
    if let Ok(payload) = envelope::unverified_payload(data) {
        let _ = register::parse_registration(&payload);
    }
}

/// A set that is accepted has its signing key and an ECDH certificate.
pub(crate) fn certs(data: &[u8]) {
    let vectors = vectors();
    let root = vectors["pem"]["root"].as_str().unwrap_or_default();
    for now in [None, Some(1_735_689_600)] {
        if let Ok(set) = certs::verify_controller_certs(data, root.as_bytes(), now) {
            assert!(!set.ecdh.is_empty());
            assert_eq!(certs::PublicKey::from_pem(&set.signing_pem), Ok(set.signing_key));
        }
    }
    let _ = certs::parse_pem(data);
    let _ = certs::PublicKey::from_der(data);
    let _ = certs::validity(data);
}

/// A config without faults is the same after a trip over the wire.
pub(crate) fn config(data: &[u8]) {
    if let Ok(wire) = wire::config::ConfigResponse::decode(data) {
        let _ = problems::problems(&wire.config.unwrap_or_default());
    }
    let Ok(response) = parse::config_response(data) else { return };
    let Some(config) = response.config else { return };
    let again = parse::config_response(&render::config_response(&config, &response.hash));
    let again = again.expect("what is rendered can be read").config.expect("and is there");
    if config.faults.is_empty() {
        assert_eq!(again, config);
    }
}

/// Reports are read and written without harm.
pub(crate) fn report(data: &[u8]) {
    if let Ok(message) = parse::info(data) {
        assert!(parse::info(&render::info(&message)).is_ok());
    }
    if let Ok(metrics) = parse::metrics(data) {
        assert!(parse::metrics(&render::metrics(&metrics)).is_ok());
    }
}

/// The entries of a file are the same after being packed again. Bytes that are no gzip are taken as what is in one,
/// since hardly any change of a file survives its checksum.
pub(crate) fn newlogs(data: &[u8]) {
    let packed;
    let data = if data.starts_with(&[0x1f, 0x8b]) {
        data
    } else {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(data).expect("memory takes all");
        packed = gzip.finish().expect("memory takes all");
        &packed
    };
    let Ok(file) = newlogs::read(data) else { return };
    let packed = newlogs::write(&file.header, &file.entries).expect("entries can be written");
    // In our own dialect a file may grow beyond the limit it was read under.
    match newlogs::read(&packed) {
        Ok(again) => assert_eq!(again.entries, file.entries),
        Err(newlogs::NewlogsError::TooLarge) => {}
        Err(other) => panic!("{other}"),
    }
}
