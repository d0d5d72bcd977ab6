// SPDX-License-Identifier: Apache-2.0
//! What the agent makes of the controller's certificates and configs: verify, judge, seal, save, publish.

use std::sync::Arc;

use eve_api::certs::{ControllerCerts, verify_controller_certs};
use eve_api::envelope::{unseal_controller, unverified_payload};
use eve_api::parse;
use ipc::calls::VaultRequest;
use model::config::DeviceConfig;
use model::id::DeviceId;
use model::log::LogSeverity;
use model::reason::Fault;
use model::time::{Now, WallTime};
use node_core::config::{self as polling, guard};
use node_core::exchange::Outcome;
use node_core::items;
use node_core::onboard::certs as cert_fetch;
use node_core::report;

use super::{Core, Effects, FLOOR_STEP_S, Pending, Trusted};
use crate::agent::ask::{self, ConfigReply, HttpReply};
use crate::agent::disk::SavedConfig;
use crate::agent::secrets::seal_config;

impl Core {
    // ---- certificates of the controller

    pub(super) fn read_certs(
        &mut self,
        now: Now,
        reply: Option<&HttpReply>,
        fx: &mut dyn Effects,
    ) -> Outcome {
        let status = ask::read_status(reply);
        let (Outcome::Good(()), Some(reply)) = (&status, reply) else { return status };
        // The envelope of /certs proves nothing: the chain does.
        let Ok(message) = unverified_payload(&reply.untrusted_body) else { return Outcome::Refused };
        match verify_controller_certs(
            &message,
            self.identity.root_certs_pem.as_bytes(),
            self.trusted_time(now),
        ) {
            Ok(certs) => {
                self.trust(certs, message, true, fx);
                Outcome::Good(())
            }
            Err(error) => {
                fx.log(LogSeverity::Warning, format!("certificates of the controller refused: {error}"));
                Outcome::Refused
            }
        }
    }

    /// The moment certificates are checked against; none when the clock is before what was signed already.
    fn trusted_time(&self, now: Now) -> Option<i64> {
        now.wall.time().map(|at| at.seconds).filter(|seconds| *seconds >= self.floor_s)
    }

    fn trust(&mut self, certs: ControllerCerts, message: Vec<u8>, is_new: bool, fx: &mut dyn Effects) {
        let is_same = self.trusted.as_ref().is_some_and(|trusted| *trusted.certs == certs);
        if !is_same {
            let ecdh_pems: Vec<String> =
                certs.ecdh.iter().filter_map(|cert| String::from_utf8(cert.pem.clone()).ok()).collect();
            if let Err(fault) = fx.vault(VaultRequest::TrustControllerCerts { ecdh_pems }) {
                fx.log(
                    LogSeverity::Error,
                    format!("vault did not take the controller's certificates: {fault}"),
                );
            }
            if is_new && let Err(error) = self.disk.save_certs(&message) {
                fx.log(LogSeverity::Error, format!("controller's certificates not saved: {error}"));
            }
        }
        self.trusted = Some(Trusted { certs: Arc::new(certs), message });
    }

    // ---- config

    /// Publishes the newest saved config that still verifies; expiry of its signer does not matter any more.
    pub(super) fn load(&mut self, now: Now, fx: &mut dyn Effects) {
        let roots = self.identity.root_certs_pem.clone();
        if let Some(message) = self.disk.certs()
            && let Ok(certs) = verify_controller_certs(&message, roots.as_bytes(), None)
        {
            self.trust(certs, message, false, fx);
        }
        let Some(device) = self.device() else { return };
        for saved in self.disk.configs() {
            let Ok(certs) = verify_controller_certs(&saved.certs, roots.as_bytes(), None) else { continue };
            let Ok(payload) = unseal_controller(&saved.container, &certs.signing_pem) else { continue };
            let Ok(response) = parse::config_response(&payload) else { continue };
            let Some(config) = response.config.filter(|config| config.id == device) else { continue };
            if self.trusted.is_none() {
                self.trust(certs, saved.certs.clone(), false, fx);
            }
            match self.put_in_force(now, config, None, fx) {
                Ok(()) => return fx.log(LogSeverity::Info, "saved config is in force".into()),
                Err(fault) => fx.log(LogSeverity::Error, format!("saved config not applied: {fault}")),
            }
        }
    }

