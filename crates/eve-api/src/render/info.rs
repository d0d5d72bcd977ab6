// SPDX-License-Identifier: Apache-2.0
//! Info messages: one object each. Memory and disks go out in MiB, as EVE sends them.

use std::collections::BTreeMap;
use std::iter;

use model::id::{DeviceId, Digest, VolumeKey};
use model::reason::{Fault, Severity};
use model::report::{
    AdapterStatus, AddressingKind, BlobStatus, DeviceStatus, Info, InfoMessage, MountStatus, PortStatus,
    SecurityModule,
};
use model::status::{AppStatus, ContentTreeStatus, NetworkInstanceStatus, NetworkKind, VolumeStatus};
use model::time::WallTime;
use prost::Message;

use super::config::bare_hex;
use super::timestamp;
use crate::states::{
    at_rest_to_wire, attestation_to_wire, device_to_wire, module_to_wire, step_to_wire, sw_to_wire,
    update_to_wire,
};
use crate::wire::common::{DhcpType, DiskDescription};
use crate::wire::info as wire;
use crate::wire::info::z_info_msg::InfoContent;

pub(super) const MIB: u64 = 1024 * 1024;
/// File systems as Linux names them.
const EXT4: &str = "ext4";
const ZFS: &str = "zfs";
/// Key of the one port config there is, as EVE names that of the controller.
const PORT_CONFIG_KEY: &str = "zedagent";
/// Name under which EVE reports the encryption of apps' data.
const VAULT_NAME: &str = "Application Data Store";

/// The payload of `POST /info`.
pub fn info(message: &InfoMessage) -> Vec<u8> {
    let at = message.at;
    let (kind, content) = match &message.info {
        Info::Device(status) => {
            (wire::ZInfoTypes::ZiDevice.into(), Some(InfoContent::Dinfo(device(status, at))))
        }
        Info::App(status) => (wire::ZInfoTypes::ZiApp.into(), Some(InfoContent::Ainfo(app(status, at)))),
        Info::NetworkInstance(status) => (
            wire::ZInfoTypes::ZiNetworkInstance.into(),
            Some(InfoContent::Niinfo(network_instance(status, at))),
        ),
        Info::Volume(status) => {
            (wire::ZInfoTypes::ZiVolume.into(), Some(InfoContent::Vinfo(volume(status, at))))
        }
        Info::ContentTree(status) => {
            (wire::ZInfoTypes::ZiContentTree.into(), Some(InfoContent::Cinfo(content_tree(status, at))))
        }
        Info::Blobs(blobs) => {
            let blob = blobs.iter().map(self::blob).collect();
            (wire::ZInfoTypes::ZiBlobList.into(), Some(InfoContent::Binfo(wire::ZInfoBlobList { blob })))
        }
        Info::Other(kind) => (*kind, None),
    };
    wire::ZInfoMsg {
        ztype: kind,
        dev_id: device_id(message.device),
        at_time_stamp: at.map(timestamp),
        info_content: content,
    }
    .encode_to_vec()
}

