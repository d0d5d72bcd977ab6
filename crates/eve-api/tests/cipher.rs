// SPDX-License-Identifier: Apache-2.0
//! Object encryption against vectors of an independent implementation.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Vectors, bytes, params, root, secret, text};
use eve_api::certs::PublicKey;
use eve_api::cipher::*;
use model::secret::CipherBlock;
use p256::elliptic_curve::pkcs8::{EncodePrivateKey, LineEnding};
use proptest::prelude::*;
use zeroize::Zeroizing;

/// A certificate around a key of the vectors.
fn cert(secret: &p256::SecretKey) -> Vec<u8> {
    let pair = rcgen::KeyPair::from_pem(&secret.to_pkcs8_pem(LineEnding::LF).unwrap()).unwrap();
    params("peer").signed_by(&pair, &root("root")).unwrap().pem().into_bytes()
}

#[test]
fn vectors_decrypt_and_encrypt_to_the_same_bytes() {
    let v = Vectors::load();
    let mut count = 0;
    for case in v.objects() {
        count += 1;
        let name = text(case, "name");
        let device = secret(&text(case, "device_ecdh_priv"));
        let controller = secret(&text(case, "controller_ecdh_priv"));
        let (device_pem, controller_pem) = (cert(&device), cert(&controller));
        let block = CipherBlock {
            context_id: "c".into(),
            initial_value: bytes(case, "iv"),
            cipher_data: bytes(case, "cipherdata"),
            clear_text_sha256: bytes(case, "cleartextsha256"),
        };
        let clear = bytes(case, "plaintext_encryptionblock");
        assert_eq!(shared_key(&device, &controller_pem).unwrap()[..], bytes(case, "aes256_key"), "{name}");
        assert_eq!(*decrypt(&block, &device, &controller_pem).unwrap(), clear, "{name}");
        let iv = block.initial_value.as_slice().try_into().unwrap();
        assert_eq!(encrypt(&clear, &controller, &device_pem, "c", iv).unwrap(), block, "{name}");
        let secrets = ObjectSecrets::from_clear(&clear).unwrap();
        assert_eq!(
            (secrets.datastore_user.as_str(), secrets.datastore_password.as_str()),
            ("user", "secret")
        );
        assert_eq!(*secrets.to_clear(), clear);
    }
    assert_eq!(count, 3);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (us, them) = (secret(&"11".repeat(32)), secret(&"22".repeat(32)));
    let (our_pem, their_pem) = (cert(&us), cert(&them));
    let good = encrypt(b"clear", &them, &our_pem, "c", &[7; 16]).unwrap();
    assert_eq!(**decrypt(&good, &us, &their_pem).unwrap(), *b"clear");

    let with = |change: fn(&mut CipherBlock)| {
        let mut block = good.clone();
        change(&mut block);
        decrypt(&block, &us, &their_pem).unwrap_err()
    };
    assert_eq!(with(|b| b.initial_value.truncate(15)), CipherError::IvLength(15));
    assert_eq!(with(|b| b.initial_value.clear()), CipherError::IvLength(0));
    assert_eq!(with(|b| b.initial_value[0] ^= 1), CipherError::Digest);
    assert_eq!(with(|b| b.cipher_data[0] ^= 1), CipherError::Digest);
    assert_eq!(with(|b| b.cipher_data.clear()), CipherError::Size);
    assert_eq!(with(|b| b.clear_text_sha256.clear()), CipherError::Digest);
    assert_eq!(decrypt(&good, &them, &their_pem).unwrap_err(), CipherError::Digest);
    assert_eq!(encrypt(b"", &us, &their_pem, "c", &[0; 16]).unwrap_err(), CipherError::Size);
    assert!(matches!(decrypt(&good, &us, b"no pem"), Err(CipherError::PeerCert(_))));
    assert_eq!(decrypt(&good, &us, include_bytes!("rsa.pem")).unwrap_err(), CipherError::PeerKey);
    assert_eq!(check_ecdh_cert(include_bytes!("rsa.pem")), Err(CipherError::PeerKey));
    assert_eq!(check_ecdh_cert(&their_pem), Ok(()));
}

#[test]
fn user_data_travels_as_base64_and_secrets_do_not_print() {
    let secrets = ObjectSecrets { user_data: Zeroizing::new(b"A=1\n".to_vec()), ..ObjectSecrets::default() };
    let clear = secrets.to_clear();
    assert_eq!(clear[2..], *b"QT0xCg==");
    assert_eq!(*ObjectSecrets::from_clear(&clear).unwrap().user_data, b"A=1\n");
    assert_eq!(format!("{secrets:?}"), "ObjectSecrets(…)");
    assert_eq!(ObjectSecrets::from_clear(b"\xff").unwrap_err(), CipherError::Malformed);
}

#[test]
fn a_key_of_another_curve_is_no_peer() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let pem = params("x").signed_by(&pair, &root("root")).unwrap().pem().into_bytes();
    assert!(matches!(PublicKey::from_pem(&pem), Ok(PublicKey::P384(_))));
    assert_eq!(shared_key(&secret(&"11".repeat(32)), &pem).unwrap_err(), CipherError::PeerKey);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_panics_on_foreign_blocks(iv in proptest::collection::vec(any::<u8>(), 0..40),
        data in proptest::collection::vec(any::<u8>(), 0..80), pem in proptest::collection::vec(any::<u8>(), 0..80)) {
        let own = secret(&"11".repeat(32));
        let block = CipherBlock { context_id: String::new(), initial_value: iv, cipher_data: data.clone(), clear_text_sha256: vec![] };
        prop_assert!(decrypt(&block, &own, &pem).is_err());
        let _ = ObjectSecrets::from_clear(&data);
        let _ = private_key_from_pem(&pem);
    }
}