    pub(super) fn take_config(
        &mut self,
        now: Now,
        asked_for: DeviceId,
        outcome: Outcome<ConfigReply>,
        reply: Option<&HttpReply>,
        fx: &mut dyn Effects,
    ) -> Outcome<polling::Answer> {
        let response = match outcome {
            Outcome::Good(ConfigReply::NotModified) => {
                self.save_unsaved(fx);
                return Outcome::Good(polling::Answer::NotModified);
            }
            Outcome::Good(ConfigReply::Config(response)) => response,
            Outcome::Status(status) => return Outcome::Status(status),
            Outcome::NoAnswer => return Outcome::NoAnswer,
            Outcome::CertMiss => return Outcome::CertMiss,
            Outcome::Refused => return Outcome::Refused,
        };
        let (Some(config), Some(reply)) = (response.config, reply) else { return Outcome::Refused };
        let in_force = self.config.as_ref().and_then(|config| config.timestamp);
        let ignored = match guard::judge(&config, asked_for, in_force) {
            guard::Verdict::Apply => None,
            guard::Verdict::Obsolete => Some("is older than the one in force"),
            guard::Verdict::Foreign => Some("is for another device"),
        };
        if let Some(why) = ignored {
            fx.log(LogSeverity::Warning, format!("config {:?} {why}: ignored", config.version));
            return Outcome::Good(polling::Answer::Ignored);
        }
        let container = reply.untrusted_body.clone();
        if self.needs_other_certs(&config) {
            self.pending = Some(Pending { config, container });
            self.certs(now, cert_fetch::Input::Hint, fx);
            return Outcome::Good(polling::Answer::New { hash: response.hash });
        }
        self.pending = None;
        match self.put_in_force(now, config, Some(&container), fx) {
            Ok(()) => Outcome::Good(polling::Answer::New { hash: response.hash }),
            Err(fault) => {
                fx.log(LogSeverity::Error, format!("config not applied: {fault}"));
                Outcome::Refused
            }
        }
    }

    /// Its secrets were made with a certificate of the controller that is not known yet.
    fn needs_other_certs(&self, config: &DeviceConfig) -> bool {
        let Some(trusted) = &self.trusted else { return true };
        let is_known = |hash: &[u8]| trusted.certs.ecdh_by_hash(hash).is_some();
        config.cipher_contexts.iter().any(|context| !is_known(&context.controller_cert_hash))
    }

    /// After a fetch of the certificates, whatever came of it: secrets that still cannot be opened are a fault of the
    /// app that needs them, not of the config.
    pub(super) fn apply_pending(&mut self, now: Now, fx: &mut dyn Effects) {
        let Some(Pending { config, container }) = self.pending.take() else { return };
        if let Err(fault) = self.put_in_force(now, config, Some(&container), fx) {
            fx.log(LogSeverity::Error, format!("config not applied: {fault}"));
        }
    }

    /// Seals, saves (when it is new: `container`), publishes, and tells the machines what changed.
    fn put_in_force(
        &mut self,
        now: Now,
        mut config: DeviceConfig,
        container: Option<&[u8]>,
        fx: &mut dyn Effects,
    ) -> Result<(), Fault> {
        seal_config(&mut config, &mut |request| fx.vault(request))?;
        if self.config.as_ref() == Some(&config) {
            return Ok(());
        }
        if let (Some(container), Some(trusted)) = (container, &self.trusted) {
            self.unsaved =
                Some(SavedConfig { certs: trusted.message.clone(), container: container.to_vec() });
            self.save_unsaved(fx);
        }
        self.raise_floor(config.timestamp, fx);
        let before = self.config.replace(config.clone());
        self.compared = None;
        fx.publish_config(&config);
        fx.log(
            LogSeverity::Info,
            format!(
                "config {:?} in force: {} apps, {} faults",
                config.version,
                config.apps.len(),
                config.faults.len()
            ),
        );
        self.own.received_config = config.timestamp;

        let (items, _) = items::read(&config.items);
        self.polling(now, polling::Input::Interval { seconds: items.config_interval_s }, fx);
        self.certs(now, cert_fetch::Input::Interval { seconds: items.cert_interval_s }, fx);
        let intervals = report::Input::Intervals {
            device_s: items.device_info_interval_s,
            metric_s: items.metric_interval_s,
        };
        self.reports(now, intervals, fx);
        if let Some(before) = before {
            if before.controller_epoch != config.controller_epoch {
                self.reports(now, report::Input::ResendAll, fx);
            }
            if before.controller_cert_hash != config.controller_cert_hash {
                self.certs(now, cert_fetch::Input::Hint, fx);
            }
        }
        Ok(())
    }

    /// One that cannot be written is in force all the same: it may be what makes room. It is tried again with every answer.
    fn save_unsaved(&mut self, fx: &mut dyn Effects) {
        let Some(unsaved) = self.unsaved.take() else { return };
        if let Err(error) = self.disk.save_config(&unsaved) {
            fx.log(LogSeverity::Error, format!("config not saved: {error}"));
            self.unsaved = Some(unsaved);
        }
    }

    fn raise_floor(&mut self, signed_at: Option<WallTime>, fx: &mut dyn Effects) {
        let Some(at) = signed_at else { return };
        if at.seconds > self.floor_s {
            let is_step = at.seconds - self.floor_s >= FLOOR_STEP_S;
            self.floor_s = at.seconds;
            if is_step && let Err(error) = self.disk.save_floor(at.seconds) {
                fx.log(LogSeverity::Warning, format!("time floor not saved: {error}"));
            }
        }
    }
}
