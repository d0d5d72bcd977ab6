// SPDX-License-Identifier: Apache-2.0
//! A device's config for the wire. The order of lists is the model's, so that equal configs are equal bytes.

use std::net::Ipv4Addr;

use model::config::{
    AclAction, AclDirection, AclProtocol, AclRemote, AclRule, AppInstance, AppInterface, BaseOs,
    ContentFormat, ContentTree, Credentials, Datastore, DatastoreKind, DeviceConfig, NetworkConfig,
    NetworkInstance, NetworkInstanceKind, OpsCommand, PhysicalIo, PortAddressing, PortRange, SystemAdapter,
    UserData, VirtualizationMode, Volume, VolumeOrigin, VolumeRef,
};
use model::secret::SecretHandle;
use prost::Message;

use super::timestamp;
use crate::cipher::context_to_wire;
use crate::wire::common::{
    CipherBlock, DhcpType, IpRange, Ipspec, NetworkType, PhyIoType, ZnetStaticDnsEntry,
};
use crate::wire::config as wire;

/// The payload of an answer to a request for the config.
pub fn config_response(config: &DeviceConfig, hash: &str) -> Vec<u8> {
    wire::ConfigResponse { config: Some(device_config(config)), config_hash: hash.to_owned() }.encode_to_vec()
}

/// The `EdgeDevConfig`. A secret sealed by a node's vault never gets here; its place would stay empty.
pub fn device_config(config: &DeviceConfig) -> wire::EdgeDevConfig {
    wire::EdgeDevConfig {
        id: Some(id(config.id, &config.version)),
        config_timestamp: config.timestamp.map(timestamp),
        device_name: config.name.clone(),
        controllercert_confighash: config.controller_cert_hash.clone(),
        controller_epoch: config.controller_epoch,
        config_items: config
            .items
            .iter()
            .map(|item| wire::ConfigItem { key: item.key.clone(), value: item.value.clone() })
            .collect(),
        reboot: config.reboot.map(command),
        shutdown: config.shutdown.map(command),
        device_io_list: config.physical_ios.iter().map(physical_io).collect(),
        networks: config.networks.iter().map(network).collect(),
        system_adapter_list: config.system_adapters.iter().map(|a| system_adapter(a, config)).collect(),
        network_instances: config.network_instances.iter().map(network_instance).collect(),
        datastores: config.datastores.iter().map(datastore).collect(),
        content_info: config.content_trees.iter().map(content_tree).collect(),
        volumes: config.volumes.iter().map(volume).collect(),
        apps: config.apps.iter().map(app).collect(),
        cipher_contexts: config.cipher_contexts.iter().map(context_to_wire).collect(),
        global_profile: config.global_profile.clone(),
        baseos: config.base_os.as_ref().map(base_os),
        ..wire::EdgeDevConfig::default()
    }
}

fn id(uuid: impl ToString, version: &str) -> wire::UuiDandVersion {
    wire::UuiDandVersion { uuid: uuid.to_string(), version: version.to_owned() }
}

fn command(command: OpsCommand) -> wire::DeviceOpsCmd {
    wire::DeviceOpsCmd { counter: command.counter, desired_state: command.desired, ..Default::default() }
}

fn base_os(os: &BaseOs) -> wire::BaseOs {
    wire::BaseOs {
        content_tree_uuid: os.content_tree.to_string(),
        retry_update: Some(command(OpsCommand { counter: os.retry_counter, desired: true })),
        activate: os.is_active,
        base_os_version: os.version.clone(),
    }
}

fn physical_io(io: &PhysicalIo) -> wire::PhysicalIo {
    wire::PhysicalIo {
        ptype: io.kind,
        phylabel: io.physical_label.clone(),
        phyaddrs: io.interface.iter().map(|name| ("ifname".to_owned(), name.clone())).collect(),
        logicallabel: io.logical_label.clone(),
        assigngrp: io.assignment_group.clone(),
        usage: io.usage,
        ..Default::default()
    }
}

