// SPDX-License-Identifier: Apache-2.0
//! The rules for a controller's certificate set, each broken once.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use eve_api::certs::*;
use eve_api::{Message as _, certs};
use proptest::prelude::*;
use rcgen::{CertifiedIssuer, ExtendedKeyUsagePurpose as Usage, date_time_ymd};

const NOW: Option<i64> = Some(1_735_689_600); // 2025-01-01
const AFTER_ALL: Option<i64> = Some(2_000_000_000); // 2033

struct World {
    root: Ca,
    signing: Vec<u8>,
    ecdh: Vec<u8>,
}

impl World {
    fn new() -> World {
        let root = root("root");
        let signing = leaf(params("signing"), &root).0;
        let ecdh = leaf(params("ecdh"), &root).0;
        World { root, signing, ecdh }
    }

    fn check(&self, certs: &[(Role, &[u8])], now: Option<i64>) -> Result<ControllerCerts, CertError> {
        let set = build_controller_certs(certs.iter().copied());
        verify_controller_certs(&set, self.root.pem().as_bytes(), now)
    }
}

#[test]
fn a_plain_set_is_accepted() {
    let w = World::new();
    let certs = w.check(&[(Role::Signing, &w.signing), (Role::Ecdh, &w.ecdh)], NOW).unwrap();
    assert_eq!(certs.signing_pem, w.signing);
    assert_eq!(certs.ecdh_by_hash(&certs::cert_hash(&w.ecdh)).unwrap().pem, w.ecdh);
    assert_eq!(certs.ecdh_by_hash(&certs::pem_hash(&w.ecdh)), None);
    let swapped = w.check(&[(Role::Ecdh, &w.ecdh), (Role::Signing, &w.signing)], NOW).unwrap();
    assert_eq!(swapped.hashes, certs.hashes, "order does not count");
}

#[test]
fn the_vectors_chain_to_their_root() {
    let v = Vectors::load();
    let set = build_controller_certs([
        (Role::Signing, v.signing_as_sent()),
        (Role::Ecdh, v.pem("controller_ecdh").as_bytes()),
    ]);
    let certs = verify_controller_certs(&set, v.pem("root").as_bytes(), NOW).unwrap();
    assert_eq!(certs.signing_pem, v.signing_as_sent());
}

#[test]
fn counts_and_types_are_exact() {
    let w = World::new();
    let (s, e) = ((Role::Signing, &w.signing[..]), (Role::Ecdh, &w.ecdh[..]));
    assert_eq!(w.check(&[s, s, e], NOW), Err(CertError::SigningCount(2)));
    assert_eq!(w.check(&[e], NOW), Err(CertError::SigningCount(0)));
    assert_eq!(w.check(&[s], NOW), Err(CertError::NoEcdh));
    assert!(w.check(&[s, e, e], NOW).is_ok());
    for unknown in [0, 4, 10, 13, -1] {
        let mut set = set(&build_controller_certs([s, e, e]));
        set.certs[2].r#type = unknown;
        let got = verify_controller_certs(&set.encode_to_vec(), w.root.pem().as_bytes(), NOW);
        assert_eq!(got, Err(CertError::UnknownType(unknown)));
    }
    let many = vec![e; MAX_CERTS + 1];
    assert_eq!(w.check(&many, NOW), Err(CertError::TooLarge));
}

#[test]
fn a_key_usage_must_allow_servers() {
    let w = World::new();
    let with = |usages: &[Usage]| {
        let (signing, _) = leaf(with_usage(params("s"), usages), &w.root);
        w.check(&[(Role::Signing, &signing), (Role::Ecdh, &w.ecdh)], NOW).map(drop)
    };
    assert_eq!(with(&[]), Ok(()));
    assert_eq!(with(&[Usage::ServerAuth]), Ok(()));
    assert_eq!(with(&[Usage::ClientAuth, Usage::ServerAuth]), Ok(()));
    assert_eq!(with(&[Usage::Any]), Ok(()));
    assert_eq!(with(&[Usage::ClientAuth]), Err(CertError::KeyUsage));
    assert_eq!(with(&[Usage::CodeSigning, Usage::ClientAuth]), Err(CertError::KeyUsage));
}

#[test]
fn validity_counts_unless_there_is_no_time() {
    let w = World::new();
    let certs = [(Role::Signing, &w.signing[..]), (Role::Ecdh, &w.ecdh[..])];
    assert_eq!(w.check(&certs, AFTER_ALL), Err(CertError::Validity));
    assert_eq!(w.check(&certs, Some(0)), Err(CertError::Validity));
    assert!(w.check(&certs, None).is_ok());

    // A leaf that was never valid together with its root does not chain, time or no time.
    let mut late = params("late");
    (late.not_before, late.not_after) = (date_time_ymd(2031, 1, 1), date_time_ymd(2032, 1, 1));
    let (late, _) = leaf(late, &w.root);
    let certs = [(Role::Signing, &late[..]), (Role::Ecdh, &w.ecdh[..])];
    assert!(matches!(w.check(&certs, None), Err(CertError::Chain(_))));
}

