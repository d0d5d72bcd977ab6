// SPDX-License-Identifier: Apache-2.0
//! Is the whole intent sound? Checked before anything is published: a missing reference or sub-message would crash
//! nodes in a loop.

mod storage;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::config::{AclProtocol, AclRemote};
use model::net::{Mac, Prefix4};

use crate::compute::{acl_rule, local_network, parse_remote};
use crate::image::{
    PortMap, parse_image, parse_memory, parse_port_map, parse_port_range, parse_protocol, parse_registry,
};
use crate::intent::{Intent, Object, is_chosen};
use crate::resource::{
    AclActionSpec, AclSpec, Addressing, AppSpec, BUILTIN_REGISTRY, DeviceSpec, Kind, NetworkKind,
    NetworkSpec, RegistrySpec, SecretRef, UserDataSpec,
};

/// Longest name of an object and value of a label.
pub const MAX_NAME_CHARS: usize = 63;
/// Largest user data of one app: what EVE takes.
pub const MAX_USER_DATA_BYTES: usize = 32 * 1024;
/// Most processors of one app: more than any machine has.
pub const MAX_CPUS: u32 = 1024;
/// Least memory of one app; less is a unit that was forgotten.
pub const MIN_MEMORY_BYTES: u64 = 1 << 20;
/// Most serials of one join token.
pub const MAX_SERIALS: usize = 100_000;

/// Something wrong in an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub kind: Kind,
    pub name: String,
    /// `spec.ports[0]`.
    pub path: String,
    /// Lower case, goes on after the path.
    pub message: String,
}

/// Everything wrong with an intent; empty when it may be published.
pub fn problems(intent: &Intent) -> Vec<Problem> {
    let mut out = Vec::new();
    names(intent, &mut out);
    intent.devices.values().for_each(|device| check_device(device, &mut out));
    check_serials(intent, &mut out);
    intent.join_tokens.values().for_each(|token| {
        let mut say = Say::new(Kind::JoinToken, &token.name, &mut out);
        if token.spec.serials.len() + token.spec.soft_serials.len() > MAX_SERIALS {
            say.it("spec.serials", format!("more than {MAX_SERIALS} serials; use several join tokens"));
        }
        if token.spec.serials.is_empty() && token.spec.soft_serials.is_empty() {
            say.it("spec.serials", "lists no serial and no soft serial; '*' allows any".into());
        }
        check_labels(&token.spec.device_labels, "spec.deviceLabels", &mut say);
    });
    intent.registries.values().for_each(|registry| {
        let mut say = Say::new(Kind::Registry, &registry.name, &mut out);
        if let Err(why) = parse_registry(&registry.spec.url, registry.spec.insecure) {
            say.it("spec.url", format!("'{}' {why}", registry.spec.url));
        }
        check_transport(&registry.spec, &mut say);
        if let Some(mirror) = &registry.spec.mirror
            && parse_memory(&mirror.quota).is_err()
        {
            say.it("spec.mirror.quota", format!("'{}' is no size like 20Gi", mirror.quota));
        }
        if registry.name == BUILTIN_REGISTRY {
            say.it("metadata.name", "is the name of the controller's own registry; choose another".into());
        }
        if let Some(secret) = &registry.spec.credentials {
            for key in ["username", "password"] {
                check_secret(
                    &SecretRef { name: secret.clone(), key: key.into() },
                    "spec.credentials",
                    intent,
                    &mut say,
                );
            }
        }
    });
    intent.datastores.values().for_each(|store| storage::check_datastore(store, intent, &mut out));
    intent.volumes.values().for_each(|volume| storage::check_volume(volume, intent, &mut out));
    intent.base_oses.values().for_each(|os| storage::check_base_os(os, intent, &mut out));
    intent.networks.values().for_each(|network| check_network(network, intent, &mut out));
    intent.apps.values().for_each(|app| check_app(app, intent, &mut out));
    conflicts(intent, &mut out);
    out
}