fn network(network: &NetworkConfig) -> wire::NetworkConfig {
    let ip = match &network.addressing {
        PortAddressing::None => Ipspec { dhcp: DhcpType::DhcpNone.into(), ..Default::default() },
        PortAddressing::Dhcp => Ipspec { dhcp: DhcpType::Client.into(), ..Default::default() },
        PortAddressing::Static { subnet, gateway, dns } => Ipspec {
            dhcp: DhcpType::Static.into(),
            subnet: subnet.to_string(),
            gateway: gateway.map(|address| address.to_string()).unwrap_or_default(),
            dns: texts(dns),
            ..Default::default()
        },
    };
    wire::NetworkConfig {
        id: network.id.to_string(),
        r#type: NetworkType::V4.into(),
        ip: Some(ip),
        ..Default::default()
    }
}

fn texts(addresses: &[Ipv4Addr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn system_adapter(adapter: &SystemAdapter, config: &DeviceConfig) -> wire::SystemAdapter {
    let network = config.networks.iter().find(|network| Some(network.id) == adapter.network);
    let address = match network.map(|network| &network.addressing) {
        Some(PortAddressing::Static { subnet, .. }) => subnet.address.to_string(),
        _ => String::new(),
    };
    wire::SystemAdapter {
        name: adapter.name.clone(),
        uplink: adapter.is_uplink,
        network_uuid: adapter.network.map(|id| id.to_string()).unwrap_or_default(),
        addr: address,
        lower_layer_name: adapter.lower_layer.clone(),
        cost: adapter.cost.into(),
        shared_labels: adapter.shared_labels.clone(),
        ..Default::default()
    }
}

fn network_instance(instance: &NetworkInstance) -> wire::NetworkInstanceConfig {
    let mut out = wire::NetworkInstanceConfig {
        uuidandversion: Some(id(instance.id, &instance.version)),
        displayname: instance.name.clone(),
        activate: instance.is_active,
        port: Some(wire::Adapter {
            r#type: PhyIoType::PhyIoNetEth.into(),
            name: instance.port.clone(),
            ..Default::default()
        }),
        mtu: instance.mtu.into(),
        disable_flowlog: !instance.is_flow_logged,
        ..Default::default()
    };
    match &instance.kind {
        NetworkInstanceKind::Switch => out.inst_type = wire::ZNetworkInstType::ZnetInstSwitch.into(),
        NetworkInstanceKind::Local(local) => {
            out.inst_type = wire::ZNetworkInstType::ZnetInstLocal.into();
            out.ip_type = wire::AddressType::Ipv4.into();
            out.ip = Some(Ipspec {
                subnet: local.subnet.to_string(),
                gateway: local.gateway.to_string(),
                dns: texts(&local.dns),
                dhcp_range: Some(IpRange {
                    start: local.range.0.to_string(),
                    end: local.range.1.to_string(),
                }),
                domain: local.domain.clone(),
                ntp: local.ntp.first().map(ToString::to_string).unwrap_or_default(),
                more_ntp: texts(local.ntp.get(1..).unwrap_or_default()),
                ..Default::default()
            });
            out.propagate_connected_routes = local.routes_uplinks;
            out.static_routes = local
                .routes
                .iter()
                .map(|to| wire::IpRoute { destination_network: to.to_string(), ..Default::default() })
                .collect();
            out.dns = local
                .static_names
                .iter()
                .map(|(name, addresses)| ZnetStaticDnsEntry {
                    host_name: name.clone(),
                    address: texts(addresses),
                })
                .collect();
        }
    }
    out
}

fn block(handle: &SecretHandle) -> Option<CipherBlock> {
    match handle {
        SecretHandle::Object { block, .. } => Some(CipherBlock {
            cipher_context_id: block.context_id.clone(),
            initial_value: block.initial_value.clone(),
            cipher_data: block.cipher_data.clone(),
            clear_text_sha256: block.clear_text_sha256.clone(),
        }),
        SecretHandle::Sealed { .. } => None,
    }
}

fn datastore(store: &Datastore) -> wire::DatastoreConfig {
    let mut out = wire::DatastoreConfig {
        id: store.id.to_string(),
        d_type: match store.kind {
            DatastoreKind::ContainerRegistry => wire::DsType::DsContainerRegistry.into(),
            DatastoreKind::Http => wire::DsType::DsHttp.into(),
            DatastoreKind::Https => wire::DsType::DsHttps.into(),
            DatastoreKind::Other(number) => number,
        },
        fqdn: store.fqdn.clone(),
        dpath: store.path.clone(),
        ds_cert_pem: store.ca_pem.iter().map(|pem| pem.clone().into_bytes()).collect(),
        ..Default::default()
    };
    match &store.credentials {
        None => {}
        Some(Credentials::Sealed(handle)) => out.cipher_data = block(handle),
        Some(Credentials::Clear { user, password }) => {
            out.api_key.clone_from(user);
            out.password.clone_from(password);
        }
    }
    out
}

fn content_tree(tree: &ContentTree) -> wire::ContentTree {
    wire::ContentTree {
        uuid: tree.id.to_string(),
        // The old field beside the list, for nodes that know only it.
        ds_id: tree.datastores.first().map(ToString::to_string).unwrap_or_default(),
        ds_ids_list: tree.datastores.iter().map(ToString::to_string).collect(),
        url: tree.url.clone(),
        iformat: match tree.format {
            ContentFormat::Container => wire::Format::Container.into(),
            ContentFormat::Raw => wire::Format::Raw.into(),
            ContentFormat::Qcow2 => wire::Format::Qcow2.into(),
            ContentFormat::Other(number) => number,
        },
        sha256: tree.digest.map(|digest| bare_hex(&digest)).unwrap_or_default(),
        max_size_bytes: tree.max_size_bytes,
        display_name: tree.name.clone(),
        generation_count: tree.generation,
        ..Default::default()
    }
}

/// Digits alone, as the wire wants a digest.
pub(super) fn bare_hex(digest: &model::id::Digest) -> String {
    let text = digest.to_string();
    text.strip_prefix("sha256:").map(str::to_owned).unwrap_or(text)
}

fn volume(volume: &Volume) -> wire::Volume {
    let (kind, tree) = match volume.origin {
        VolumeOrigin::Blank => (wire::VolumeContentOriginType::VcotBlank, String::new()),
        VolumeOrigin::Content(tree) => (wire::VolumeContentOriginType::VcotDownload, tree.to_string()),
    };
    wire::Volume {
        uuid: volume.key.id.to_string(),
        origin: Some(wire::VolumeContentOrigin { r#type: kind.into(), download_content_tree_id: tree }),
        generation_count: i64::try_from(volume.key.generation).unwrap_or(i64::MAX),
        maxsizebytes: i64::try_from(volume.max_size_bytes).unwrap_or(i64::MAX),
        readonly: volume.is_read_only,
        display_name: volume.name.clone(),
        ..Default::default()
    }
}

fn app(app: &AppInstance) -> wire::AppInstanceConfig {
    let memory_kib = u32::try_from(app.resources.memory_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    let counter = |counter| wire::InstanceOpsCmd { counter, ..Default::default() };
    let mut out = wire::AppInstanceConfig {
        uuidandversion: Some(id(app.id, &app.version)),
        displayname: app.name.clone(),
        fixedresources: Some(wire::VmConfig {
            memory: memory_kib,
            maxmem: memory_kib,
            vcpus: app.resources.vcpus,
            virtualization_mode: match app.resources.mode {
                VirtualizationMode::Pv => wire::VmMode::Pv.into(),
                VirtualizationMode::Hvm => wire::VmMode::Hvm.into(),
                VirtualizationMode::Filler => wire::VmMode::Filler.into(),
                VirtualizationMode::Fml => wire::VmMode::Fml.into(),
                VirtualizationMode::NoHyper => wire::VmMode::Nohyper.into(),
                VirtualizationMode::Legacy => wire::VmMode::Legacy.into(),
                VirtualizationMode::Other(number) => number,
            },
            ..Default::default()
        }),
        activate: app.is_active,
        interfaces: app.interfaces.iter().map(interface).collect(),
        adapters: app
            .adapters
            .iter()
            .map(|group| wire::Adapter { name: group.clone(), ..Default::default() })
            .collect(),
        restart: Some(counter(app.restart_counter)),
        purge: Some(counter(app.purge_counter)),
        volume_ref_list: app
            .volumes
            .iter()
            .map(|VolumeRef { key, mount_dir }| wire::VolumeRef {
                uuid: key.id.to_string(),
                generation_count: i64::try_from(key.generation).unwrap_or(i64::MAX),
                mount_dir: mount_dir.clone(),
            })
            .collect(),
        profile_list: app.profiles.clone(),
        start_delay_in_seconds: app.start_delay_s,
        ..Default::default()
    };
    match &app.user_data {
        None => {}
        Some(UserData::Sealed(handle)) => out.cipher_data = block(handle),
        Some(UserData::Clear(text)) => out.user_data.clone_from(text),
    }
    out
}

fn interface(interface: &AppInterface) -> wire::NetworkAdapter {
    wire::NetworkAdapter {
        name: interface.name.clone(),
        network_id: interface.network.to_string(),
        addr: interface.address.map(|address| address.to_string()).unwrap_or_default(),
        mac_address: interface.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        acls: interface.acl.iter().map(ace).collect(),
        ..Default::default()
    }
}

fn ace(rule: &AclRule) -> wire::Ace {
    let mut matches = Vec::new();
    let mut add = |kind: &str, value: String| matches.push(wire::AceMatch { r#type: kind.to_owned(), value });
    match &rule.matches.remote {
        None => {}
        Some(AclRemote::Prefix(prefix)) => add("ip", prefix.to_string()),
        Some(AclRemote::Host(name)) => add("host", name.clone()),
    }
    match rule.matches.protocol {
        None => {}
        Some(AclProtocol::Tcp) => add("protocol", "tcp".into()),
        Some(AclProtocol::Udp) => add("protocol", "udp".into()),
        Some(AclProtocol::Icmp) => add("protocol", "icmp".into()),
        Some(AclProtocol::Number(number)) => add("protocol", number.to_string()),
    }
    if let Some(range) = rule.matches.local_port {
        add("lport", ports(range));
    }
    if let Some(range) = rule.matches.remote_port {
        add("fport", ports(range));
    }
    let action = match rule.action {
        AclAction::Allow => None,
        AclAction::Drop => Some(wire::AceAction { drop: true, ..Default::default() }),
        AclAction::PortMap { app_port } => {
            Some(wire::AceAction { portmap: true, app_port: app_port.into(), ..Default::default() })
        }
        AclAction::Limit { rate, per_s, burst } => {
            let (limitrate, unit) = rate_unit(rate, per_s);
            Some(wire::AceAction {
                limit: true,
                limitrate,
                limitunit: unit.into(),
                limitburst: burst,
                ..Default::default()
            })
        }
    };
    wire::Ace {
        matches,
        actions: action.into_iter().collect(),
        id: rule.id,
        dir: match rule.direction {
            AclDirection::Both => wire::AceDirection::Both,
            AclDirection::Ingress => wire::AceDirection::Ingress,
            AclDirection::Egress => wire::AceDirection::Egress,
        }
        .into(),
        ..Default::default()
    }
}

fn ports(range: PortRange) -> String {
    if range.first == range.last {
        range.first.to_string()
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

/// A span the wire has no word for becomes a rate per day, rounded down.
fn rate_unit(rate: u32, per_s: u32) -> (u32, &'static str) {
    match per_s {
        0 | 1 => (rate, "second"),
        60 => (rate, "minute"),
        3600 => (rate, "hour"),
        86_400 => (rate, "day"),
        other => {
            let per_day = u64::from(rate) * 86_400 / u64::from(other);
            (u32::try_from(per_day).unwrap_or(u32::MAX), "day")
        }
    }
}
