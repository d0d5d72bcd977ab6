// SPDX-License-Identifier: Apache-2.0
//! App instances.

use model::config::{AppInstance, AppInterface, Resources, UserData, VirtualizationMode, VolumeRef};
use model::id::AppId;
use model::secret::CipherContext;

use super::acl;
use super::bad::{Bad, Read, ipv4, non_empty, quote, uuid};
use super::storage::{secret, volume_key};
use crate::wire::config as wire;

/// Memory on the wire is in KiB.
const KIB: u64 = 1024;
/// Longest path inside an app: `PATH_MAX` of Linux.
const MAX_PATH_BYTES: usize = 4095;

pub(super) fn app_id(wire: &wire::AppInstanceConfig) -> Read<AppId> {
    let id = wire.uuidandversion.as_ref().ok_or_else(|| Bad::invalid("uuidandversion", "missing"))?;
    uuid("uuidandversion.uuid", &id.uuid)
}

pub(super) fn app(wire: &wire::AppInstanceConfig, contexts: &[CipherContext]) -> Read<AppInstance> {
    let id = app_id(wire)?;
    let version = wire.uuidandversion.as_ref().map(|id| id.version.clone()).unwrap_or_default();
    let resources = wire.fixedresources.as_ref().ok_or_else(|| Bad::invalid("fixedresources", "missing"))?;
    let mut volumes = Vec::new();
    for (index, volume) in wire.volume_ref_list.iter().enumerate() {
        let volume = volume_ref(volume);
        volumes.push(volume.map_err(|bad| bad.at(format!("volumeRefList[{index}]")))?);
    }
    let mut interfaces = Vec::new();
    for (index, adapter) in wire.interfaces.iter().enumerate() {
        interfaces.push(interface(adapter).map_err(|bad| bad.at(format!("interfaces[{index}]")))?);
    }
    let has_clear = !wire.user_data.is_empty();
    let user_data = match secret(wire.cipher_data.as_ref(), contexts, has_clear)? {
        Some(handle) => Some(UserData::Sealed(handle)),
        None => has_clear.then(|| UserData::Clear(wire.user_data.clone())),
    };
    Ok(AppInstance {
        id,
        version,
        name: wire.displayname.clone(),
        is_active: wire.activate,
        resources: Resources {
            memory_bytes: u64::from(resources.memory) * KIB,
            vcpus: resources.vcpus,
            mode: mode(resources.virtualization_mode),
        },
        volumes,
        interfaces,
        restart_counter: wire.restart.as_ref().map_or(0, |command| command.counter),
        purge_counter: wire.purge.as_ref().map_or(0, |command| command.counter),
        user_data,
        profiles: wire.profile_list.clone(),
        start_delay_s: wire.start_delay_in_seconds,
        adapters: wire.adapters.iter().map(|adapter| adapter.name.clone()).collect(),
    })
}

fn volume_ref(wire: &wire::VolumeRef) -> Read<VolumeRef> {
    let dir = &wire.mount_dir;
    let is_path = dir.starts_with('/')
        && dir.len() <= MAX_PATH_BYTES
        && !dir.contains('\0')
        && dir.split('/').all(|part| part != "..");
    if !dir.is_empty() && !is_path {
        return Err(Bad::invalid("mount_dir", format!("{} is no path inside an app", quote(dir))));
    }
    let key = volume_key("uuid", &wire.uuid, wire.generation_count)?;
    Ok(VolumeRef { key, mount_dir: dir.clone() })
}

fn mode(number: i32) -> VirtualizationMode {
    match wire::VmMode::try_from(number) {
        Ok(wire::VmMode::Pv) => VirtualizationMode::Pv,
        Ok(wire::VmMode::Hvm) => VirtualizationMode::Hvm,
        Ok(wire::VmMode::Filler) => VirtualizationMode::Filler,
        Ok(wire::VmMode::Fml) => VirtualizationMode::Fml,
        Ok(wire::VmMode::Nohyper) => VirtualizationMode::NoHyper,
        Ok(wire::VmMode::Legacy) => VirtualizationMode::Legacy,
        Err(_) => VirtualizationMode::Other(number),
    }
}

fn interface(wire: &wire::NetworkAdapter) -> Read<AppInterface> {
    // Left out, it would put the app into a VLAN it was not ordered into.
    if wire.access_vlan_id != 0 {
        return Err(Bad::unsupported("access_vlan_id", "VLAN of an interface"));
    }
    let mut acl = Vec::new();
    for (index, ace) in wire.acls.iter().enumerate() {
        acl.extend(acl::rule(ace).map_err(|bad| bad.at(format!("acls[{index}]")))?);
    }
    Ok(AppInterface {
        name: wire.name.clone(),
        network: uuid("networkId", &wire.network_id)?,
        mac: non_empty(&wire.mac_address, |text| {
            text.parse()
                .map_err(|_| Bad::invalid("macAddress", format!("{} is no Ethernet address", quote(text))))
        })?,
        address: non_empty(&wire.addr, |text| ipv4("addr", text))?,
        acl,
    })
}