/// Nodes speak plain HTTP to a private address without a CA of its own, as others of their kind do; nobody shall send
/// a password that way without having said so.
fn check_transport(spec: &RegistrySpec, say: &mut Say<'_>) {
    if spec.ca.as_deref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
        say.it("spec.ca", "holds no certificate in PEM".into());
    }
    let Ok((address, _)) = parse_registry(&spec.url, spec.insecure) else { return };
    let Some(authority) = address.strip_prefix("docker://").filter(|_| spec.ca.is_none()) else { return };
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let is_near = host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback() || address.is_private());
    if is_near {
        say.it("spec.ca", format!("{host} is a private address: give its CA, or say insecure: true"));
    }
}

/// Collects problems of one object.
struct Say<'a> {
    kind: Kind,
    name: &'a str,
    out: &'a mut Vec<Problem>,
}

impl<'a> Say<'a> {
    fn new(kind: Kind, name: &'a str, out: &'a mut Vec<Problem>) -> Say<'a> {
        Say { kind, name, out }
    }
    fn it(&mut self, path: &str, message: String) {
        self.out.push(Problem { kind: self.kind, name: self.name.into(), path: path.into(), message });
    }
}

/// Whether a text may name an object.
pub fn is_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=MAX_NAME_CHARS).contains(&bytes.len())
        && ok(bytes[0])
        && ok(bytes[bytes.len() - 1])
        && bytes.iter().all(|b| ok(*b) || matches!(b, b'-' | b'.'))
}

fn names(intent: &Intent, out: &mut Vec<Problem>) {
    let mut check = |kind: Kind, name: &String, labels: &BTreeMap<String, String>| {
        let mut say = Say::new(kind, name, out);
        if !is_name(name) {
            say.it(
                "metadata.name",
                format!("must be 1 to {MAX_NAME_CHARS} lower-case letters, digits, '-' or '.'"),
            );
        }
        check_labels(labels, "metadata.labels", &mut say);
    };
    intent.devices.values().for_each(|o| check(Kind::Device, &o.name, &o.labels));
    intent.join_tokens.values().for_each(|o| check(Kind::JoinToken, &o.name, &o.labels));
    intent.apps.values().for_each(|o| check(Kind::App, &o.name, &o.labels));
    intent.networks.values().for_each(|o| check(Kind::Network, &o.name, &o.labels));
    intent.registries.values().for_each(|o| check(Kind::Registry, &o.name, &o.labels));
    intent.datastores.values().for_each(|o| check(Kind::Datastore, &o.name, &o.labels));
    intent.volumes.values().for_each(|o| check(Kind::Volume, &o.name, &o.labels));
    intent.base_oses.values().for_each(|o| check(Kind::BaseOs, &o.name, &o.labels));
    intent.secrets.values().for_each(|o| check(Kind::Secret, &o.name, &o.labels));
}

fn check_labels(labels: &BTreeMap<String, String>, path: &str, say: &mut Say<'_>) {
    let ok = |text: &str| {
        text.len() <= MAX_NAME_CHARS
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
    };
    for (key, value) in labels {
        if key.is_empty() || !ok(key) || !ok(value) {
            say.it(
                path,
                format!(
                    "'{key}: {value}': labels are up to {MAX_NAME_CHARS} letters, digits, '-', '_', '.', '/'"
                ),
            );
        }
    }
}

