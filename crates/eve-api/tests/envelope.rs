// SPDX-License-Identifier: Apache-2.0
//! Envelopes against vectors of an independent implementation, and against everything that must be refused.
#![allow(clippy::unwrap_used)]

mod common;

use common::Vectors;
use eve_api::Message as _;
use eve_api::certs::{self, SignatureError};
use eve_api::envelope::*;
use eve_api::register::{RegisterError, Registration, build_registration, parse_registration};
use eve_api::wire::auth::{AuthBody, AuthContainer};
use proptest::prelude::*;

/// A controller's envelope of the vectors, changed before it is read.
fn controller_with(change: impl FnOnce(&mut AuthContainer)) -> Result<Vec<u8>, EnvelopeError> {
    let v = Vectors::load();
    let good = v.envelopes().find(|e| e.name == "config response 32").unwrap();
    let mut container = AuthContainer::decode(good.container.as_slice()).unwrap();
    change(&mut container);
    unseal_controller(&container.encode_to_vec(), v.signing_as_sent())
}

fn device_with(change: impl FnOnce(&mut AuthContainer)) -> Result<Vec<u8>, EnvelopeError> {
    let v = Vectors::load();
    let good = v.envelopes().find(|e| e.name == "device config request").unwrap();
    let mut container = AuthContainer::decode(good.container.as_slice()).unwrap();
    change(&mut container);
    let der = certs::first_der(v.pem("device").as_bytes()).unwrap();
    DeviceEnvelope::parse(&container.encode_to_vec())?.verify(&der)
}

/// The signature of the vectors in the form that belongs to quotes, not to envelopes.
fn as_der(raw: &[u8]) -> Vec<u8> {
    let int = |n: &[u8]| {
        let mut out = n.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>();
        if out[0] >= 0x80 {
            out.insert(0, 0);
        }
        [vec![2, out.len() as u8], out].concat()
    };
    let body = [int(&raw[..32]), int(&raw[32..])].concat();
    [vec![0x30, body.len() as u8], body].concat()
}

#[test]
fn vectors_of_both_directions_open() {
    let v = Vectors::load();
    let mut count = 0;
    for e in v.envelopes() {
        count += 1;
        if e.is_from_device {
            let who = if e.name == "register" { "onboarding" } else { "device" };
            let der = certs::first_der(v.pem(who).as_bytes()).unwrap();
            let envelope = DeviceEnvelope::parse(&e.container).unwrap();
            assert_eq!(envelope.sender_hash()[..], e.sender_hash, "{}", e.name);
            let sent = envelope.sender_pem().unwrap();
            assert_eq!(sent.is_some(), e.name == "register");
            if let Some(pem) = sent {
                assert_eq!(certs::first_der(&pem).unwrap(), der);
            }
            assert_eq!(envelope.verify(&der).unwrap(), e.payload, "{}", e.name);
        } else {
            assert_eq!(
                unseal_controller(&e.container, v.signing_as_sent()).unwrap(),
                e.payload,
                "{}",
                e.name
            );
            assert_eq!(unverified_payload(&e.container).unwrap(), e.payload);
        }
    }
    assert_eq!(count, 5);
}

#[test]
fn what_we_seal_has_the_form_of_the_vectors() {
    let v = Vectors::load();
    for e in v.envelopes().filter(|e| e.name != "config response 16") {
        let who = match (e.is_from_device, e.name.as_str()) {
            (false, _) => "signing",
            (true, "register") => "onboarding",
            (true, _) => "device",
        };
        let signer = EcdsaSigner::from_secret_key(&v.key(who)).unwrap();
        let pem = v.pem(who).as_bytes();
        let hash = certs::der_hash(&certs::first_der(pem).unwrap());
        let ours = match who {
            "signing" => seal_controller(e.payload.clone(), v.signing_as_sent(), &signer),
            "onboarding" => seal_register(e.payload.clone(), pem, &hash, &signer),
            _ => seal_device(e.payload.clone(), &hash, &signer),
        };
        // ECDSA signatures differ from run to run; all else must be the same bytes.
        let unsigned = |body: &[u8]| {
            let mut container = AuthContainer::decode(body).unwrap();
            assert_eq!(std::mem::take(&mut container.signature_hash).len(), 64);
            container
        };
        let ours = ours.unwrap();
        assert_eq!(unsigned(&ours), unsigned(&e.container), "{}", e.name);
        assert_eq!(ours.len(), e.container.len());
        if who == "signing" {
            assert_eq!(unseal_controller(&ours, v.signing_as_sent()).unwrap(), e.payload);
        }
    }
}

