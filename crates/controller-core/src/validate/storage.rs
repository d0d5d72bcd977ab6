// SPDX-License-Identifier: Apache-2.0
//! Datastores, volumes, and what apps say of their volumes and probes.

use alloc::format;
use alloc::vec::Vec;

use model::id::Digest;

use super::{Problem, Say, check_secret};
use crate::image::{check_mount_path, is_url_path, parse_image, parse_memory, parse_server};
use crate::intent::{Intent, Object, is_base_os_of};
use crate::resource::{
    AppSpec, BUILTIN_REGISTRY, BaseOsSpec, DatastoreSpec, DeviceSpec, FileSpec, ImageSpec, Kind, ProbeSpec,
    SecretRef, VolumeSpec,
};

/// Longest version: it is part of the name of a boot entry.
const MAX_VERSION_CHARS: usize = 64;
/// Most volumes of one app besides its own disk: what nodes take.
const MAX_VOLUMES: usize = 63;
/// Longest start delay: a day.
const MAX_START_DELAY_S: u32 = 86_400;
/// Limits of a probe's numbers, as nodes read them.
const MAX_PROBE_S: u32 = 3600;
const MAX_PROBE_FAILURES: u32 = 1000;
const MAX_PROBE_PATH_BYTES: usize = 512;

pub(super) fn check_datastore(store: &Object<DatastoreSpec>, intent: &Intent, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::Datastore, &store.name, out);
    let spec = &store.spec;
    if let Err(why) = parse_server(&spec.url) {
        say.it("spec.url", format!("'{}' {why}", spec.url));
    }
    if spec.ca.as_deref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
        say.it("spec.ca", "holds no certificate in PEM".into());
    }
    if let Some(secret) = &spec.credentials {
        for key in ["username", "password"] {
            let reference = SecretRef { name: secret.clone(), key: key.into() };
            check_secret(&reference, "spec.credentials", intent, &mut say);
        }
    }
}

pub(super) fn check_volume(volume: &Object<VolumeSpec>, intent: &Intent, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::Volume, &volume.name, out);
    let spec = &volume.spec;
    if spec.file.is_some() && spec.image.is_some() {
        say.it("spec.image", "stands beside spec.file; a volume is made of one of them".into());
    }
    if spec.file.is_none() && spec.image.is_none() && spec.read_only {
        say.it(
            "spec.readOnly",
            "the volume begins empty and would stay so; give it a file or an image".into(),
        );
    }
    if let Some(file) = &spec.file {
        check_file(file, intent, &mut say);
    }
    if let Some(image) = &spec.image {
        check_image(image, intent, &mut say);
    }
    check_size("spec.size", spec.size.as_deref(), &mut say);
}

fn check_file(file: &FileSpec, intent: &Intent, say: &mut Say<'_>) {
    if !intent.datastores.contains_key(&file.datastore) {
        say.it("spec.file.datastore", format!("datastore/{} does not exist", file.datastore));
    }
    if file.path.trim_matches('/').is_empty() || !is_url_path(&file.path) {
        say.it("spec.file.path", format!("'{}' is no path below the datastore's URL", file.path));
    }
    if file.sha256.parse::<Digest>().is_err() {
        say.it("spec.file.sha256", "is no sha256 of 64 hex digits; 'sha256sum FILE' prints it".into());
    }
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.len() <= 255
            && !name.contains('/')
            && !name.contains(char::is_control)
    };
    if file.name.as_deref().is_some_and(|name| !is_name(name)) {
        say.it("spec.file.name", "is no name of a file".into());
    }
}

fn check_image(image: &ImageSpec, intent: &Intent, say: &mut Say<'_>) {
    if let Err(why) = parse_image(&image.reference) {
        say.it("spec.image.reference", format!("'{}' {why}", image.reference));
    }
    if image.registry != BUILTIN_REGISTRY && !intent.registries.contains_key(&image.registry) {
        say.it("spec.image.registry", format!("registry/{} does not exist", image.registry));
    }
}

pub(super) fn check_base_os(os: &Object<BaseOsSpec>, intent: &Intent, out: &mut Vec<Problem>) {
    let mut say = Say::new(Kind::BaseOs, &os.name, out);
    let spec = &os.spec;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-~".contains(c);
    if !(1..=MAX_VERSION_CHARS).contains(&spec.version.len()) || !spec.version.chars().all(is_plain) {
        say.it("spec.version", format!("'{}' is not made of a-z, A-Z, 0-9, '.', '-' and '~'", spec.version));
    }
    match (&spec.file, &spec.image) {
        (Some(file), None) => {
            check_file(file, intent, &mut say);
            if file.name.is_some() {
                say.it("spec.file.name", "a version is no file of an app and has no name there".into());
            }
        }
        (None, Some(image)) => check_image(image, intent, &mut say),
        _ => say.it("spec", "needs one of file and image".into()),
    }
    if spec.devices.is_empty() && spec.selector.is_none() {
        say.it("spec.devices", "chooses no device; 'selector: {}' chooses every one".into());
    }
    for (index, name) in spec.devices.iter().enumerate() {
        if !intent.devices.contains_key(name) {
            say.it(&format!("spec.devices[{index}]"), format!("device/{name} does not exist"));
        }
    }
    let is_own = |device: &&Object<DeviceSpec>| is_base_os_of(spec, device);
    for device in intent.devices.values().filter(is_own) {
        let other = intent
            .base_oses
            .values()
            .find(|other| other.name < os.name && is_base_os_of(&other.spec, device));
        if let Some(other) = other {
            say.it("spec", format!("baseos/{} is chosen for device/{} as well", other.name, device.name));
            break;
        }
    }
}