fn check_device(device: &Object<DeviceSpec>, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::Device, &device.name, out);
    let mut names = BTreeSet::new();
    let mut interfaces = BTreeSet::new();
    for (index, port) in device.spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        if port.name.is_empty() || ["all", "uplink", "freeuplink"].contains(&port.name.as_str()) {
            say.it(&path, format!("'{}' cannot name a port", port.name));
        }
        if !names.insert(&port.name) || !interfaces.insert(port.interface.as_ref().unwrap_or(&port.name)) {
            say.it(&path, format!("port '{}' or its interface stands twice", port.name));
        }
        if let Addressing::Static(fixed) = &port.addressing
            && fixed.address.parse::<Prefix4>().is_err()
        {
            say.it(
                &format!("{path}.addressing.static.address"),
                format!("'{}' is no address with prefix length like 192.0.2.10/24", fixed.address),
            );
        }
    }
    if !device.spec.ports.is_empty() && device.spec.ports.iter().all(|port| port.apps_only) {
        say.it("spec.ports", "every port is appsOnly; the device could not reach the controller".into());
    }
}

/// Two devices cannot wait for the same serial.
fn check_serials(intent: &Intent, out: &mut Vec<Problem>) {
    let mut bound: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for device in intent.devices.values() {
        let serials = [("serial", &device.spec.serial), ("softSerial", &device.spec.soft_serial)];
        for (what, serial) in
            serials.into_iter().filter_map(|(what, serial)| Some((what, serial.as_deref()?)))
        {
            if let Some(other) = bound.insert((what, serial), &device.name) {
                Say::new(Kind::Device, &device.name, out)
                    .it(&format!("spec.{what}"), format!("'{serial}' is bound by device/{other} too"));
            }
        }
    }
}

/// What every link must carry, RFC 8200 §5.
const SMALLEST_MTU: u16 = 1280;

fn check_network(network: &Object<NetworkSpec>, intent: &Intent, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::Network, &network.name, out);
    let spec = &network.spec;
    if spec.kind == NetworkKind::Switch {
        if spec.subnet.is_some() || spec.gateway.is_some() {
            say.it("spec.subnet", "a switch network has no subnet of its own".into());
        }
        let given = [
            ("spec.dns", !spec.dns.is_empty()),
            ("spec.hosts", !spec.hosts.is_empty()),
            ("spec.domain", spec.domain.is_some()),
            ("spec.ntp", !spec.ntp.is_empty()),
            ("spec.routes", !spec.routes.is_empty()),
        ];
        for (path, _) in given.iter().filter(|(_, is_given)| *is_given) {
            say.it(path, "apps on a switch network are told such things by the servers outside".into());
        }
    } else {
        match local_network(spec) {
            None => {
                say.it("spec.subnet", "a local network needs a subnet like 10.11.0.0/24, /8 to /29".into())
            }
            Some(local) => {
                let is_host =
                    |a: u32| a > local.subnet.network().to_bits() && a < local.subnet.broadcast().to_bits();
                if !is_host(local.gateway.to_bits()) {
                    say.it("spec.gateway", format!("{} is no host of {}", local.gateway, local.subnet));
                }
            }
        }
    }
    for (index, route) in spec.routes.iter().enumerate() {
        if route.parse::<Prefix4>().is_err() {
            say.it(&format!("spec.routes[{index}]"), format!("'{route}' is no prefix like 198.51.100.0/24"));
        }
    }
    if spec.mtu.is_some_and(|mtu| mtu < SMALLEST_MTU) {
        say.it("spec.mtu", format!("is below {SMALLEST_MTU}"));
    }
    // A port that is no shared label must be a port of every device the network comes to.
    let Some(port) = spec.port.as_deref().filter(|p| !["all", "uplink", "freeuplink", ""].contains(p)) else {
        return;
    };
    for device in intent.devices.values() {
        let comes =
            intent.apps_of(device).any(|app| app.spec.networks.iter().any(|n| n.network == network.name));
        if comes && !device.spec.ports.iter().any(|p| p.name == port) {
            say.it("spec.port", format!("device/{} has no port '{port}' in its spec", device.name));
        }
    }
}

