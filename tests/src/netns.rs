// SPDX-License-Identifier: Apache-2.0
//! A network namespace for a hosted node, joined to the host by one veth pair.

use std::os::fd::AsFd as _;

use anyhow::Context as _;

use crate::command::{output, root, run};
use crate::lab::lab_number;

/// The namespace. Taken away when dropped, and with it everything inside.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
    /// The host's end of the veth pair.
    host_link: String,
    /// Address of the host as the node sees it.
    pub host: String,
    /// Address of the node's uplink `eth0`.
    pub node: String,
}

impl Netns {
    /// `number` chooses the addresses: `10.231.number.1` for the host, `.2` for the node; `10.232` and so on for the other
    /// laboratories of [`lab_number`].
    pub fn create(name: &str, number: u8) -> anyhow::Result<Netns> {
        let lab = lab_number();
        let net = 231 + lab;
        let netns = Netns {
            name: name.to_owned(),
            host_link: format!("sv{lab}-{number}h"),
            host: format!("10.{net}.{number}.1"),
            node: format!("10.{net}.{number}.2"),
        };
        netns.remove();
        let host_link = netns.host_link.as_str();
        let inside = format!("sv{lab}-{number}n");
        ip(&["netns", "add", name])
            .context("network namespaces are needed: run on a host that allows them")?;
        ip(&["link", "add", host_link, "type", "veth", "peer", "name", &inside])?;
        ip(&["link", "set", &inside, "netns", name, "name", "eth0"])?;
        ip(&["addr", "add", &format!("{}/24", netns.host), "dev", host_link])?;
        ip(&["link", "set", host_link, "up"])?;
        for args in [
            &["link", "set", "lo", "up"][..],
            &["addr", "add", &format!("{}/24", netns.node), "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &netns.host],
        ] {
            ip(&[&["-n", name], args].concat())?;
        }
        Ok(netns)
    }

    /// A command inside the namespace, as root. Not by `ip netns exec`: that hides the host's control groups.
    pub fn command(&self, program: &std::path::Path) -> std::process::Command {
        let mut command = root("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Linux name of the host's end.
    pub fn host_link(&self) -> &str {
        &self.host_link
    }

    /// Runs something inside, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name))?;
        let joined = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
                Ok::<T, rustix::io::Errno>(work())
            });
            thread.join()
        });
        let done = joined.map_err(|_| anyhow::anyhow!("the work inside {} broke", self.name))?;
        done.with_context(|| format!("cannot enter {}", self.name))
    }

    fn remove(&self) {
        let _ = output(root("ip").args(["link", "del", &self.host_link]));
        let _ = output(root("ip").args(["netns", "del", &self.name]));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(args: &[&str]) -> anyhow::Result<String> {
    run(root("ip").args(args))
}