pub(super) fn device_id(id: Option<DeviceId>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

fn error(fault: &Fault, at: Option<WallTime>, entity: Option<(wire::Entity, String)>) -> wire::ErrorInfo {
    wire::ErrorInfo {
        description: fault.to_string(),
        timestamp: at.map(timestamp),
        severity: match fault.reason.severity() {
            Severity::Notice => wire::Severity::Notice,
            Severity::Warning => wire::Severity::Warning,
            Severity::Error => wire::Severity::Error,
        }
        .into(),
        entities: entity
            .into_iter()
            .map(|(entity, id)| wire::DeviceEntity {
                entity: entity.into(),
                entity_id: id,
                ..Default::default()
            })
            .collect(),
        retry_condition: fault.reason.next_step().to_owned(),
    }
}

/// Where the wire has room for one error, the first is the one that stands in the way.
fn first_error(
    faults: &[Fault],
    at: Option<WallTime>,
    entity: wire::Entity,
    id: impl ToString,
) -> Option<wire::ErrorInfo> {
    faults.first().map(|fault| error(fault, at, Some((entity, id.to_string()))))
}

fn usage(users: u32) -> wire::UsageInfo {
    wire::UsageInfo { ref_count: users, ..Default::default() }
}

fn app(status: &AppStatus, at: Option<WallTime>) -> wire::ZInfoApp {
    let entity = |fault: &Fault| error(fault, at, Some((wire::Entity::AppInstance, status.app.to_string())));
    wire::ZInfoApp {
        app_id: status.app.to_string(),
        app_version: status.version.clone(),
        app_name: status.name.clone(),
        boot_time: status.started_at.map(timestamp),
        app_err: status.faults.iter().map(entity).collect(),
        state: sw_to_wire(status.state),
        network: status
            .vifs
            .iter()
            .map(|vif| wire::ZInfoNetwork {
                mac_addr: vif.mac.to_string(),
                dev_name: vif.name.clone(),
                ip_addrs: vif.address.iter().map(ToString::to_string).collect(),
                ipv4_up: vif.is_up,
                ..Default::default()
            })
            .collect(),
        volume_refs: status.volumes.iter().map(|VolumeKey { id, .. }| id.to_string()).collect(),
        ..Default::default()
    }
}

pub(super) fn instance_type(kind: NetworkKind) -> u32 {
    use crate::wire::config::ZNetworkInstType;
    match kind {
        NetworkKind::Local => ZNetworkInstType::ZnetInstLocal as u32,
        NetworkKind::Switch => ZNetworkInstType::ZnetInstSwitch as u32,
    }
}

fn network_instance(status: &NetworkInstanceStatus, at: Option<WallTime>) -> wire::ZInfoNetworkInstance {
    let entity =
        |fault: &Fault| error(fault, at, Some((wire::Entity::NetworkInstance, status.id.to_string())));
    let state = match (status.faults.is_empty(), status.is_active && !status.bridge.is_empty()) {
        (false, _) => wire::ZNetworkInstanceState::ZnetinstStateError,
        (true, true) => wire::ZNetworkInstanceState::ZnetinstStateOnline,
        (true, false) => wire::ZNetworkInstanceState::ZnetinstStateInit,
    };
    wire::ZInfoNetworkInstance {
        network_id: status.id.to_string(),
        network_version: status.version.clone(),
        inst_type: match status.kind {
            Some(kind) => instance_type(kind),
            None => 0,
        },
        displayname: status.name.clone(),
        activated: status.is_active,
        ports: status.uplink.iter().cloned().collect(),
        bridge_name: status.bridge.clone(),
        bridge_num: status.bridge.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0),
        bridge_ip_addr: status.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        mtu: status.mtu.into(),
        ip_assignments: status
            .vifs
            .iter()
            .map(|vif| wire::ZmetIpAssignmentEntry {
                mac_address: vif.mac.to_string(),
                ip_address: vif.address.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        vifs: status
            .vifs
            .iter()
            .map(|vif| wire::ZmetVifInfo {
                vif_name: vif.vif.clone(),
                mac_address: vif.mac.to_string(),
                app_id: vif.app.to_string(),
            })
            .collect(),
        network_err: status.faults.iter().map(entity).collect(),
        state: state.into(),
        ..Default::default()
    }
}

fn volume(status: &VolumeStatus, at: Option<WallTime>) -> wire::ZInfoVolume {
    wire::ZInfoVolume {
        uuid: status.key.id.to_string(),
        display_name: status.name.clone(),
        usage: Some(usage(status.users)),
        resources: Some(wire::VolumeResources {
            cur_size_bytes: status.used_bytes,
            max_size_bytes: status.max_size_bytes,
        }),
        state: sw_to_wire(status.state),
        progress_percentage: status.progress_percent.into(),
        volume_err: first_error(&status.faults, at, wire::Entity::Volume, status.key.id),
        generation_count: i64::try_from(status.key.generation).unwrap_or(i64::MAX),
    }
}

fn content_tree(status: &ContentTreeStatus, at: Option<WallTime>) -> wire::ZInfoContentTree {
    wire::ZInfoContentTree {
        uuid: status.id.to_string(),
        display_name: status.name.clone(),
        sha256: status.digest.as_ref().map(bare_hex).unwrap_or_default(),
        resources: Some(wire::ContentResources { cur_size_bytes: status.total_bytes }),
        usage: Some(usage(status.users)),
        state: sw_to_wire(status.state),
        progress_percentage: status.progress_percent.into(),
        err: first_error(&status.faults, at, wire::Entity::ContentTree, status.id),
        component_sha_list: status.blobs.iter().map(bare_hex).collect(),
        ..Default::default()
    }
}

fn blob(status: &BlobStatus) -> wire::ZInfoBlob {
    wire::ZInfoBlob {
        sha256: bare_hex(&status.digest),
        resources: Some(wire::ContentResources { cur_size_bytes: status.size_bytes }),
        usage: Some(usage(status.users)),
        state: sw_to_wire(status.state),
        progress_percentage: status.progress_percent.into(),
        ..Default::default()
    }
}

fn device(status: &DeviceStatus, at: Option<WallTime>) -> wire::ZInfoDevice {
    let software = |slot: &model::status::SoftwareStatus| wire::ZInfoDevSw {
        activated: slot.is_running,
        partition_label: slot.partition.clone(),
        partition_device: slot.device.clone(),
        partition_state: slot.partition_state.clone(),
        status: sw_to_wire(slot.state),
        short_version: slot.version.clone(),
        long_version: slot.version.clone(),
        sw_err: slot
            .fault
            .as_ref()
            .map(|fault| error(fault, at, Some((wire::Entity::BaseOs, slot.version.clone())))),
        download_progress: slot.progress_percent.into(),
        user_status: update_to_wire(slot.update),
        sub_status: step_to_wire(slot.step),
        sub_status_str: slot.step_text.clone(),
        sub_status_progress: slot.progress_percent.into(),
    };
    let mount = |mount: &MountStatus| wire::ZInfoStorage {
        device: mount.disk.as_ref().map(|disk| disk.device.clone()).unwrap_or_default(),
        mount_path: mount.path.clone(),
        total: mount.total_bytes / MIB,
        storage_location: mount.is_storage,
        ..Default::default()
    };
    let data_at_rest = at_rest_to_wire(status.security.data_at_rest);
    wire::ZInfoDevice {
        machine_arch: status.architecture.clone(),
        cpu_arch: status.architecture.clone(),
        platform: status.architecture.clone(),
        ncpu: status.cpus,
        memory: status.memory_bytes / MIB,
        storage: status.storage_bytes / MIB,
        minfo: Some(wire::ZInfoManufacturer {
            manufacturer: status.manufacturer.clone(),
            product_name: status.product.clone(),
            version: status.firmware.product_version.clone(),
            serial_number: status.serial.clone(),
            uuid: status.firmware.product_uuid.clone(),
            compatible: status.firmware.compatible.clone(),
            bios_vendor: status.firmware.bios_vendor.clone(),
            bios_version: status.firmware.bios_version.clone(),
            bios_release_date: status.firmware.bios_date.clone(),
        }),
        network: status.ports.iter().map(|port| port_network(port, at)).collect(),
        assignable_adapters: status.adapters.iter().map(adapter).collect(),
        dns: Some(dns(status.ports.iter())),
        storage_list: status.mounts.iter().map(mount).collect(),
        boot_time: status.booted_at.map(timestamp),
        sw_list: status.software.iter().map(software).collect(),
        host_name: status.hostname.clone(),
        last_reboot_reason: status.boot_reason_text.clone(),
        system_adapter: Some(wire::SystemAdapterInfo {
            current_index: 0,
            status: vec![wire::DevicePortStatus {
                key: PORT_CONFIG_KEY.to_owned(),
                time_priority: status.port_config.made_at.map(timestamp),
                last_failed: status.port_config.last_failure.map(timestamp),
                last_succeeded: status.port_config.last_success.map(timestamp),
                ports: status.ports.iter().map(|port| device_port(port, at)).collect(),
                last_error: status.port_config.error.clone(),
                ..Default::default()
            }],
        }),
        restart_counter: status.restart_counter,
        baseos_update_counter: status.update_counter,
        hsm_status: module_to_wire(status.security.module),
        hsm_info: match status.security.module {
            SecurityModule::Enabled => "keys in the TPM",
            SecurityModule::Disabled => "TPM present but not used",
            SecurityModule::NotFound => "no TPM, keys in software",
            SecurityModule::Unknown => "",
        }
        .to_owned(),
        data_sec_at_rest_info: Some(wire::DataSecAtRest {
            status: data_at_rest,
            info: status.security.data_at_rest_text.clone(),
            vault_list: vec![wire::VaultInfo {
                name: VAULT_NAME.to_owned(),
                status: data_at_rest,
                ..Default::default()
            }],
        }),
        sec_info: Some(wire::SecurityInfo {
            sha_root_ca: digest_bytes(status.security.root_certs_sha256),
            sha_tls_root_ca: digest_bytes(status.security.tls_root_certs_sha256),
        }),
        config_item_status: Some(config_items(status)),
        app_instances: status
            .apps
            .iter()
            .map(|(app, name)| wire::ZInfoAppInstance {
                uuid: app.to_string(),
                name: name.clone(),
                ..Default::default()
            })
            .collect(),
        reboot_config_counter: status.reboot_counter,
        shutdown_config_counter: status.shutdown_counter,
        last_boot_reason: status.boot_reason,
        maintenance_mode: !status.maintenance.is_empty(),
        maintenance_mode_reasons: status.maintenance.clone(),
        hardware_watchdog_present: status.has_watchdog,
        reboot_inprogress: status.state == model::report::DeviceState::Rebooting,
        capabilities: Some(wire::Capabilities {
            hw_assisted_virtualization: status.has_virtualization,
            ..Default::default()
        }),
        state: device_to_wire(status.state),
        storage_info: status.mounts.iter().filter_map(storage).collect(),
        attestation_info: Some(wire::AttestationInfo {
            state: attestation_to_wire(status.attestation),
            ..Default::default()
        }),
        // A number claims all features below it; ours begin with one that is not there yet.
        api_capability: wire::ApiCapability::Unspecified.into(),
        optional_capabilities: Some(wire::OptionalCapabilities::default()),
        device_name: status.name.clone(),
        ..Default::default()
    }
}

fn config_items(status: &DeviceStatus) -> wire::ZInfoConfigItemStatus {
    let pick = |is_known: bool| -> BTreeMap<String, wire::ZInfoConfigItem> {
        let items = status.items.iter().filter(|item| item.is_known == is_known);
        items
            .map(|item| {
                let error = item.error.clone().unwrap_or_default();
                (item.key.clone(), wire::ZInfoConfigItem { value: item.value.clone(), error })
            })
            .collect()
    };
    wire::ZInfoConfigItemStatus { config_items: pick(true), unknown_config_items: pick(false) }
}

fn digest_bytes(digest: Option<Digest>) -> Vec<u8> {
    digest.map(|digest| digest.0.to_vec()).unwrap_or_default()
}

/// A file system that is mounted counts as in order: nobody looks deeper.
fn storage(mount: &MountStatus) -> Option<wire::StorageInfo> {
    let disk = mount.disk.as_ref()?;
    let kind = match disk.filesystem.as_str() {
        EXT4 => wire::StorageTypeInfo::Ext4,
        ZFS => wire::StorageTypeInfo::Zfs,
        _ => wire::StorageTypeInfo::Unspecified,
    };
    Some(wire::StorageInfo {
        pool_name: mount.path.clone(),
        storage_type: kind.into(),
        storage_state: wire::StorageStatus::Online.into(),
        disks: vec![wire::StorageDiskState {
            disk_name: Some(DiskDescription {
                name: disk.device.clone(),
                serial: disk.serial.clone(),
                ..Default::default()
            }),
            status: wire::StorageStatus::Online.into(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn adapter(adapter: &AdapterStatus) -> wire::ZioBundle {
    let address =
        |mac: &model::net::Mac| wire::IoAddresses { mac_address: mac.to_string(), ..Default::default() };
    wire::ZioBundle {
        r#type: adapter.kind,
        name: adapter.group.clone(),
        members: adapter.members.clone(),
        used_by_base_os: adapter.is_used_by_node,
        io_address_list: adapter.macs.iter().map(address).collect(),
        usage: adapter.usage,
        ..Default::default()
    }
}

/// What the ports have, each once.
fn dns<'a>(ports: impl Iterator<Item = &'a PortStatus> + Clone) -> wire::ZInfoDns {
    let mut out = wire::ZInfoDns::default();
    for server in ports.clone().flat_map(|port| &port.observed.dns).map(ToString::to_string) {
        if !out.dn_sservers.contains(&server) {
            out.dn_sservers.push(server);
        }
    }
    for domain in ports.flat_map(|port| &port.observed.search) {
        if !out.dn_ssearch.contains(domain) {
            out.dn_ssearch.push(domain.clone());
        }
    }
    out
}

fn port_error(port: &PortStatus, at: Option<WallTime>) -> Option<wire::ErrorInfo> {
    port.fault.as_ref().map(|fault| error(fault, at, Some((wire::Entity::Port, port.label.clone()))))
}

fn port_network(port: &PortStatus, at: Option<WallTime>) -> wire::ZInfoNetwork {
    let observed = &port.observed;
    wire::ZInfoNetwork {
        mac_addr: observed.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        dev_name: port.label.clone(),
        local_name: observed.name.clone(),
        ip_addrs: observed.addresses.iter().map(|prefix| prefix.address.to_string()).collect(),
        default_routers: observed.gateways.iter().map(ToString::to_string).collect(),
        dns: Some(dns(iter::once(port))),
        ipv4_up: observed.is_up,
        uplink: port.is_uplink,
        network_err: port_error(port, at),
        ..Default::default()
    }
}

fn device_port(port: &PortStatus, at: Option<WallTime>) -> wire::DevicePort {
    let observed = &port.observed;
    let subnet = observed.addresses.first().map(|prefix| format!("{}/{}", prefix.network(), prefix.length));
    wire::DevicePort {
        ifname: observed.name.clone(),
        name: port.label.clone(),
        is_mgmt: port.is_uplink,
        free: port.cost == 0,
        dhcp_type: port.addressing.map_or(0, dhcp_type),
        subnet: subnet.unwrap_or_default(),
        gateway: observed.gateways.first().map(ToString::to_string).unwrap_or_default(),
        dns_servers: observed.dns.iter().map(ToString::to_string).collect(),
        mac_addr: observed.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        ip_addrs: observed.addresses.iter().map(|prefix| prefix.address.to_string()).collect(),
        default_routers: observed.gateways.iter().map(ToString::to_string).collect(),
        dns: Some(dns(iter::once(port))),
        up: observed.is_up,
        err: port_error(port, at),
        usage: port.usage,
        network_uuid: port.network.map(|id| id.to_string()).unwrap_or_default(),
        cost: port.cost.into(),
        mtu: observed.mtu,
        ..Default::default()
    }
}

fn dhcp_type(kind: AddressingKind) -> u32 {
    match kind {
        AddressingKind::None => DhcpType::DhcpNone as u32,
        AddressingKind::Dhcp => DhcpType::Client as u32,
        AddressingKind::Static => DhcpType::Static as u32,
    }
}
