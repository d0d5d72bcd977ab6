// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::config_dir::KeyFiles;
use crate::identity::load;
use crate::keys::{generate, to_pem};
use eve_api::certs::PublicKey;
use eve_api::cipher::{context, encrypt};
use eve_api::envelope::{DeviceEnvelope, seal_device};
use model::secret::CipherContext;

const AT: i64 = 1_800_000_000;

struct Fixture {
    dir: tempfile::TempDir,
    config: ConfigDir,
    vault: Vault,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let onboarding = KeyFiles {
        cert_pem: "PEM".into(),
        key_pem: Zeroizing::new(to_pem(&generate().unwrap(), KeyRole::Device).unwrap().as_bytes().to_vec()),
    };
    let config = ConfigDir { onboarding: Some(onboarding), ..ConfigDir::default() };
    let vault = Vault::new(dir.path(), &config, load(dir.path(), &config, AT).unwrap());
    Fixture { dir, config, vault }
}

fn public(fixture: &mut Fixture) -> ipc::calls::NodeIdentity {
    match fixture.vault.answer("agent", VaultRequest::Identity).unwrap() {
        VaultReply::Identity(identity) => identity,
        other => panic!("{other:?}"),
    }
}

/// A controller's ECDH key, certificate and a handle made with it.
fn object(fixture: &mut Fixture, secrets: &ObjectSecrets) -> (String, CipherContext, SecretHandle) {
    let identity = public(fixture);
    let own = identity.node_certs.iter().find(|cert| cert.kind == 13).unwrap().pem.clone();
    let key = generate().unwrap();
    let keys = crate::keys::SoftwareKeys::new(key.clone(), generate().unwrap(), generate().unwrap());
    let pem = crate::certs::make_device(&keys, AT).unwrap();
    let block = encrypt(&secrets.to_clear(), &key, own.as_bytes(), "one", &[9; 16]).unwrap();
    let context = context("one", &cert_hash(own.as_bytes()), &cert_hash(pem.as_bytes()));
    (pem, context.clone(), SecretHandle::Object { block, context })
}

fn secrets() -> ObjectSecrets {
    ObjectSecrets {
        datastore_user: Zeroizing::new("user".into()),
        datastore_password: Zeroizing::new("pass".into()),
        user_data: Zeroizing::new(b"GREETING=hello\n".to_vec()),
    }
}

#[test]
fn envelopes_signed_by_the_vault_verify_under_the_device_certificate() {
    struct Remote(std::cell::RefCell<Fixture>);
    impl Sign for Remote {
        type Error = Fault;
        fn sign(&self, data: &[u8]) -> Result<Vec<u8>, Fault> {
            let request = VaultRequest::SignAsDevice { data: data.to_vec() };
            match self.0.borrow_mut().vault.answer("agent", request)? {
                VaultReply::Signature(signature) => Ok(signature),
                other => panic!("{other:?}"),
            }
        }
    }
    let mut fixture = fixture();
    let der = eve_api::certs::first_der(public(&mut fixture).device_cert_pem.as_bytes()).unwrap();
    let remote = Remote(fixture.into());
    let body = seal_device(b"payload".to_vec(), &eve_api::certs::der_hash(&der), &remote).unwrap();
    assert_eq!(DeviceEnvelope::parse(&body).unwrap().verify(&der).unwrap(), b"payload");
}