#[test]
fn a_device_refuses_what_the_controller_did_not_sign_so() {
    use EnvelopeError as E;
    assert!(controller_with(|_| ()).is_ok());
    type Case = (&'static str, E, fn(&mut AuthContainer));
    let cases: [Case; 12] = [
        ("DER signature", E::Signature(SignatureError::Length(71)), |c| {
            c.signature_hash = as_der(&c.signature_hash);
        }),
        ("no signature", E::NoSignature, |c| c.signature_hash.clear()),
        ("short signature", E::Signature(SignatureError::Length(63)), |c| c.signature_hash.truncate(63)),
        ("flipped signature", E::Signature(SignatureError::Mismatch), |c| c.signature_hash[5] ^= 1),
        ("flipped payload", E::Signature(SignatureError::Mismatch), |c| {
            c.protected_payload.as_mut().unwrap().payload[0] ^= 1;
        }),
        ("15-byte hash", E::HashSize(15), |c| c.sender_cert_hash.truncate(15)),
        ("no hash", E::HashSize(0), |c| c.sender_cert_hash.clear()),
        ("16 bytes under algorithm 2", E::CertMiss, |c| c.sender_cert_hash.truncate(16)),
        ("other hash", E::CertMiss, |c| c.sender_cert_hash[0] ^= 1),
        ("algorithm 0", E::Algorithm(0), |c| c.algo = 0),
        ("algorithm 3", E::Algorithm(3), |c| c.algo = 3),
        ("encrypted", E::Encrypted, |c| c.cipher_data = Some(Default::default())),
    ];
    for (name, error, change) in cases {
        let got = controller_with(change).unwrap_err();
        match (&got, &error) {
            // A DER signature is 70 to 72 bytes.
            (E::Signature(SignatureError::Length(70..=72)), E::Signature(SignatureError::Length(71))) => (),
            _ => assert_eq!(got, error, "{name}"),
        }
    }
    assert_eq!(controller_with(|c| c.protected_payload = None).unwrap_err(), E::NoPayload);
}

#[test]
fn one_newline_more_is_another_certificate() {
    let v = Vectors::load();
    let body = v.envelopes().find(|e| e.name == "config response 32").unwrap().container;
    let with_newline = v.pem("signing").as_bytes();
    assert_eq!(with_newline.last(), Some(&b'\n'));
    assert_eq!(unseal_controller(&body, with_newline), Err(EnvelopeError::CertMiss));
    let signer = EcdsaSigner::from_secret_key(&v.key("signing")).unwrap();
    let body = seal_controller(b"x".to_vec(), with_newline, &signer).unwrap();
    assert_eq!(unseal_controller(&body, with_newline), Ok(b"x".to_vec()));
}

#[test]
fn a_controller_refuses_what_the_device_did_not_sign_so() {
    use EnvelopeError as E;
    assert!(device_with(|_| ()).is_ok());
    assert_eq!(device_with(|c| c.sender_cert_hash.truncate(16)), Err(E::HashSize(16)));
    assert_eq!(device_with(|c| c.sender_cert_hash.push(0)), Err(E::HashSize(33)));
    assert_eq!(device_with(|c| c.algo = 1), Err(E::Algorithm(1)));
    assert_eq!(device_with(|c| c.sender_cert_hash[31] ^= 1), Err(E::CertMiss));
    assert_eq!(device_with(|c| c.signature_hash.clear()), Err(E::NoSignature));
    assert_eq!(device_with(|c| c.signature_hash.push(0)), Err(E::Signature(SignatureError::Length(65))));
    assert_eq!(device_with(|c| c.signature_hash[0] ^= 1), Err(E::Signature(SignatureError::Mismatch)));
    assert!(matches!(
        device_with(|c| c.signature_hash = as_der(&c.signature_hash)),
        Err(E::Signature(SignatureError::Length(_)))
    ));
    assert_eq!(
        device_with(|c| c.protected_payload = Some(AuthBody { payload: vec![1] })),
        Err(E::Signature(SignatureError::Mismatch))
    );
    assert_eq!(device_with(|c| c.protected_payload = None), Err(E::NoPayload));
    assert_eq!(DeviceEnvelope::parse(b"\xff\xff"), Err(E::Malformed));
    assert_eq!(DeviceEnvelope::parse(b""), Err(E::HashSize(0)));
}

#[test]
fn rsa_controllers_are_accepted() {
    // Made by an independent program: `openssl req -x509 -newkey rsa:2048` and `openssl dgst -sign` over "x".
    let pem = include_bytes!("rsa.pem");
    let signature = include_bytes!("rsa.sig");
    let sealed = |payload: &[u8]| {
        AuthContainer {
            protected_payload: Some(AuthBody { payload: payload.to_vec() }),
            algo: 2,
            sender_cert_hash: certs::pem_hash(pem).to_vec(),
            signature_hash: signature.to_vec(),
            ..AuthContainer::default()
        }
        .encode_to_vec()
    };
    assert_eq!(unseal_controller(&sealed(b"x"), pem), Ok(b"x".to_vec()));
    assert_eq!(
        unseal_controller(&sealed(b"y"), pem),
        Err(EnvelopeError::Signature(SignatureError::Mismatch))
    );
}

#[test]
fn registrations_carry_base64_of_pem() {
    let v = Vectors::load();
    let payload = v.envelopes().find(|e| e.name == "register").unwrap().payload;
    let pem = v.pem("device").as_bytes();
    let expected = Registration {
        device_pem: pem.to_vec(),
        device_der: certs::first_der(pem).unwrap(),
        serial: "SN1".into(),
        soft_serial: "soft1".into(),
    };
    assert_eq!(parse_registration(&payload), Ok(expected));
    assert_eq!(build_registration(pem, "SN1", "soft1"), payload);

    let with = |cert: &[u8], serial: &str, soft: &str| {
        let message = eve_api::wire::register::ZRegisterMsg {
            pem_cert: cert.to_vec(),
            serial: serial.into(),
            soft_serial: soft.into(),
            ..Default::default()
        };
        parse_registration(&message.encode_to_vec()).map(drop)
    };
    assert_eq!(with(pem, "a", "b"), Err(RegisterError::Certificate), "PEM itself");
    assert_eq!(with(b"", "a", "b"), Err(RegisterError::Certificate));
    assert_eq!(with(&[b'A'; 400], "a", "b"), Err(RegisterError::Certificate));
    let long = "s".repeat(257);
    assert_eq!(parse_registration(&build_registration(pem, &long, "")), Err(RegisterError::Serial));
    assert_eq!(parse_registration(&build_registration(pem, "s", "a b")), Err(RegisterError::Serial));
    assert_eq!(parse_registration(b"\x12\xff"), Err(RegisterError::Malformed));
}

#[test]
fn keys_are_read_in_both_pem_forms() {
    use p256::elliptic_curve::pkcs8::{EncodePrivateKey, LineEnding};
    let v = Vectors::load();
    let key = v.key("device");
    let pkcs8 = key.to_pkcs8_pem(LineEnding::LF).unwrap();
    let sec1 = key.to_sec1_pem(LineEnding::LF).unwrap();
    let der = certs::first_der(v.pem("device").as_bytes()).unwrap();
    for pem in [&*pkcs8, &*sec1] {
        let signer = EcdsaSigner::from_pem(pem.as_bytes()).unwrap();
        let body = seal_device(vec![], &certs::der_hash(&der), &signer).unwrap();
        assert_eq!(DeviceEnvelope::parse(&body).unwrap().verify(&der), Ok(vec![]));
    }
    assert!(EcdsaSigner::from_pem(b"no key").is_err());
    assert!(EcdsaSigner::from_pem(v.pem("device").as_bytes()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_readers_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let v = Vectors::load();
        prop_assert!(unseal_controller(&body, v.signing_as_sent()).is_err());
        prop_assert!(unseal_controller(&body, &body).is_err());
        let _ = unverified_payload(&body);
        if let Ok(envelope) = DeviceEnvelope::parse(&body) {
            let _ = envelope.sender_pem();
            prop_assert!(envelope.verify(&body).is_err());
        }
        let _ = parse_registration(&body);
        let _ = EcdsaSigner::from_pem(&body);
    }

    #[test]
    fn no_damaged_envelope_is_accepted(at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
        let v = Vectors::load();
        let good = v.envelopes().find(|e| e.name == "config response 32").unwrap();
        let mut body = good.container.clone();
        let at = at.index(body.len());
        if cut { body.truncate(at) } else { body[at] ^= 1 << bit }
        // Only a field nobody reads may change: the outcome is the payload or an error.
        if let Ok(payload) = unseal_controller(&body, v.signing_as_sent()) {
            prop_assert_eq!(payload, good.payload);
        }
    }
}