fn check_secret(reference: &SecretRef, path: &str, intent: &Intent, say: &mut Say<'_>) {
    match intent.secrets.get(&reference.name) {
        None => say.it(path, format!("secret/{} does not exist", reference.name)),
        Some(secret) if !secret.spec.data.contains_key(&reference.key) => {
            say.it(path, format!("secret/{} has no key '{}'", reference.name, reference.key));
        }
        Some(_) => {}
    }
}

fn check_app(app: &Object<AppSpec>, intent: &Intent, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::App, &app.name, out);
    let spec = &app.spec;
    if let Err(why) = parse_image(&spec.image) {
        say.it("spec.image", format!("'{}' {why}", spec.image));
    }
    if spec.registry != BUILTIN_REGISTRY && !intent.registries.contains_key(&spec.registry) {
        say.it("spec.registry", format!("registry/{} does not exist", spec.registry));
    }
    if !(1..=MAX_CPUS).contains(&spec.resources.cpus) {
        say.it("spec.resources.cpus", format!("{} is outside of 1 to {MAX_CPUS}", spec.resources.cpus));
    }
    let memory = &spec.resources.memory;
    match parse_memory(memory) {
        Err(why) => say.it("spec.resources.memory", format!("'{memory}' {why}")),
        Ok(bytes) if bytes < MIN_MEMORY_BYTES => say.it(
            "spec.resources.memory",
            format!("'{memory}' is less than 1Mi; a number without Ki, Mi or Gi is bytes"),
        ),
        Ok(_) => {}
    }
    for (index, name) in spec.devices.iter().enumerate() {
        if !intent.devices.contains_key(name) {
            say.it(&format!("spec.devices[{index}]"), format!("device/{name} does not exist"));
        }
    }
    for (index, attachment) in spec.networks.iter().enumerate() {
        let path = format!("spec.networks[{index}]");
        match intent.networks.get(&attachment.network) {
            None => say.it(&path, format!("network/{} does not exist", attachment.network)),
            Some(network) => {
                if let (Some(address), Some(local)) = (attachment.address, local_network(&network.spec))
                    && (!local.subnet.contains(address) || address == local.gateway)
                {
                    say.it(
                        &format!("{path}.address"),
                        format!("{address} is no free address of {}", local.subnet),
                    );
                }
            }
        }
        if spec.networks[..index].iter().any(|other| other.network == attachment.network) {
            say.it(&path, format!("network/{} stands twice", attachment.network));
        }
        if attachment.mac.as_deref().is_some_and(|mac| mac.parse::<Mac>().is_err()) {
            say.it(&format!("{path}.mac"), "is no Ethernet address like 02:00:00:00:00:01".into());
        }
    }
    for (index, text) in spec.ports.iter().enumerate() {
        if let Err(why) = parse_port_map(text) {
            say.it(&format!("spec.ports[{index}]"), format!("'{text}' {why}"));
        }
    }
    let is_local = |name: &String| {
        intent.networks.get(name).is_none_or(|network| network.spec.kind == NetworkKind::Local)
    };
    if !spec.ports.is_empty() && !spec.networks.iter().any(|attachment| is_local(&attachment.network)) {
        let why = "ports need a local network; name one in spec.networks";
        say.it("spec.ports", why.into());
    }
    check_acl("spec.acl", spec.acl.as_deref().unwrap_or_default(), &mut say);
    for (index, attachment) in spec.networks.iter().enumerate() {
        let own = attachment.acl.as_deref();
        if let Some(rules) = own {
            check_acl(&format!("spec.networks[{index}].acl"), rules, &mut say);
        }
        let rules = own.or(spec.acl.as_deref()).unwrap_or_default();
        if !is_local(&attachment.network) && rules.iter().any(is_by_name) {
            let why = "a switch network does not see which names apps look up; give addresses in its acl";
            say.it(&format!("spec.networks[{index}]"), why.into());
        }
    }
    check_user_data(spec, intent, &mut say);
    storage::check_app(spec, intent, &mut say);
}