#[test]
fn objects_open_once_the_controllers_certificate_is_trusted_also_after_a_restart() {
    let mut fixture = fixture();
    let (pem, _, handle) = object(&mut fixture, &secrets());
    let ask = VaultRequest::OpenUserData { handle: handle.clone() };
    let fault = fixture.vault.answer("shim", ask).unwrap_err();
    assert_eq!(fault.reason, Reason::SecretUndecryptable);

    let trust = VaultRequest::TrustControllerCerts { ecdh_pems: vec![pem] };
    fixture.vault.answer("agent", trust).unwrap();
    let identity = load(fixture.dir.path(), &fixture.config, AT).unwrap();
    let mut restarted = Vault::new(fixture.dir.path(), &fixture.config, identity);
    match restarted.answer("shim", VaultRequest::OpenUserData { handle: handle.clone() }).unwrap() {
        VaultReply::UserData(text) => assert_eq!(text, "GREETING=hello\n"),
        other => panic!("{other:?}"),
    }
    match restarted.answer("fetch", VaultRequest::OpenCredentials { handle }).unwrap() {
        VaultReply::Credentials { user, password } => assert_eq!((&*user, &*password), ("user", "pass")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sealed_clear_text_opens_as_an_object_does() {
    let mut fixture = fixture();
    let clear = secrets().to_clear().to_vec();
    let sealed = |vault: &mut Vault| match vault.answer("agent", VaultRequest::Seal { clear: clear.clone() })
    {
        Ok(VaultReply::Sealed(handle)) => handle,
        other => panic!("{other:?}"),
    };
    let handle = sealed(&mut fixture.vault);
    assert_eq!(handle, sealed(&mut fixture.vault), "the same text gives the same handle");
    match fixture.vault.answer("fetch", VaultRequest::OpenCredentials { handle }).unwrap() {
        VaultReply::Credentials { user, password } => assert_eq!((&*user, &*password), ("user", "pass")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_objects_are_faults() {
    let mut fixture = fixture();
    let (pem, context, handle) = object(&mut fixture, &secrets());
    fixture.vault.answer("agent", VaultRequest::TrustControllerCerts { ecdh_pems: vec![pem] }).unwrap();
    let SecretHandle::Object { block, .. } = handle else { panic!("an object was made") };
    let mut broken = vec![];
    for length in [0, 15, 17] {
        let mut block = block.clone();
        block.initial_value.resize(length, 0);
        broken.push(SecretHandle::Object { block, context: context.clone() });
    }
    let mut flipped = block.clone();
    flipped.cipher_data[0] ^= 1;
    broken.push(SecretHandle::Object { block: flipped, context: context.clone() });
    let mut foreign = context.clone();
    foreign.device_cert_hash = vec![1; 16];
    broken.push(SecretHandle::Object { block: block.clone(), context: foreign });
    let mut empty = context;
    empty.controller_cert_hash.clear();
    broken.push(SecretHandle::Object { block, context: empty });
    broken.push(SecretHandle::Sealed { sealed: vec![] });
    for handle in broken {
        let fault = fixture.vault.answer("shim", VaultRequest::OpenUserData { handle }).unwrap_err();
        assert_eq!(fault.reason, Reason::SecretUndecryptable);
    }
}

#[test]
fn each_caller_has_its_own_rights_only() {
    let mut fixture = fixture();
    let handle = || SecretHandle::Sealed { sealed: vec![] };
    let requests: [fn(SecretHandle) -> VaultRequest; 5] = [
        |_| VaultRequest::Identity,
        |_| VaultRequest::SignAsDevice { data: vec![] },
        |_| VaultRequest::SignAsOnboarding { data: vec![] },
        |_| VaultRequest::Quote { nonce: vec![0; 20] },
        |_| VaultRequest::Seal { clear: vec![1] },
    ];
    for request in requests {
        assert!(fixture.vault.answer("agent", request(handle())).is_ok());
        for other in ["shim", "fetch", "run", "", "agents"] {
            assert_eq!(fixture.vault.answer(other, request(handle())).unwrap_err().reason, Reason::Internal);
        }
    }
    for (caller, request) in [
        ("agent", VaultRequest::OpenUserData { handle: handle() }),
        ("fetch", VaultRequest::OpenUserData { handle: handle() }),
        ("agent", VaultRequest::OpenCredentials { handle: handle() }),
        ("shim", VaultRequest::OpenCredentials { handle: handle() }),
    ] {
        assert_eq!(fixture.vault.answer(caller, request).unwrap_err().reason, Reason::Internal);
    }
}

#[test]
fn the_onboarding_key_signs_for_registration() {
    let mut fixture = fixture();
    let key = from_pem(&fixture.config.onboarding.as_ref().unwrap().key_pem, KeyRole::Device).unwrap();
    let request = VaultRequest::SignAsOnboarding { data: b"register".to_vec() };
    let Ok(VaultReply::Signature(signature)) = fixture.vault.answer("agent", request) else {
        panic!("signed")
    };
    let keys = crate::keys::SoftwareKeys::new(key, generate().unwrap(), generate().unwrap());
    use crate::keys::Keys;
    PublicKey::P256(keys.public_point(KeyRole::Device)).verify(b"register", &signature).unwrap();
}