fn check_size(path: &str, text: Option<&str>, say: &mut Say<'_>) {
    if let Some(text) = text.filter(|text| parse_memory(text).is_err()) {
        say.it(path, format!("'{text}' is no size like 512Mi"));
    }
}

pub(super) fn check_app(spec: &AppSpec, intent: &Intent, say: &mut Say<'_>) {
    check_size("spec.resources.disk", spec.resources.disk.as_deref(), say);
    if spec.start_delay_seconds > MAX_START_DELAY_S {
        say.it("spec.startDelaySeconds", format!("is more than {MAX_START_DELAY_S}"));
    }
    if spec.volumes.len() > MAX_VOLUMES {
        say.it("spec.volumes", format!("more than {MAX_VOLUMES} volumes"));
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        let before = &spec.volumes[..index];
        let given = [&volume.volume, &volume.blank, &volume.image];
        if given.iter().filter(|field| field.is_some()).count() != 1 {
            say.it(&path, "needs one of volume, blank and image".into());
        }
        if let Err(why) = check_mount_path(&volume.mount_path) {
            say.it(&format!("{path}.mountPath"), format!("'{}' {why}", volume.mount_path));
        }
        let named = volume.volume.as_ref().map(|name| (name, intent.volumes.get(name)));
        match named {
            Some((name, None)) => say.it(&format!("{path}.volume"), format!("volume/{name} does not exist")),
            Some((name, Some(_))) if before.iter().any(|other| other.volume.as_ref() == Some(name)) => {
                say.it(&format!("{path}.volume"), format!("volume/{name} stands twice"));
            }
            Some(_) | None => {}
        }
        // Files share a directory.
        let is_file = named.is_some_and(|(_, volume)| volume.is_some_and(|v| v.spec.file.is_some()));
        if !is_file && before.iter().any(|other| other.mount_path == volume.mount_path) {
            say.it(&format!("{path}.mountPath"), format!("'{}' is taken already", volume.mount_path));
        }
        check_size(&format!("{path}.blank"), volume.blank.as_deref(), say);
        if let Some(Err(why)) = volume.image.as_deref().map(parse_image) {
            say.it(
                &format!("{path}.image"),
                format!("'{}' {why}", volume.image.as_deref().unwrap_or_default()),
            );
        }
    }
    if let Some(probe) = &spec.probe {
        check_probe(probe, say);
    }
}

fn check_probe(probe: &ProbeSpec, say: &mut Say<'_>) {
    let port = match (&probe.http, &probe.tcp) {
        (Some(http), None) => {
            let path = http.path.as_deref().unwrap_or("/");
            let is_path = path.starts_with('/')
                && path.len() <= MAX_PROBE_PATH_BYTES
                && path.bytes().all(|b| b.is_ascii_graphic());
            if !is_path {
                say.it("spec.probe.http.path", format!("'{path}' is no path like /healthz"));
            }
            http.port
        }
        (None, Some(tcp)) => tcp.port,
        _ => return say.it("spec.probe", "needs one of http and tcp".into()),
    };
    if port == 0 {
        say.it("spec.probe", "port 0 is none".into());
    }
    for (name, value, most) in [
        ("everySeconds", probe.every_seconds, MAX_PROBE_S),
        ("timeoutSeconds", probe.timeout_seconds, MAX_PROBE_S),
        ("graceSeconds", probe.grace_seconds, MAX_PROBE_S),
        ("failures", probe.failures, MAX_PROBE_FAILURES),
    ] {
        if value.is_some_and(|value| !(1..=most).contains(&value)) {
            say.it(&format!("spec.probe.{name}"), format!("is not within 1 to {most}"));
        }
    }
}

/// Volumes by name that an app may write, and their place in its list.
pub(super) fn writable<'a>(spec: &'a AppSpec, intent: &Intent) -> Vec<(usize, &'a str)> {
    let named =
        spec.volumes.iter().enumerate().filter_map(|(index, used)| Some((index, used.volume.as_deref()?)));
    named.filter(|(_, name)| intent.volumes.get(*name).is_some_and(|volume| !volume.spec.read_only)).collect()
}
