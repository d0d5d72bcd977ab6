// SPDX-License-Identifier: Apache-2.0
//! Datastores, content trees, volumes, and the encrypted objects that stand beside them.

use model::config::{
    BaseOs, ContentFormat, ContentTree, Credentials, Datastore, DatastoreKind, Volume, VolumeOrigin,
};
use model::id::{DatastoreId, VolumeKey};
use model::secret::{CipherBlock, CipherContext, SecretHandle};

use super::bad::{Bad, Read, non_empty, quote, uuid};
use crate::cipher::IV_BYTES;
use crate::wire::common;
use crate::wire::config as wire;

/// An encrypted object and its context. Where that cannot be had, `clear` says whether the same stands in clear
/// text, which EVE falls back to.
pub(super) fn secret(
    wire: Option<&common::CipherBlock>,
    contexts: &[CipherContext],
    has_clear: bool,
) -> Read<Option<SecretHandle>> {
    match wire.map(|block| sealed(block, contexts)) {
        None => Ok(None),
        Some(Ok(handle)) => Ok(Some(handle)),
        Some(Err(_)) if has_clear => Ok(None),
        Some(Err(bad)) => Err(bad.at("cipherData")),
    }
}

fn sealed(block: &common::CipherBlock, contexts: &[CipherContext]) -> Read<SecretHandle> {
    if block.initial_value.len() != IV_BYTES {
        return Err(Bad::invalid(
            "initialValue",
            format!("{} bytes instead of 16", block.initial_value.len()),
        ));
    }
    if block.clear_text_sha256.len() != 32 {
        return Err(Bad::invalid("clearTextSha256", "not 32 bytes"));
    }
    let context = contexts.iter().find(|context| context.id == block.cipher_context_id);
    let context = context.ok_or_else(|| {
        Bad::missing("cipherContextId", format!("cipher context {}", quote(&block.cipher_context_id)))
    })?;
    let block = CipherBlock {
        context_id: block.cipher_context_id.clone(),
        initial_value: block.initial_value.clone(),
        cipher_data: block.cipher_data.clone(),
        clear_text_sha256: block.clear_text_sha256.clone(),
    };
    Ok(SecretHandle::Object { block, context: context.clone() })
}

pub(super) fn datastore(wire: &wire::DatastoreConfig, contexts: &[CipherContext]) -> Read<Datastore> {
    let id = uuid("id", &wire.id)?;
    let has_clear = !wire.api_key.is_empty() || !wire.password.is_empty();
    let credentials = match secret(wire.cipher_data.as_ref(), contexts, has_clear)? {
        Some(handle) => Some(Credentials::Sealed(handle)),
        None if has_clear => {
            Some(Credentials::Clear { user: wire.api_key.clone(), password: wire.password.clone() })
        }
        None => None,
    };
    let mut ca_pem = Vec::new();
    for (index, pem) in wire.ds_cert_pem.iter().enumerate() {
        let text = String::from_utf8(pem.clone());
        ca_pem.push(text.map_err(|_| Bad::invalid(format!("dsCertPEM[{index}]"), "not a PEM text"))?);
    }
    Ok(Datastore {
        id,
        kind: match wire::DsType::try_from(wire.d_type) {
            Ok(wire::DsType::DsContainerRegistry) => DatastoreKind::ContainerRegistry,
            Ok(wire::DsType::DsHttp) => DatastoreKind::Http,
            Ok(wire::DsType::DsHttps) => DatastoreKind::Https,
            _ => DatastoreKind::Other(wire.d_type),
        },
        fqdn: wire.fqdn.clone(),
        path: wire.dpath.clone(),
        credentials,
        ca_pem,
    })
}

