// SPDX-License-Identifier: Apache-2.0
//! One start: what run said, furnished by net and vault, given to the executor. Everything that can be done at the same
//! time is: the child mounts while net makes the interfaces.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use ipc::calls::{Net, NetReply, NetRequest, Vault, VaultReply, VaultRequest};
use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use model::config::UserData;
use model::desired::{AppDesired, MountContent, MountDesired};
use model::id::{Digest, VolumeKey};
use model::reason::{Fault, Reason};
use service::Service;

use super::Prepared;
use crate::container::cgroup::Gauges;
use crate::container::{
    Cgroup, Container, IdRange, Late, RootFs, Running, Starting, Step, StepError, VolumeMount, VolumeSource,
};
use crate::quota;

/// net makes interfaces in milliseconds; beyond this it is not there, and run tries again.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Controllers of cgroup v1 whose directories init hands over, where they are.
const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "devices"];
/// Where EVE shows an app its volumes, beside the place that was ordered.
const EVE_VOLUMES: &str = "/dev/eve/volumes";
/// `HOST_NAME_MAX` of Linux.
const MAX_HOSTNAME_BYTES: usize = 64;

pub(super) fn start(
    service: &Service,
    prepared: &Prepared,
    spec: &AppDesired,
) -> Result<(Running, Gauges), Fault> {
    let store = service
        .dirs()
        .path("store")
        .ok_or_else(|| Fault::new(Reason::Internal, "the shim's manifest names no store"))?;
    let container = container_of(spec, store)?;
    limit_volumes(spec, store)?;
    let cgroup = cgroup_of(service)?;
    let gauges = Gauges::open(&cgroup);
    let starting = Starting::begin(&container, &cgroup, &prepared.filter).map_err(fault_of)?;
    let untrusted_user_data = open_user_data(service, spec.user_data.as_ref())?;
    let (dns, hosts) = attach(service, prepared, spec)?;
    let late = Late {
        resolv_conf: resolv_conf(&dns),
        hosts: hosts_file(&container.hostname, &hosts),
        untrusted_user_data,
    };
    let running = starting.complete(&late).map_err(fault_of)?;
    Ok((running, gauges))
}

fn container_of(spec: &AppDesired, store: &Path) -> Result<Container, Fault> {
    let args: Vec<String> = spec.image.entrypoint.iter().chain(&spec.image.cmd).cloned().collect();
    if args.is_empty() {
        return Err(Fault::new(Reason::ImageInvalid, "the image names neither entrypoint nor command"));
    }
    if spec.layers.is_empty() {
        return Err(Fault::new(Reason::ImageInvalid, "the image has no layers"));
    }
    let volume = volume_dir(store, spec.root);
    let root = RootFs::Overlay {
        layers: spec.layers.iter().map(|digest| stored(store, "layers", digest)).collect(),
        upper: volume.join("upper"),
        work: volume.join("work"),
        at: volume,
    };
    Ok(Container {
        hostname: hostname_of(&spec.name),
        root,
        volumes: spec.mounts.iter().map(|mount| volume_mount(store, mount)).collect(),
        args,
        env: spec.image.env.clone(),
        working_dir: spec.image.working_dir.clone(),
        user: spec.image.user.clone(),
        ids: IdRange { base: APP_UID_BASE, count: APP_UID_COUNT },
    })
}

fn volume_dir(store: &Path, key: VolumeKey) -> PathBuf {
    store.join("volumes").join(key.to_string())
}

fn stored(store: &Path, kind: &str, digest: &Digest) -> PathBuf {
    let name = digest.to_string();
    store.join(kind).join(name.strip_prefix("sha256:").unwrap_or(&name))
}

fn volume_mount(store: &Path, mount: &MountDesired) -> VolumeMount {
    let dir = volume_dir(store, mount.volume);
    let source = match &mount.content {
        MountContent::Directory => VolumeSource::Directory(dir.join("data")),
        MountContent::File => VolumeSource::File(dir.join("data")),
        MountContent::StoredFile(digest) => VolumeSource::File(stored(store, "files", digest)),
        MountContent::Tree(layers) => {
            let layers = layers.iter().map(|digest| stored(store, "layers", digest)).collect();
            if mount.is_read_only {
                VolumeSource::Layers { layers, at: dir }
            } else {
                VolumeSource::Overlay { layers, upper: dir.join("upper"), work: dir.join("work"), at: dir }
            }
        }
    };
    let mut targets = vec![format!("{EVE_VOLUMES}/by-id/{}", mount.index)];
    if !mount.name.is_empty() {
        targets.push(format!("{EVE_VOLUMES}/by-name/{}", mount.name));
    }
    let place = mount.dir.trim_end_matches('/');
    match (&source, place.is_empty()) {
        (_, true) => {}
        (VolumeSource::File(_), false) => {
            targets.push(format!("{place}/{}", mount.index));
            if !mount.name.is_empty() && mount.name != mount.index.to_string() {
                targets.push(format!("{place}/{}", mount.name));
            }
        }
        (_, false) => targets.push(place.to_owned()),
    }
    VolumeMount { source, targets, is_read_only: mount.is_read_only }
}

