// SPDX-License-Identifier: Apache-2.0
//! Info messages, as a controller reads them: from our own nodes and from any other.
//!
//! Refused is only what is no message. An object without a readable id comes out as [`Info::Other`], so that it can
//! still be kept; fields that cannot be read come out empty.

use std::net::Ipv4Addr;
use std::str::FromStr;

use model::id::{Digest, NetworkId, NetworkInstanceId, VolumeId, VolumeKey};
use model::net::{Mac, Prefix4};
use model::observed::{DiskFacts, Firmware, PortObserved};
use model::reason::{Fault, Reason};
use model::report::{
    AdapterStatus, AddressingKind, BlobStatus, DeviceStatus, Info, InfoMessage, MountStatus,
    PortConfigStatus, PortStatus, SecurityStatus,
};
use model::status::{
    AppStatus, ConfigItemStatus, ContentTreeStatus, NetworkInstanceStatus, NetworkKind, NetworkVifStatus,
    SoftwareStatus, SwState, VifStatus, VolumeStatus,
};
use prost::Message;
use uuid::Uuid;

use super::{ParseError, wall_time};
use crate::states::{
    at_rest_from_wire, attestation_from_wire, device_from_wire, module_from_wire, step_from_wire,
    sw_from_wire, update_from_wire,
};
use crate::wire::common::DhcpType;
use crate::wire::info as wire;
use crate::wire::info::z_info_msg::InfoContent;

pub(super) const MIB: u64 = 1024 * 1024;

/// Reads a `ZInfoMsg`.
pub fn info(untrusted_payload: &[u8]) -> Result<InfoMessage, ParseError> {
    let message = wire::ZInfoMsg::decode(untrusted_payload).map_err(|_| ParseError::Malformed)?;
    let info = match &message.info_content {
        Some(InfoContent::Dinfo(wire)) => Some(Info::Device(Box::new(device(wire)))),
        Some(InfoContent::Ainfo(wire)) => app(wire).map(Info::App),
        Some(InfoContent::Niinfo(wire)) => network_instance(wire).map(Info::NetworkInstance),
        Some(InfoContent::Vinfo(wire)) => volume(wire).map(Info::Volume),
        Some(InfoContent::Cinfo(wire)) => content_tree(wire).map(Info::ContentTree),
        Some(InfoContent::Binfo(wire)) => Some(Info::Blobs(wire.blob.iter().filter_map(blob).collect())),
        _ => None,
    };
    Ok(InfoMessage {
        device: message.dev_id.parse().ok(),
        at: message.at_time_stamp.as_ref().map(wall_time),
        info: info.unwrap_or(Info::Other(message.ztype)),
    })
}

fn percent(number: u32) -> u8 {
    u8::try_from(number.min(100)).unwrap_or(100)
}

