// SPDX-License-Identifier: Apache-2.0
//! Clear text that the wire carries becomes a sealed handle before anything is published, saved apart or logged.

use eve_api::cipher::ObjectSecrets;
use ipc::calls::{VaultReply, VaultRequest};
use model::config::{Credentials, DeviceConfig, UserData};
use model::reason::{Fault, Reason};
use model::secret::SecretHandle;

/// Seals every secret of the config that came in clear. Fails as a whole when the vault fails: nothing of a config
/// with clear secrets may leave the agent.
pub fn seal_config(
    config: &mut DeviceConfig,
    vault: &mut dyn FnMut(VaultRequest) -> Result<VaultReply, Fault>,
) -> Result<(), Fault> {
    for datastore in &mut config.datastores {
        if let Some(Credentials::Clear { user, password }) = &mut datastore.credentials {
            let secrets = ObjectSecrets {
                datastore_user: std::mem::take(user).into(),
                datastore_password: std::mem::take(password).into(),
                ..ObjectSecrets::default()
            };
            datastore.credentials = Some(Credentials::Sealed(seal(&secrets, vault)?));
        }
    }
    for app in &mut config.apps {
        if let Some(UserData::Clear(text)) = &mut app.user_data {
            let text = std::mem::take(text);
            let secrets = ObjectSecrets { user_data: decode_base64(text).into(), ..ObjectSecrets::default() };
            app.user_data = Some(UserData::Sealed(seal(&secrets, vault)?));
        }
    }
    Ok(())
}

fn seal(
    secrets: &ObjectSecrets,
    vault: &mut dyn FnMut(VaultRequest) -> Result<VaultReply, Fault>,
) -> Result<SecretHandle, Fault> {
    match vault(VaultRequest::Seal { clear: secrets.to_clear().to_vec() })? {
        VaultReply::Sealed(handle) => Ok(handle),
        other => Err(Fault::new(Reason::Internal, format!("vault answered {other:?} to a seal"))),
    }
}

/// The text itself where it is no base64, as for encrypted user data.
fn decode_base64(text: String) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(&text).unwrap_or_else(|_| text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::config::{AppInstance, Datastore, DatastoreKind, Resources, VirtualizationMode};
    use model::id::{AppId, DatastoreId, DeviceId};
    use uuid::Uuid;

    fn config() -> DeviceConfig {
        let mut config = DeviceConfig::empty(DeviceId(Uuid::nil()));
        config.datastores.push(Datastore {
            id: DatastoreId(Uuid::nil()),
            kind: DatastoreKind::ContainerRegistry,
            fqdn: "docker://r".into(),
            path: String::new(),
            credentials: Some(Credentials::Clear { user: "u".into(), password: "hunter2".into() }),
            ca_pem: vec![],
        });
        config.apps.push(AppInstance {
            id: AppId(Uuid::nil()),
            version: String::new(),
            name: "a".into(),
            is_active: true,
            resources: Resources { memory_bytes: 1, vcpus: 1, mode: VirtualizationMode::NoHyper },
            volumes: vec![],
            interfaces: vec![],
            restart_counter: 0,
            purge_counter: 0,
            user_data: Some(UserData::Clear("R1JFRVRJTkc9aGkK".into())),
            profiles: vec![],
            start_delay_s: 0,
            adapters: vec![],
        });
        config
    }

    #[test]
    fn no_clear_text_is_left_and_user_data_is_decoded() {
        let mut config = config();
        let mut sealed = Vec::new();
        seal_config(&mut config, &mut |request| match request {
            VaultRequest::Seal { clear } => {
                sealed.push(ObjectSecrets::from_clear(&clear).unwrap());
                Ok(VaultReply::Sealed(SecretHandle::Sealed { sealed: vec![sealed.len() as u8] }))
            }
            other => panic!("{other:?}"),
        })
        .unwrap();
        assert_eq!(*sealed[0].datastore_password, "hunter2");
        assert_eq!(*sealed[1].user_data, b"GREETING=hi\n");
        let handle = |number| SecretHandle::Sealed { sealed: vec![number] };
        assert_eq!(config.datastores[0].credentials, Some(Credentials::Sealed(handle(1))));
        assert_eq!(config.apps[0].user_data, Some(UserData::Sealed(handle(2))));
    }

    #[test]
    fn without_the_vault_there_is_no_config() {
        let fault = Fault::new(Reason::ServiceUnavailable, "vault");
        assert_eq!(seal_config(&mut config(), &mut |_| Err(fault.clone())), Err(fault));
    }
}