/// Has the kernel hold volumes to their sizes, where the file system can.
fn limit_volumes(spec: &AppDesired, store: &Path) -> Result<(), Fault> {
    let root = (spec.root, spec.root_size_bytes, &["upper", "work"][..]);
    let others = spec.mounts.iter().filter(|mount| !mount.is_read_only).map(|mount| {
        let written: &[&str] = match mount.content {
            MountContent::Directory | MountContent::File => &["data"],
            MountContent::Tree(_) => &["upper", "work"],
            MountContent::StoredFile(_) => &[],
        };
        (mount.volume, mount.max_size_bytes, written)
    });
    for (key, max_bytes, written) in std::iter::once(root).chain(others) {
        match quota::limit(&volume_dir(store, key), written, max_bytes) {
            _ if max_bytes == 0 => {}
            Ok(true) => {
                service::log::info(format_args!("volume {key} is held to {max_bytes} bytes by its quota"))
            }
            Ok(false) => service::log::info(format_args!(
                "volume {key} of {max_bytes} bytes is measured: the file system has no project quotas"
            )),
            Err(errno) => {
                let message = format!("volume {key} cannot be held to {max_bytes} bytes: {errno}");
                return Err(Fault::new(Reason::StorageFailed, message));
            }
        }
    }
    Ok(())
}

fn cgroup_of(service: &Service) -> Result<Cgroup, Fault> {
    let failed = |error: std::io::Error| Fault::new(Reason::Internal, format!("control group: {error}"));
    if let Some(dir) = service.fd("cgroup") {
        return Ok(Cgroup::V2(dir.try_clone_to_owned().map_err(failed)?));
    }
    let dirs = V1_CONTROLLERS
        .iter()
        .filter_map(|controller| service.fd(&format!("cgroup.{controller}")))
        .map(|dir| dir.try_clone_to_owned())
        .collect::<Result<Vec<OwnedFd>, _>>()
        .map_err(failed)?;
    if dirs.is_empty() {
        // Limits were asked for; without a group there are none.
        return Err(Fault::new(Reason::IsolationUnavailable, "no control group for the app"));
    }
    Ok(Cgroup::V1(dirs))
}

fn open_user_data(service: &Service, data: Option<&UserData>) -> Result<Option<String>, Fault> {
    let handle = match data {
        None => return Ok(None),
        Some(UserData::Sealed(handle)) => handle.clone(),
        // The agent seals it before it is published; from anyone else it is taken as the wire has it.
        Some(UserData::Clear(text)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
            return match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
                Some(text) => Ok(Some(text)),
                None => Err(Fault::new(Reason::UserDataInvalid, "user data is not base64 of text")),
            };
        }
    };
    let request = VaultRequest::OpenUserData { handle };
    match service.caller::<Vault>().call(&request, &[], CALL_TIMEOUT) {
        Ok((Ok(VaultReply::UserData(text)), _)) => Ok(Some(text)),
        Ok((Ok(_), _)) => Err(Fault::new(Reason::Internal, "vault gave another answer")),
        Ok((Err(fault), _)) => Err(fault),
        Err(error) => Err(Fault::new(Reason::ServiceUnavailable, error.to_string())),
    }
}

type Addresses = (Vec<Ipv4Addr>, Vec<(Ipv4Addr, String)>);

fn attach(service: &Service, prepared: &Prepared, spec: &AppDesired) -> Result<Addresses, Fault> {
    if spec.vif_count == 0 {
        return Ok((spec.dns.clone(), Vec::new()));
    }
    let netns = &prepared.netns;
    let fds = [netns.namespace.as_fd(), netns.route.as_fd(), netns.datagrams.as_fd()];
    let request = NetRequest::Attach { app: spec.app };
    match service.caller::<Net>().call(&request, &fds, CALL_TIMEOUT) {
        Ok((Ok(NetReply::Attached { dns, hosts }), _)) => Ok((dns, hosts)),
        Ok((Ok(_), _)) => Err(Fault::new(Reason::Internal, "net gave another answer")),
        Ok((Err(fault), _)) => Err(fault),
        Err(error) => Err(Fault::new(Reason::ServiceUnavailable, error.to_string())),
    }
}

fn fault_of(error: StepError) -> Fault {
    let reason = match error.step {
        Step::UserData => Reason::UserDataInvalid,
        Step::User => Reason::ImageInvalid,
        Step::RootFs | Step::Volume => Reason::StorageFailed,
        Step::MountPoint => Reason::InvalidConfig,
        Step::Seccomp | Step::UserNamespace | Step::Cgroup => Reason::IsolationUnavailable,
        _ => Reason::StartFailed,
    };
    Fault::new(reason, error.to_string())
}

fn resolv_conf(dns: &[Ipv4Addr]) -> String {
    dns.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

fn hosts_file(hostname: &str, hosts: &[(Ipv4Addr, String)]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (address, name) in hosts {
        let _ = writeln!(text, "{address}\t{name}");
    }
    if !hosts.iter().any(|(_, name)| name == hostname) {
        let _ = writeln!(text, "127.0.1.1\t{hostname}");
    }
    text
}

/// The app's name as a host name: letters, digits and dashes.
fn hostname_of(name: &str) -> String {
    let mut out: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(MAX_HOSTNAME_BYTES)
        .collect();
    out = out.trim_matches('-').to_owned();
    if out.is_empty() { "app".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_host_names() {
        for (name, want) in
            [("web", "web"), ("My App_1", "my-app-1"), ("--", "app"), ("", "app"), ("ü", "app")]
        {
            assert_eq!(hostname_of(name), want);
        }
        assert_eq!(hostname_of(&"x".repeat(100)).len(), MAX_HOSTNAME_BYTES);
    }

    #[test]
    fn resolver_files_name_servers_and_hosts() {
        let server = Ipv4Addr::new(10, 1, 0, 1);
        assert_eq!(resolv_conf(&[server]), "nameserver 10.1.0.1\n");
        let hosts = hosts_file("web", &[(Ipv4Addr::new(10, 1, 0, 2), "web".into())]);
        assert!(hosts.ends_with("10.1.0.2\tweb\n") && !hosts.contains("127.0.1.1"));
        assert!(hosts_file("web", &[]).ends_with("127.0.1.1\tweb\n"));
    }
}