#[test]
fn an_expired_root_vouches_for_nothing() {
    let mut old = ca_params("old");
    (old.not_before, old.not_after) = (date_time_ymd(2010, 1, 1), date_time_ymd(2022, 1, 1));
    let root = CertifiedIssuer::self_signed(old, key()).unwrap();
    let w = World { signing: leaf(params("s"), &root).0, ecdh: leaf(params("e"), &root).0, root };
    let certs = [(Role::Signing, &w.signing[..]), (Role::Ecdh, &w.ecdh[..])];
    assert!(matches!(w.check(&certs, NOW), Err(CertError::Chain(_))));
    assert!(w.check(&certs, None).is_ok());
}

#[test]
fn intermediates_and_several_roots_work() {
    let w = World::new();
    let middle = CertifiedIssuer::signed_by(ca_params("middle"), key(), &w.root).unwrap();
    let (signing, _) = leaf(params("s"), &middle);
    let middle_pem = middle.pem().into_bytes();
    let full =
        [(Role::Signing, &signing[..]), (Role::Ecdh, &w.ecdh[..]), (Role::Intermediate, &middle_pem[..])];
    let set = build_controller_certs(full);
    let several = [root("other").pem(), w.root.pem()].concat();
    assert!(verify_controller_certs(&set, several.as_bytes(), NOW).is_ok());
    assert!(verify_controller_certs(&set, several.as_bytes(), None).is_ok());
    assert!(matches!(w.check(&full[..2], NOW), Err(CertError::Chain(_))));
    assert!(matches!(
        verify_controller_certs(&set, root("other").pem().as_bytes(), NOW),
        Err(CertError::Chain(_))
    ));
    // A leaf is no issuer.
    let not_ca = CertifiedIssuer::signed_by(params("not a CA"), key(), &w.root).unwrap();
    let (signing, _) = leaf(params("s"), &not_ca);
    let pem = not_ca.pem().into_bytes();
    let bad = [(Role::Signing, &signing[..]), (Role::Ecdh, &w.ecdh[..]), (Role::Intermediate, &pem[..])];
    assert!(matches!(w.check(&bad, NOW), Err(CertError::Chain(_))));
}

#[test]
fn a_root_may_sign_by_itself() {
    let w = World::new();
    let pem = w.root.pem().into_bytes();
    let certs = [(Role::Signing, &pem[..]), (Role::Ecdh, &w.ecdh[..])];
    assert!(w.check(&certs, NOW).is_ok());
    assert_eq!(w.check(&certs, AFTER_ALL), Err(CertError::Validity));
    let client = with_usage(ca_params("client"), &[Usage::ClientAuth]);
    let root = CertifiedIssuer::self_signed(client, key()).unwrap();
    let pem = root.pem().into_bytes();
    let set = build_controller_certs([(Role::Signing, &pem[..]), (Role::Ecdh, &pem[..])]);
    assert_eq!(verify_controller_certs(&set, &pem, NOW), Err(CertError::KeyUsage));
}

#[test]
fn an_rsa_root_over_ecdsa_leaves_is_accepted() {
    let set = build_controller_certs([
        (Role::Signing, &include_bytes!("rsa-root-leaf.pem")[..]),
        (Role::Ecdh, &include_bytes!("rsa-root-leaf.pem")[..]),
    ]);
    verify_controller_certs(&set, include_bytes!("rsa.pem"), None).unwrap();
    assert!(matches!(
        verify_controller_certs(&set, root("other").pem().as_bytes(), None),
        Err(CertError::Chain(_))
    ));
}

#[test]
fn pem_of_der_is_what_other_programs_write() {
    let v = Vectors::load();
    let pem = v.pem("device");
    assert_eq!(certs::to_pem(&certs::first_der(pem.as_bytes()).unwrap()), pem);
    assert_eq!(certs::parse_pem(b""), Err(CertError::NoPem));
    assert_eq!(certs::parse_pem(b"-----BEGIN CERTIFICATE-----\n"), Err(CertError::Malformed));
    let two = [v.pem("device"), v.pem("root").trim_end()].concat();
    assert_eq!(certs::parse_pem(two.as_bytes()).unwrap().len(), 2);
    assert_eq!(certs::parse_pem(pem.repeat(MAX_CERTS + 1).as_bytes()), Err(CertError::TooLarge));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_readers_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = certs::parse_pem(&data);
        let _ = certs::validity(&data);
        let _ = PublicKey::from_der(&data);
        prop_assert!(verify_controller_certs(&data, &data, NOW).is_err());
    }

    #[test]
    fn no_damaged_certificate_makes_the_readers_panic(at in any::<proptest::sample::Index>(), bit in 0u8..8) {
        let v = Vectors::load();
        let mut der = certs::first_der(v.signing_as_sent()).unwrap();
        let at = at.index(der.len());
        der[at] ^= 1 << bit;
        let _ = PublicKey::from_der(&der);
        let _ = certs::validity(&der);
        let root = certs::first_der(v.pem("root").as_bytes()).unwrap();
        prop_assert!(chain::verify_leaf(&der, &[], &[root], NOW).is_err());
    }
}
