// SPDX-License-Identifier: Apache-2.0
//! The process around the vault: opens it at start, then answers calls until init asks to end.
//!
//! A vault that cannot open stays up and answers with its fault, so that the reason reaches the controller's operator
//! by way of the topics instead of a restart loop.

use ipc::calls;
use ipc::topics;
use model::observed::VaultObserved;
use model::reason::{Fault, Reason};
use model::time::Now;
use service::{Event, IncomingCall, Service, log};

use crate::config_dir::{ConfigDir, ConfigDirError};
use crate::identity::{self, IdentityError};
use crate::vault::Vault;

/// No clock of this software can be right before this day (2026-11-01): it is older than the software.
pub const BUILD_DATE_S: i64 = 1_793_491_200;

/// Why the vault stays closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no config directory was handed over")]
    NoConfig,
    #[error("no directory for the keys was handed over")]
    NoState,
    #[error(transparent)]
    Config(#[from] ConfigDirError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The whole process.
pub fn run(mut service: Service) {
    let mut vault = open(&service).map_err(|error| {
        log::error(format_args!("vault stays closed: {}", chain(&error)));
        Fault::new(Reason::StorageFailed, format!("vault: {error}"))
    });
    let observed = VaultObserved {
        has_tpm: vault.as_ref().is_ok_and(Vault::has_tpm),
        is_open: vault.is_ok(),
        fault: vault.as_ref().err().cloned(),
    };
    service.publish::<topics::VaultObserved>("", &observed);
    service.synced::<topics::VaultObserved>();
    loop {
        match service.next(None) {
            Event::Call(call) => answer(&mut vault, call),
            Event::Stop => return,
            Event::Topics(_)
            | Event::Channel(_)
            | Event::Worker(())
            | Event::Readable(_)
            | Event::Deadline => {}
        }
    }
}

fn open(service: &Service) -> Result<Vault, OpenError> {
    let config = ConfigDir::read(service.dirs().config.as_deref().ok_or(OpenError::NoConfig)?)?;
    let dir = service.dirs().state.as_deref().ok_or(OpenError::NoState)?;
    let identity = identity::load(dir, &config, certificate_time(service.now()))?;
    Ok(Vault::new(dir, &config, identity))
}

/// The moment certificates are made for: the clock, unless it cannot be right.
fn certificate_time(now: Now) -> i64 {
    now.wall.time().map_or(BUILD_DATE_S, |at| at.seconds.max(BUILD_DATE_S))
}

fn answer(vault: &mut Result<Vault, Fault>, call: IncomingCall) {
    let reply = match (call.decode::<calls::Vault>(), vault) {
        (Ok(request), Ok(vault)) => vault.answer(call.from(), request),
        (Ok(_), Err(fault)) => Err(fault.clone()),
        (Err(error), _) => Err(Fault::new(Reason::Internal, format!("request to the vault: {error}"))),
    };
    if let Err(fault) = &reply {
        log::warn(format_args!("refused {}: {fault}", call.from()));
    }
    // A caller that is gone asks again when it is back.
    let _ = call.reply::<calls::Vault>(&reply, &[]);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::time::{MonoMs, Wall, WallTime};

    #[test]
    fn a_clock_before_the_build_date_does_not_date_certificates() {
        let at = |wall| certificate_time(Now { mono: MonoMs(0), wall });
        assert_eq!(at(Wall::Unset), BUILD_DATE_S);
        assert_eq!(at(Wall::Plausible(WallTime { seconds: 5, nanos: 0 })), BUILD_DATE_S);
        let later = WallTime { seconds: BUILD_DATE_S + 9, nanos: 0 };
        assert_eq!(at(Wall::Trusted(later)), BUILD_DATE_S + 9);
    }
}
