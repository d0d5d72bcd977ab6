// SPDX-License-Identifier: Apache-2.0
//! Tells systemd how the controller is (sd_notify(3)): ready, alive, stopping. Without systemd nothing happens.
//!
//! Alive means more than that the process is there: each beat asks the store and takes the project's lock first.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crate::state::{Controller, EPOCH_KEY};

/// Whoever started us and wants to know.
#[derive(Debug)]
pub(crate) struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// From the variables that systemd sets.
    pub(crate) fn from_environment() -> Systemd {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| connect(&name).ok());
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0);
        Systemd { socket, watchdog: period.map(Duration::from_micros) }
    }

    fn say(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, state, "cannot tell systemd");
        }
    }

    /// Requests are answered from now on.
    pub(crate) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Says that the controller is alive, as long as it is; returns at once when nobody asked for it.
    pub(crate) async fn beat(self: Arc<Systemd>, controller: Arc<Controller>) {
        // Twice per period, as systemd advises.
        let Some(pause) = self.watchdog.map(|period| period / 2) else { return };
        loop {
            let asked = controller.clone();
            let answer = tokio::task::spawn_blocking(move || {
                asked.with_project(|_| {});
                asked.store().get(EPOCH_KEY).map(drop)
            });
            match answer.await {
                Ok(Ok(())) => self.say("WATCHDOG=1"),
                other => tracing::error!(?other, "the store does not answer"),
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    Ok((UnixDatagram::unbound()?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_over_paths_and_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("selvedge-notify-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, text) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}").into()),
        ] {
            let systemd = Systemd { socket: Some(connect(&text).unwrap()), watchdog: None };
            systemd.ready("listens");
            let mut buffer = [0; 64];
            let count = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"READY=1\nSTATUS=listens");
        }
    }
}