/// What can be read of a list.
pub(super) fn readable<T: FromStr>(texts: &[String]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Our nodes write the code of the reason first; the text of others is kept whole.
fn fault(error: &wire::ErrorInfo) -> Option<Fault> {
    if error.description.is_empty() {
        return None;
    }
    let coded = error
        .description
        .split_once(": ")
        .and_then(|(code, message)| Some(Fault::new(Reason::from_code(code)?, message)));
    Some(coded.unwrap_or_else(|| Fault::new(Reason::NodeReported, error.description.clone())))
}

fn app(wire: &wire::ZInfoApp) -> Option<AppStatus> {
    let state = sw_from_wire(wire.state);
    let vif = |network: &wire::ZInfoNetwork| {
        Some(VifStatus {
            name: network.dev_name.clone(),
            network: NetworkInstanceId(Uuid::nil()),
            mac: network.mac_addr.parse().ok()?,
            address: readable(&network.ip_addrs).into_iter().next(),
            is_up: network.ipv4_up,
        })
    };
    Some(AppStatus {
        app: wire.app_id.parse().ok()?,
        version: wire.app_version.clone(),
        name: wire.app_name.clone(),
        state,
        is_activated: !matches!(state, SwState::Halted | SwState::Halting),
        faults: wire.app_err.iter().filter_map(fault).collect(),
        volumes: readable::<VolumeId>(&wire.volume_refs)
            .into_iter()
            .map(|id| VolumeKey { id, generation: 0 })
            .collect(),
        vifs: wire.network.iter().filter_map(vif).collect(),
        restart_counter: 0,
        purge_counter: 0,
        started_at: wire.boot_time.as_ref().map(wall_time),
    })
}

pub(super) fn network_kind(number: u32) -> Option<NetworkKind> {
    use crate::wire::config::ZNetworkInstType;
    match ZNetworkInstType::try_from(number.cast_signed()) {
        Ok(ZNetworkInstType::ZnetInstLocal) => Some(NetworkKind::Local),
        Ok(ZNetworkInstType::ZnetInstSwitch) => Some(NetworkKind::Switch),
        _ => None,
    }
}

fn network_instance(wire: &wire::ZInfoNetworkInstance) -> Option<NetworkInstanceStatus> {
    let vif = |vif: &wire::ZmetVifInfo| {
        let assigned = wire.ip_assignments.iter().find(|entry| entry.mac_address == vif.mac_address)?;
        Some(NetworkVifStatus {
            app: vif.app_id.parse().ok()?,
            vif: vif.vif_name.clone(),
            mac: vif.mac_address.parse().ok()?,
            address: readable::<Ipv4Addr>(&assigned.ip_address).into_iter().next(),
        })
    };
    Some(NetworkInstanceStatus {
        id: wire.network_id.parse().ok()?,
        version: wire.network_version.clone(),
        name: wire.displayname.clone(),
        is_active: wire.activated,
        kind: network_kind(wire.inst_type),
        bridge: wire.bridge_name.clone(),
        gateway: wire.bridge_ip_addr.parse().ok(),
        mtu: u16::try_from(wire.mtu).unwrap_or(0),
        uplink: wire.ports.first().cloned(),
        vifs: wire.vifs.iter().filter_map(vif).collect(),
        faults: wire.network_err.iter().filter_map(fault).collect(),
    })
}

fn volume(wire: &wire::ZInfoVolume) -> Option<VolumeStatus> {
    Some(VolumeStatus {
        key: VolumeKey {
            id: wire.uuid.parse().ok()?,
            generation: u64::try_from(wire.generation_count).unwrap_or(0),
        },
        name: wire.display_name.clone(),
        state: sw_from_wire(wire.state),
        progress_percent: percent(wire.progress_percentage),
        used_bytes: wire.resources.as_ref().map_or(0, |resources| resources.cur_size_bytes),
        max_size_bytes: wire.resources.as_ref().map_or(0, |resources| resources.max_size_bytes),
        users: wire.usage.as_ref().map_or(0, |usage| usage.ref_count),
        faults: wire.volume_err.iter().filter_map(fault).collect(),
    })
}

fn content_tree(wire: &wire::ZInfoContentTree) -> Option<ContentTreeStatus> {
    Some(ContentTreeStatus {
        id: wire.uuid.parse().ok()?,
        name: wire.display_name.clone(),
        state: sw_from_wire(wire.state),
        digest: wire.sha256.parse().ok(),
        progress_percent: percent(wire.progress_percentage),
        total_bytes: wire.resources.as_ref().map_or(0, |resources| resources.cur_size_bytes),
        blobs: readable::<Digest>(&wire.component_sha_list),
        users: wire.usage.as_ref().map_or(0, |usage| usage.ref_count),
        faults: wire.err.iter().filter_map(fault).collect(),
    })
}

fn blob(wire: &wire::ZInfoBlob) -> Option<BlobStatus> {
    Some(BlobStatus {
        digest: wire.sha256.parse().ok()?,
        state: sw_from_wire(wire.state),
        size_bytes: wire.resources.as_ref().map_or(0, |resources| resources.cur_size_bytes),
        users: wire.usage.as_ref().map_or(0, |usage| usage.ref_count),
        progress_percent: percent(wire.progress_percentage),
    })
}

fn device(wire: &wire::ZInfoDevice) -> DeviceStatus {
    let made = wire.minfo.clone().unwrap_or_default();
    let at_rest = wire.data_sec_at_rest_info.clone().unwrap_or_default();
    let software = |slot: &wire::ZInfoDevSw| SoftwareStatus {
        partition: slot.partition_label.clone(),
        partition_state: slot.partition_state.clone(),
        device: slot.partition_device.clone(),
        version: slot.short_version.clone(),
        is_running: slot.activated,
        state: sw_from_wire(slot.status),
        update: update_from_wire(slot.user_status),
        step: step_from_wire(slot.sub_status),
        step_text: slot.sub_status_str.clone(),
        progress_percent: percent(slot.download_progress),
        fault: slot.sw_err.as_ref().and_then(fault),
    };
    let mount = |mount: &wire::ZInfoStorage| MountStatus {
        path: mount.mount_path.clone(),
        total_bytes: mount.total.saturating_mul(MIB),
        is_storage: mount.storage_location,
        disk: disk(wire, mount),
    };
    let ports = wire.system_adapter.as_ref().and_then(|info| {
        let current = usize::try_from(info.current_index).ok()?;
        info.status.get(current)
    });
    DeviceStatus {
        name: wire.device_name.clone(),
        hostname: wire.host_name.clone(),
        state: device_from_wire(wire.state),
        architecture: wire.machine_arch.clone(),
        manufacturer: made.manufacturer,
        product: made.product_name,
        serial: made.serial_number,
        firmware: Firmware {
            product_version: made.version,
            product_uuid: made.uuid,
            compatible: made.compatible,
            bios_vendor: made.bios_vendor,
            bios_version: made.bios_version,
            bios_date: made.bios_release_date,
        },
        cpus: wire.ncpu,
        memory_bytes: wire.memory.saturating_mul(MIB),
        storage_bytes: wire.storage.saturating_mul(MIB),
        booted_at: wire.boot_time.as_ref().map(wall_time),
        boot_reason: wire.last_boot_reason,
        boot_reason_text: wire.last_reboot_reason.clone(),
        restart_counter: wire.restart_counter,
        update_counter: wire.baseos_update_counter,
        reboot_counter: wire.reboot_config_counter,
        shutdown_counter: wire.shutdown_config_counter,
        software: wire.sw_list.iter().map(software).collect(),
        port_config: ports.map(port_config).unwrap_or_default(),
        adapters: wire.assignable_adapters.iter().map(adapter).collect(),
        ports: ports.map(|ports| ports.ports.iter().map(port).collect()).unwrap_or_default(),
        mounts: wire.storage_list.iter().map(mount).collect(),
        items: wire.config_item_status.as_ref().map(items).unwrap_or_default(),
        apps: wire
            .app_instances
            .iter()
            .filter_map(|app| Some((app.uuid.parse().ok()?, app.name.clone())))
            .collect(),
        security: SecurityStatus {
            module: module_from_wire(wire.hsm_status),
            data_at_rest: at_rest_from_wire(at_rest.status),
            data_at_rest_text: at_rest.info,
            root_certs_sha256: wire.sec_info.as_ref().and_then(|info| digest(&info.sha_root_ca)),
            tls_root_certs_sha256: wire.sec_info.as_ref().and_then(|info| digest(&info.sha_tls_root_ca)),
        },
        attestation: attestation_from_wire(wire.attestation_info.as_ref().map_or(0, |info| info.state)),
        maintenance: wire.maintenance_mode_reasons.clone(),
        has_virtualization: wire.capabilities.as_ref().is_some_and(|c| c.hw_assisted_virtualization),
        has_watchdog: wire.hardware_watchdog_present,
    }
}

fn items(wire: &wire::ZInfoConfigItemStatus) -> Vec<ConfigItemStatus> {
    let read = |is_known: bool| {
        move |(key, item): (&String, &wire::ZInfoConfigItem)| ConfigItemStatus {
            key: key.clone(),
            value: item.value.clone(),
            is_known,
            error: Some(item.error.clone()).filter(|error| !error.is_empty()),
        }
    };
    wire.config_items
        .iter()
        .map(read(true))
        .chain(wire.unknown_config_items.iter().map(read(false)))
        .collect()
}

fn digest(bytes: &[u8]) -> Option<Digest> {
    Some(Digest(bytes.try_into().ok()?))
}

/// What is told of the disk below a file system.
fn disk(device: &wire::ZInfoDevice, mount: &wire::ZInfoStorage) -> Option<DiskFacts> {
    let storage = device.storage_info.iter().find(|storage| storage.pool_name == mount.mount_path)?;
    let name = storage.disks.first()?.disk_name.as_ref()?;
    Some(DiskFacts {
        device: name.name.clone(),
        serial: name.serial.clone(),
        filesystem: match wire::StorageTypeInfo::try_from(storage.storage_type) {
            Ok(wire::StorageTypeInfo::Ext4) => "ext4".into(),
            Ok(wire::StorageTypeInfo::Zfs) => "zfs".into(),
            Ok(wire::StorageTypeInfo::Unspecified) | Err(_) => String::new(),
        },
    })
}

fn adapter(wire: &wire::ZioBundle) -> AdapterStatus {
    AdapterStatus {
        kind: wire.r#type,
        group: wire.name.clone(),
        members: wire.members.clone(),
        macs: wire.io_address_list.iter().filter_map(|io| io.mac_address.parse().ok()).collect(),
        usage: wire.usage,
        is_used_by_node: wire.used_by_base_os,
    }
}

fn port_config(wire: &wire::DevicePortStatus) -> PortConfigStatus {
    PortConfigStatus {
        made_at: wire.time_priority.as_ref().map(wall_time),
        last_success: wire.last_succeeded.as_ref().map(wall_time),
        last_failure: wire.last_failed.as_ref().map(wall_time),
        error: wire.last_error.clone(),
    }
}

fn addressing(number: u32) -> Option<AddressingKind> {
    match DhcpType::try_from(number.cast_signed()) {
        Ok(DhcpType::DhcpNone) => Some(AddressingKind::None),
        Ok(DhcpType::Client) => Some(AddressingKind::Dhcp),
        Ok(DhcpType::Static) => Some(AddressingKind::Static),
        _ => None,
    }
}

fn port(wire: &wire::DevicePort) -> PortStatus {
    let subnet: Option<Prefix4> = wire.subnet.parse().ok();
    let prefix = |address: Ipv4Addr| {
        let length = subnet.filter(|subnet| subnet.contains(address)).map_or(32, |subnet| subnet.length);
        Prefix4 { address, length }
    };
    PortStatus {
        label: wire.name.clone(),
        is_uplink: wire.is_mgmt,
        cost: u8::try_from(wire.cost).unwrap_or(u8::MAX),
        addressing: addressing(wire.dhcp_type),
        network: wire.network_uuid.parse::<NetworkId>().ok(),
        usage: wire.usage,
        observed: PortObserved {
            name: wire.ifname.clone(),
            mac: wire.mac_addr.parse::<Mac>().ok(),
            is_up: wire.up,
            mtu: wire.mtu,
            addresses: readable(&wire.ip_addrs).into_iter().map(prefix).collect(),
            gateways: readable(&wire.default_routers),
            dns: readable(&wire.dns_servers),
            search: wire.dns.as_ref().map(|dns| dns.dn_ssearch.clone()).unwrap_or_default(),
        },
        fault: wire.err.as_ref().and_then(fault),
    }
}