fn is_by_name(rule: &AclSpec) -> bool {
    matches!(rule.remote.as_deref().map(parse_remote), Some(Some(AclRemote::Host(_))))
}

fn check_acl(list: &str, rules: &[AclSpec], say: &mut Say<'_>) {
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{list}[{index}]");
        if (rule.action == AclActionSpec::Limit) != rule.limit.is_some() {
            let why = "stands with action 'limit', and only there: {packets: 10, per: second}";
            say.it(&format!("{path}.limit"), why.into());
        }
        if acl_rule(rule).is_some() {
            continue;
        }
        if let Some(remote) = rule.remote.as_deref().filter(|r| parse_remote(r).is_none()) {
            say.it(&format!("{path}.remote"), format!("'{remote}' is no address, prefix or DNS name"));
        }
        if let Some(Err(why)) = rule.protocol.as_deref().map(parse_protocol) {
            say.it(&format!("{path}.protocol"), why.to_string());
        }
        for (name, text) in [("remotePort", &rule.remote_port), ("localPort", &rule.local_port)] {
            if let Some(Err(why)) = text.as_deref().map(parse_port_range) {
                say.it(&format!("{path}.{name}"), why.to_string());
            }
        }
    }
}

fn check_user_data(spec: &AppSpec, intent: &Intent, say: &mut Say<'_>) {
    let is_key = |key: &str| {
        !key.is_empty()
            && !key.as_bytes()[0].is_ascii_digit()
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let mut size = 0;
    for (key, value) in &spec.env {
        size += key.len() + value.len() + 2;
        if !is_key(key) || value.contains(['\n', '\0']) {
            say.it(
                &format!("spec.env.{key}"),
                "keys are letters, digits and '_'; values have one line".into(),
            );
        }
    }
    for (key, reference) in &spec.secret_env {
        let path = format!("spec.secretEnv.{key}");
        check_secret(reference, &path, intent, say);
        let value = intent.secret(reference).unwrap_or_default();
        size += key.len() + value.len() + 2;
        if !is_key(key) || value.contains(['\n', '\0']) {
            say.it(&path, "keys are letters, digits and '_'; values have one line".into());
        }
        if spec.env.contains_key(key) {
            say.it(&path, "stands in spec.env too".into());
        }
    }
    let text = match &spec.user_data {
        Some(UserDataSpec::Text(text)) => text.as_str(),
        Some(UserDataSpec::SecretRef(reference)) => {
            check_secret(reference, "spec.userData.secretRef", intent, say);
            intent.secret(reference).unwrap_or_default()
        }
        None => "",
    };
    if text.starts_with("#cloud-config") && size > 0 {
        say.it(
            "spec.userData",
            "a #cloud-config cannot go together with env; write it into the cloud-config".into(),
        );
    }
    if size + text.len() > MAX_USER_DATA_BYTES {
        say.it("spec.userData", format!("env and user data are larger than {MAX_USER_DATA_BYTES} bytes"));
    }
}

/// What two objects cannot both have on one device.
fn conflicts(intent: &Intent, out: &mut Vec<Problem>) {
    for device in intent.devices.values() {
        let mut ports: BTreeMap<(u16, bool), &str> = BTreeMap::new();
        let mut addresses: BTreeMap<(&str, u32), &str> = BTreeMap::new();
        let mut networks: BTreeSet<&str> = BTreeSet::new();
        let mut volumes: BTreeMap<&str, &str> = BTreeMap::new();
        for app in intent.apps.values().filter(|app| is_chosen(&app.spec, device)) {
            let mut say = Say::new(Kind::App, &app.name, out);
            for (index, PortMap { host, protocol, .. }) in
                app.spec.ports.iter().filter_map(|text| parse_port_map(text).ok()).enumerate()
            {
                if let Some(other) = ports.insert((host, protocol == AclProtocol::Udp), &app.name) {
                    say.it(
                        &format!("spec.ports[{index}]"),
                        format!("port {host} of device/{} is used by app/{other} already", device.name),
                    );
                }
            }
            for (index, name) in storage::writable(&app.spec, intent) {
                if let Some(other) = volumes.insert(name, &app.name).filter(|other| *other != app.name) {
                    say.it(
                        &format!("spec.volumes[{index}].volume"),
                        format!(
                            "volume/{name} is writable and used by app/{other} on device/{} too; make it readOnly",
                            device.name
                        ),
                    );
                }
            }
            for (index, attachment) in app.spec.networks.iter().enumerate() {
                networks.insert(&attachment.network);
                let Some(address) = attachment.address else { continue };
                if let Some(other) = addresses.insert((&attachment.network, address.to_bits()), &app.name) {
                    say.it(
                        &format!("spec.networks[{index}].address"),
                        format!("{address} on device/{} is app/{other}'s already", device.name),
                    );
                }
            }
        }
        let mut subnets: Vec<(Prefix4, &str)> = Vec::new();
        for network in networks.into_iter().filter_map(|name| intent.networks.get(name)) {
            let Some(local) = local_network(&network.spec) else { continue };
            let clash = subnets.iter().find(|(other, _)| {
                other.contains(local.subnet.address) || local.subnet.contains(other.address)
            });
            if let Some((_, other)) = clash {
                Say::new(Kind::Network, &network.name, out).it(
                    "spec.subnet",
                    format!("{} overlaps with network/{other} on device/{}", local.subnet, device.name),
                );
            }
            subnets.push((local.subnet, &network.name));
        }
    }
    out.sort();
    out.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PortSpec, ResourcesSpec, Spec};
    use uuid::Uuid;

    fn add(intent: &mut Intent, name: &str, spec: Spec) {
        let (name, uid, labels, generation) = (name.into(), Uuid::nil(), BTreeMap::new(), 1);
        intent.put(Object { name, uid, labels, generation, spec });
    }

    fn app(networks: &[&str], ports: &[&str]) -> AppSpec {
        let attachment = |name: &&str| crate::resource::AttachmentSpec {
            network: (*name).into(),
            address: None,
            mac: None,
            acl: None,
        };
        AppSpec {
            image: "web:1".into(),
            registry: BUILTIN_REGISTRY.into(),
            devices: Vec::new(),
            selector: Some(BTreeMap::new()),
            networks: networks.iter().map(attachment).collect(),
            ports: ports.iter().map(|port| (*port).into()).collect(),
            acl: None,
            env: BTreeMap::new(),
            secret_env: BTreeMap::new(),
            user_data: None,
            resources: ResourcesSpec::default(),
            isolation: crate::resource::Isolation::Container,
            activate: true,
            restart_counter: 0,
            purge_counter: 0,
            volumes: Vec::new(),
            probe: None,
            start_delay_seconds: 0,
        }
    }

    fn local(subnet: &str) -> Spec {
        Spec::Network(NetworkSpec { subnet: Some(subnet.into()), ..NetworkSpec::default() })
    }

    fn lines(intent: &Intent) -> Vec<String> {
        problems(intent)
            .iter()
            .map(|p| format!("{}/{} {}: {}", p.kind.singular(), p.name, p.path, p.message))
            .collect()
    }

    #[test]
    fn what_two_objects_cannot_share_on_a_device_is_named() {
        let mut intent = Intent::default();
        add(&mut intent, "d", Spec::Device(DeviceSpec::default()));
        add(&mut intent, "n1", local("10.0.0.0/16"));
        add(&mut intent, "n2", local("10.0.5.0/24"));
        add(&mut intent, "a", Spec::App(app(&["n1"], &["80:80", "53:53/udp"])));
        assert_eq!(lines(&intent), [""; 0]);
        add(&mut intent, "b", Spec::App(app(&["n2"], &["80:8080", "53:53"])));
        expect_test::expect![[r#"
            [
                "app/b spec.ports[0]: port 80 of device/d is used by app/a already",
                "network/n2 spec.subnet: 10.0.5.0/24 overlaps with network/n1 on device/d",
            ]
        "#]]
        .assert_debug_eq(&lines(&intent));
    }

    #[test]
    fn what_is_wrong_with_volumes_and_probes_is_named() {
        use crate::resource::{
            AppVolumeSpec, DatastoreSpec, FileSpec, ImageSpec, ProbeSpec, TcpProbe, VolumeSpec,
        };
        let mut intent = Intent::default();
        add(&mut intent, "d", Spec::Device(DeviceSpec::default()));
        add(
            &mut intent,
            "s",
            Spec::Datastore(DatastoreSpec { url: "ftp://a".into(), ..DatastoreSpec::default() }),
        );
        let file = |sha256: &str| FileSpec {
            datastore: "gone".into(),
            path: "/".into(),
            sha256: sha256.into(),
            name: Some("a/b".into()),
        };
        let image = ImageSpec { reference: "A".into(), registry: "gone".into() };
        let size = Some("much".into());
        let bad = VolumeSpec { file: Some(file("12")), image: Some(image), size, ..VolumeSpec::default() };
        add(&mut intent, "bad", Spec::Volume(bad));
        add(&mut intent, "empty", Spec::Volume(VolumeSpec { read_only: true, ..VolumeSpec::default() }));
        add(&mut intent, "mine", Spec::Volume(VolumeSpec::default()));
        let named = |name: &str, path: &str| AppVolumeSpec {
            volume: Some(name.into()),
            mount_path: path.into(),
            ..AppVolumeSpec::default()
        };
        let mut one = app(&[], &[]);
        one.volumes = alloc::vec![
            named("mine", "/data"),
            named("mine", "/data"),
            named("gone", "data/.."),
            AppVolumeSpec { blank: Some("x".into()), image: Some("i".into()), ..named("mine", "/") },
        ];
        one.probe =
            Some(ProbeSpec { tcp: Some(TcpProbe { port: 0 }), failures: Some(0), ..ProbeSpec::default() });
        one.start_delay_seconds = 100_000;
        add(&mut intent, "one", Spec::App(one));
        let mut two = app(&[], &[]);
        two.volumes = alloc::vec![named("mine", "/data")];
        two.probe = Some(ProbeSpec::default());
        add(&mut intent, "two", Spec::App(two));
        expect_test::expect![[r#"
            [
                "app/one spec.probe: port 0 is none",
                "app/one spec.probe.failures: is not within 1 to 1000",
                "app/one spec.startDelaySeconds: is more than 86400",
                "app/one spec.volumes[1].mountPath: '/data' is taken already",
                "app/one spec.volumes[1].volume: volume/mine stands twice",
                "app/one spec.volumes[2].mountPath: 'data/..' is no absolute path inside an app like /data",
                "app/one spec.volumes[2].volume: volume/gone does not exist",
                "app/one spec.volumes[3]: needs one of volume, blank and image",
                "app/one spec.volumes[3].blank: 'x' is no size like 512Mi",
                "app/one spec.volumes[3].mountPath: '/' is no absolute path inside an app like /data",
                "app/one spec.volumes[3].volume: volume/mine stands twice",
                "app/two spec.probe: needs one of http and tcp",
                "app/two spec.volumes[0].volume: volume/mine is writable and used by app/one on device/d too; make it readOnly",
                "datastore/s spec.url: 'ftp://a' is no URL like https://files.example/path",
                "volume/bad spec.file.datastore: datastore/gone does not exist",
                "volume/bad spec.file.name: is no name of a file",
                "volume/bad spec.file.path: '/' is no path below the datastore's URL",
                "volume/bad spec.file.sha256: is no sha256 of 64 hex digits; 'sha256sum FILE' prints it",
                "volume/bad spec.image: stands beside spec.file; a volume is made of one of them",
                "volume/bad spec.image.reference: 'A' is no image reference like hello:1 or hello@sha256:<64 hex digits>",
                "volume/bad spec.image.registry: registry/gone does not exist",
                "volume/bad spec.size: 'much' is no size like 512Mi",
                "volume/empty spec.readOnly: the volume begins empty and would stay so; give it a file or an image",
            ]
        "#]].assert_debug_eq(&lines(&intent));
    }

    #[test]
    fn dangling_and_unreadable_things_are_named() {
        let mut intent = Intent::default();
        let port = |name: &str, apps_only| PortSpec {
            name: name.into(),
            interface: None,
            addressing: Addressing::Dhcp,
            apps_only,
        };
        let ports = alloc::vec![port("eth0", true), port("eth0", true)];
        let serial = Some("S".into());
        add(
            &mut intent,
            "d",
            Spec::Device(DeviceSpec { ports, serial: serial.clone(), ..DeviceSpec::default() }),
        );
        add(&mut intent, "e", Spec::Device(DeviceSpec { serial, ..DeviceSpec::default() }));
        let network = NetworkSpec {
            port: Some("eth7".into()),
            gateway: Some([10, 9, 9, 9].into()),
            ..NetworkSpec::default()
        };
        add(&mut intent, "n", Spec::Network(NetworkSpec { subnet: Some("10.0.0.0/24".into()), ..network }));
        let credentials = Some("nobody".into());
        add(
            &mut intent,
            "r",
            Spec::Registry(RegistrySpec { url: "a b".into(), credentials, ..RegistrySpec::default() }),
        );
        for (name, url, ca) in [
            ("near", "10.0.0.1:5000", None),
            ("no-pem", "r.example", Some("a".into())),
            ("public", "192.0.2.1", None),
            ("plain", "http://10.0.0.1:5000", None),
        ] {
            let spec = RegistrySpec { url: url.into(), ca, ..RegistrySpec::default() };
            add(&mut intent, name, Spec::Registry(spec));
        }
        let mut bad = app(&["n", "n", "gone"], &["80"]);
        bad.secret_env.insert("1KEY".into(), SecretRef { name: "gone".into(), key: "k".into() });
        bad.env.insert("A".into(), "two\nlines".into());
        add(&mut intent, "UPPER", Spec::App(bad));
        expect_test::expect![[r#"
            [
                "device/d spec.ports: every port is appsOnly; the device could not reach the controller",
                "device/d spec.ports[1]: port 'eth0' or its interface stands twice",
                "device/e spec.serial: 'S' is bound by device/d too",
                "app/UPPER metadata.name: must be 1 to 63 lower-case letters, digits, '-' or '.'",
                "app/UPPER spec.env.A: keys are letters, digits and '_'; values have one line",
                "app/UPPER spec.networks[1]: network/n stands twice",
                "app/UPPER spec.networks[2]: network/gone does not exist",
                "app/UPPER spec.ports[0]: '80' is no port map like 8080:80 or 5353:53/udp",
                "app/UPPER spec.secretEnv.1KEY: keys are letters, digits and '_'; values have one line",
                "app/UPPER spec.secretEnv.1KEY: secret/gone does not exist",
                "network/n spec.gateway: 10.9.9.9 is no host of 10.0.0.0/24",
                "network/n spec.port: device/d has no port 'eth7' in its spec",
                "network/n spec.port: device/e has no port 'eth7' in its spec",
                "registry/near spec.ca: 10.0.0.1 is a private address: give its CA, or say insecure: true",
                "registry/no-pem spec.ca: holds no certificate in PEM",
                "registry/r spec.credentials: secret/nobody does not exist",
                "registry/r spec.url: 'a b' is no registry address like registry.example:5000",
            ]
        "#]]
        .assert_debug_eq(&lines(&intent));
    }
}