pub(super) fn content_tree(wire: &wire::ContentTree) -> Read<ContentTree> {
    let mut datastores: Vec<DatastoreId> = Vec::new();
    for (index, id) in wire.ds_ids_list.iter().enumerate() {
        datastores.push(uuid(&format!("ds_ids_list[{index}]"), id)?);
    }
    if datastores.is_empty() {
        datastores.push(uuid("dsId", &wire.ds_id)?);
    }
    let digest = non_empty(&wire.sha256, |text| {
        text.parse().map_err(|_| Bad::invalid("sha256", format!("{} is no digest", quote(text))))
    })?;
    Ok(ContentTree {
        id: uuid("uuid", &wire.uuid)?,
        name: wire.display_name.clone(),
        datastores,
        url: wire.url.clone(),
        format: match wire::Format::try_from(wire.iformat) {
            Ok(wire::Format::Container) => ContentFormat::Container,
            Ok(wire::Format::Raw) => ContentFormat::Raw,
            Ok(wire::Format::Qcow2) => ContentFormat::Qcow2,
            _ => ContentFormat::Other(wire.iformat),
        },
        digest,
        max_size_bytes: wire.max_size_bytes,
        generation: wire.generation_count,
    })
}

pub(super) fn base_os(wire: &wire::BaseOs) -> Read<BaseOs> {
    if wire.base_os_version.is_empty() {
        return Err(Bad::invalid("base_os_version", "missing"));
    }
    Ok(BaseOs {
        content_tree: uuid("content_tree_uuid", &wire.content_tree_uuid)?,
        version: wire.base_os_version.clone(),
        is_active: wire.activate,
        retry_counter: wire.retry_update.as_ref().map_or(0, |command| command.counter),
    })
}

/// An order as old controllers send it: a volume, or the content tree of that id. Drives are older still.
pub(super) fn base_os_before(wire: &wire::BaseOsConfig, volumes: &[Volume]) -> Read<BaseOs> {
    if wire.base_os_version.is_empty() {
        return Err(Bad::invalid("baseOSVersion", "missing"));
    }
    if wire.volume_id.is_empty() && !wire.drives.is_empty() {
        return Err(Bad::unsupported("drives", "images of an operating system come as content trees"));
    }
    let id = uuid("volumeID", &wire.volume_id)?;
    let volume = volumes.iter().find(|volume| volume.key.id == id);
    let tree = match volume.map(|volume| volume.origin) {
        Some(VolumeOrigin::Content(tree)) => tree,
        Some(VolumeOrigin::Blank) => return Err(Bad::invalid("volumeID", "the volume is blank")),
        None => uuid("volumeID", &wire.volume_id)?,
    };
    Ok(BaseOs {
        content_tree: tree,
        version: wire.base_os_version.clone(),
        is_active: wire.activate,
        retry_counter: 0,
    })
}

pub(super) fn volume(wire: &wire::Volume) -> Read<Volume> {
    let origin = wire.origin.as_ref().ok_or_else(|| Bad::invalid("origin", "missing"))?;
    let origin = match wire::VolumeContentOriginType::try_from(origin.r#type) {
        Ok(wire::VolumeContentOriginType::VcotBlank) => VolumeOrigin::Blank,
        Ok(wire::VolumeContentOriginType::VcotDownload) => {
            VolumeOrigin::Content(uuid("origin.downloadContentTreeID", &origin.download_content_tree_id)?)
        }
        _ => return Err(Bad::invalid("origin.type", format!("{} is no origin", origin.r#type))),
    };
    Ok(Volume {
        key: volume_key("uuid", &wire.uuid, wire.generation_count)?,
        name: wire.display_name.clone(),
        origin,
        max_size_bytes: u64::try_from(wire.maxsizebytes)
            .map_err(|_| Bad::invalid("maxsizebytes", "negative"))?,
        is_read_only: wire.readonly,
    })
}

pub(super) fn volume_key(field: &str, id: &str, generation: i64) -> Read<VolumeKey> {
    let generation = u64::try_from(generation).map_err(|_| Bad::invalid("generationCount", "negative"))?;
    Ok(VolumeKey { id: uuid(field, id)?, generation })
}
