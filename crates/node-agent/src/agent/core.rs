// SPDX-License-Identifier: Apache-2.0
//! The agent without its process: the machines of `node-core` wired to one another, to the disk and to requests.
//!
//! ```text
//!  Certs ──▶ Onboard ──▶ Attest ──▶ Polling ──▶ config: verify, judge, seal, save, publish
//!                 └────▶ Reports ──▶ Queue ──▶ info          └─▶ intervals, epoch, certificate hash
//!                 └────▶ Logs, and flows as another of its kind
//! ```
//!
//! What comes of certificates and configs is in [`config`]. Everything that blocks or is seen outside goes through [`Effects`]; results come back by [`Core::done`]. The saved
//! config is published by [`Core::start`], before any request.

mod config;
mod told;

use std::sync::Arc;

use eve_api::certs::{ControllerCerts, pem_hash};
use eve_api::render;
use ipc::calls::{NodeIdentity, TpmQuote, VaultReply, VaultRequest};
use model::config::DeviceConfig;
use model::id::{DeviceId, Digest};
use model::log::LogSeverity;
use model::observed::AgentObserved;
use model::reason::{Fault, Reason};
use model::report::DeviceStatus;
use model::time::{MonoMs, Now};
use node_core::attest::{self, Attest};
use node_core::config::{self as polling, Polling};
use node_core::exchange::Outcome;
use node_core::onboard::certs::{self as cert_fetch, Certs};
use node_core::onboard::{self, Onboard};
use node_core::report::{self, Reports, Subject};
use node_core::upload::logs::{self, Logs};
use node_core::upload::{self, Queue};
use reconcile::{Chance, Machine, Outbox, earliest};

use super::ask::{self, Ask, HttpReply};
use super::disk::{Disk, SavedConfig, SavedInfo};
use super::http::{Done, Flows};
use super::reports::{self, Own, Shown};
use super::world::World;
use told::Told;

/// The last contact is published when it is older than this by so much: each answer would be a change.
const CONTACT_STEP_MS: u64 = 10_000;
/// A node whose serial number nobody says registers without one after this time.
const SERIAL_WAIT_MS: u64 = 5_000;
/// The time floor is written when it rises by this much.
const FLOOR_STEP_S: i64 = 3_600;

const DEVICE_CHANGED: report::Input = report::Input::Changed(Subject::Device);

/// What the core has done outside.
pub trait Effects {
    /// Sends a request; its [`Done`] follows some time later, unless the request could not be taken.
    fn ask(&mut self, ask: Ask) -> Result<(), Ask>;
    fn vault(&mut self, request: VaultRequest) -> Result<VaultReply, Fault>;
    fn publish_config(&mut self, config: &DeviceConfig);
    fn publish_observed(&mut self, observed: &AgentObserved);
    fn log(&mut self, severity: LogSeverity, text: String);
}

/// What the core begins with.
#[derive(Debug)]
pub struct Setup {
    pub identity: NodeIdentity,
    pub disk: Disk,
    /// Seed for spreading timers.
    pub seed: u64,
    /// Serial number by which the node registers, when it is not that of the machine.
    pub serial: Option<String>,
}

/// The controller's certificates in use.
#[derive(Clone, Debug)]
struct Trusted {
    certs: Arc<ControllerCerts>,
    /// As received, to be saved with what they verify.
    message: Vec<u8>,
}

/// A config that verified and waits for the certificates its secrets name.
#[derive(Debug)]
struct Pending {
    config: DeviceConfig,
    container: Vec<u8>,
}

/// The agent.
#[derive(Debug)]
pub struct Core {
    identity: NodeIdentity,
    disk: Disk,
    serial: Option<String>,
    started: MonoMs,
    is_online: bool,
    trusted: Option<Trusted>,
    floor_s: i64,
    config: Option<DeviceConfig>,
    pending: Option<Pending>,
    /// In force, and not on the disk: it could not be written.
    unsaved: Option<SavedConfig>,
    token: Vec<u8>,
    quote: Option<TpmQuote>,
    world: World,
    /// The device's report as it was compared last.
    device_status: DeviceStatus,
    /// What it was made of besides the config and the world; nothing once one of those has changed.
    compared: Option<Shown>,
    own: Own,
    observed: AgentObserved,
    certs: Certs,
    onboard: Onboard,
    attest: Attest,
    polling: Polling,
    reports: Reports,
    queue: Queue,
    logs: Logs,
    /// Flow reports travel as batches of logs do.
    flows: Logs,
    /// Under way.
    flow_batch: Option<Flows>,
    /// Where answers are lost, one request lasts longer than the time between two reports: only one is under way.
    has_metrics_under_way: bool,
    told: Told,
    /// Why the last request to the controller had no answer; nothing when it had one.
    unreached: Option<Fault>,
}

impl Core {
    pub fn new(setup: Setup) -> Core {
        let Setup { identity, disk, seed, serial } = setup;
        let device = disk.device();
        let can_register = identity.onboarding_cert_pem.is_some();
        let mut chance = Chance::new(seed);
        Core {
            observed: AgentObserved {
                device,
                server: identity.server.clone(),
                last_contact: None,
                is_attested: false,
                fault: None,
            },
            floor_s: disk.floor_s(),
            own: Own {
                device,
                shown: Shown {
                    serial: serial.clone(),
                    root_certs: Some(Digest(pem_hash(identity.root_certs_pem.as_bytes()))),
                    tls_root_certs: Some(Digest(pem_hash(identity.tls_root_certs_pem.as_bytes()))),
                    ..Shown::default()
                },
                ..Own::default()
            },
            serial,
            started: MonoMs(0),
            is_online: false,
            trusted: None,
            config: None,
            pending: None,
            unsaved: None,
            token: Vec::new(),
            quote: None,
            world: World::default(),
            device_status: DeviceStatus::default(),
            compared: None,
            certs: Certs::new(Chance::new(chance.next_u64())),
            onboard: Onboard::new(device, can_register),
            attest: Attest::default(),
            polling: Polling::new(Chance::new(chance.next_u64())),
            reports: Reports::new(Chance::new(chance.next_u64())),
            queue: Queue::default(),
            logs: Logs::default(),
            flows: Logs::default(),
            flow_batch: None,
            has_metrics_under_way: false,
            told: Told::new(disk.told_apps()),
            unreached: None,
            identity,
            disk,
        }
    }

    /// The config in force, secrets sealed.
    pub fn config(&self) -> Option<&DeviceConfig> {
        self.config.as_ref()
    }

    pub fn device(&self) -> Option<DeviceId> {
        self.onboard.device()
    }

    pub fn is_attested(&self) -> bool {
        self.attest.phase() == attest::Phase::Complete
    }

    /// Info messages the controller does not have yet.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Publishes the saved config and begins to talk.
    pub fn start(&mut self, now: Now, fx: &mut dyn Effects) {
        self.started = now.mono;
        for saved in self.disk.queue() {
            let SavedInfo { key, urgency, payload } = saved;
            self.queue(now, upload::Input::Restore { key, urgency, payload }, fx);
        }
        self.load(now, fx);
        self.publish_observed(now, fx);
        let is_known = self.trusted.is_some();
        self.certs(now, cert_fetch::Input::Start { is_known }, fx);
        if self.device().is_some() {
            self.device_known(now, fx);
        }
        self.go_online(now, fx);
    }

    /// The newest state of the other processes.
    pub fn observe(&mut self, now: Now, world: World, fx: &mut dyn Effects) {
        let changes = self.world.changes(&world);
        let had_node = self.world.node.is_some();
        let is_applied = self.world.applied != world.applied;
        let change = if is_applied { report::Input::Applied } else { DEVICE_CHANGED };
        self.world = world;
        self.compared = None;
        for subject in changes.changed {
            self.reports(now, report::Input::Changed(subject), fx);
        }
        for subject in changes.gone {
            self.reports(now, report::Input::Gone(subject), fx);
            self.say_gone(now, subject, fx);
        }
        if self.world.is_synced {
            for app in self.told.lost(|app| self.world.apps.contains_key(&app.to_string())) {
                self.say_gone(now, Subject::App(app), fx);
            }
        }
        self.compare_device(now, change, fx);
        if !had_node {
            self.go_online(now, fx);
        }
    }

    /// A request has ended.
    pub fn done(&mut self, now: Now, done: Done, fx: &mut dyn Effects) {
        match done {
            Done::Logs { batch } => self.logs(now, logs::Input::Read { batch }, fx),
            Done::Flows { batch, lost } => {
                self.own.flows.lost = lost.unwrap_or(self.own.flows.lost);
                self.flow_batch = batch;
                self.flows(now, logs::Input::Read { batch: batch.map(|read| read.batch) }, fx);
            }
            Done::Http { ask, result } => {
                self.reached(&ask, &result, fx);
                self.answered(now, ask, result.ok(), fx);
                self.compare_device(now, DEVICE_CHANGED, fx);
            }
        }
    }

    /// One line per change: whether the controller answers, and why not.
    fn reached(&mut self, ask: &Ask, result: &Result<HttpReply, Fault>, fx: &mut dyn Effects) {
        match result {
            Ok(_) => {
                self.own.shown.unreached.clear();
                if self.unreached.take().is_some() {
                    fx.log(LogSeverity::Info, format!("the controller {} answers", self.identity.server));
                }
            }
            Err(fault) => {
                fx.log(LogSeverity::Debug, format!("no answer to {}: {fault}", name(ask)));
                let is_of_controller =
                    matches!(fault.reason, Reason::ControllerUntrusted | Reason::ControllerUnreachable);
                if is_of_controller && self.unreached.as_ref() != Some(fault) {
                    self.own.shown.unreached = fault.to_string();
                    fx.log(LogSeverity::Warning, format!("{fault}; {}", fault.reason.next_step()));
                    self.unreached = Some(fault.clone());
                }
            }
        }
    }

    pub fn wake(&mut self, now: Now, fx: &mut dyn Effects) {
        self.go_online(now, fx);
        let mut outbox = Outbox::new();
        self.certs.wake(now, &mut outbox);
        self.do_certs(outbox, fx);
        let mut outbox = Outbox::new();
        self.onboard.wake(now, &mut outbox);
        self.do_onboard(now, outbox, fx);
        let mut outbox = Outbox::new();
        self.attest.wake(now, &mut outbox);
        self.do_attest(now, outbox, fx);
        let mut outbox = Outbox::new();
        self.polling.wake(now, &mut outbox);
        self.do_polling(now, outbox, fx);
        let mut outbox = Outbox::new();
        self.reports.wake(now, &mut outbox);
        self.do_reports(now, outbox, fx);
        let mut outbox = Outbox::new();
        self.queue.wake(now, &mut outbox);
        self.do_queue(outbox, fx);
        let mut outbox = Outbox::new();
        self.logs.wake(now, &mut outbox);
        self.do_logs(outbox, fx);
        let mut outbox = Outbox::new();
        self.flows.wake(now, &mut outbox);
        self.do_flows(outbox, fx);
        self.compare_device(now, DEVICE_CHANGED, fx);
    }

    pub fn deadline(&self) -> Option<MonoMs> {
        let online = (!self.is_online).then(|| self.started.plus_ms(SERIAL_WAIT_MS));
        earliest([
            online,
            self.certs.deadline(),
            self.onboard.deadline(),
            self.attest.deadline(),
            self.polling.deadline(),
            self.reports.deadline(),
            self.queue.deadline(),
            self.logs.deadline(),
            self.flows.deadline(),
        ])
    }

    // ---- answers

    fn answered(&mut self, now: Now, ask: Ask, reply: Option<HttpReply>, fx: &mut dyn Effects) {
        let reply = reply.as_ref();
        let trusted = self.trusted.as_ref().map(|trusted| trusted.certs.clone());
        let signing_pem = trusted.as_ref().map(|certs| certs.signing_pem.as_slice());
        match ask {
            Ask::Certs => {
                let outcome = self.read_certs(now, reply, fx);
                self.count(now, &outcome, fx);
                let is_good = outcome.is_good();
                self.certs(now, cert_fetch::Input::Fetched(outcome), fx);
                self.apply_pending(now, fx);
                if is_good {
                    self.polling(now, polling::Input::CertsFetched, fx);
                    self.go_online(now, fx);
                }
            }
            Ask::Register { .. } => {
                let outcome = ask::read_status(reply);
                if let Outcome::Status(status) = outcome {
                    fx.log(LogSeverity::Warning, format!("controller answers {status} to the registration"));
                }
                self.count(now, &outcome, fx);
                self.onboard(now, onboard::Input::Registered(outcome), fx);
            }
            Ask::Uuid { .. } => {
                let outcome = ask::read_uuid(reply, signing_pem);
                self.count(now, &outcome.bare(), fx);
                self.onboard(now, onboard::Input::Uuid(outcome), fx);
            }
            Ask::PublishCerts { .. } => {
                let outcome = ask::read_certs_published(reply, signing_pem);
                self.count(now, &outcome, fx);
                if let Outcome::Status(status) = outcome {
                    fx.log(
                        LogSeverity::Warning,
                        format!("controller refuses the node's certificates: {status}"),
                    );
                }
                self.attest(now, attest::Input::CertsAnswered(outcome), fx);
            }
            Ask::Nonce { .. } => {
                let outcome = ask::read_nonce(reply, signing_pem);
                self.count(now, &outcome.bare(), fx);
                self.attest(now, attest::Input::Nonce(outcome), fx);
            }
            Ask::Quote { .. } => {
                let outcome = ask::read_quote(reply, signing_pem);
                self.count(now, &outcome.bare(), fx);
                self.attest(now, attest::Input::QuoteAnswered(outcome), fx);
            }
            Ask::Config { device, .. } => {
                if reply.is_some_and(|reply| reply.status == 200) {
                    fx.log(LogSeverity::Debug, "a config came".into());
                }
                let outcome = ask::read_config(reply, signing_pem);
                self.count(now, &outcome.bare(), fx);
                let outcome = self.take_config(now, device, outcome, reply, fx);
                self.polling(now, polling::Input::Answered(outcome), fx);
            }
            Ask::Info { key, number, .. } => {
                let outcome = ask::read_status(reply);
                self.count(now, &outcome, fx);
                if let Outcome::Status(status) = outcome
                    && !upload::is_retriable(status)
                {
                    fx.log(
                        LogSeverity::Warning,
                        format!("controller answers {status} to info {key}: dropped"),
                    );
                }
                self.queue(now, upload::Input::Posted { key: key.clone(), number, outcome }, fx);
                if !self.queue.contains(&key) && self.told.was_delivered(&key) {
                    self.save_told(fx);
                }
            }
            Ask::Metrics { .. } => {
                self.has_metrics_under_way = false;
                // Lost on failure: counters are cumulative.
                let outcome = ask::read_status(reply);
                self.count(now, &outcome, fx);
            }
            Ask::PostLogs { .. } => {
                let outcome = ask::read_status(reply);
                self.count(now, &outcome, fx);
                self.logs(now, logs::Input::Posted(outcome), fx);
            }
            Ask::PostFlows { .. } => {
                let outcome = ask::read_status(reply);
                self.count(now, &outcome, fx);
                self.own.flows.count(self.flow_batch, outcome == Outcome::Good(()));
                self.flows(now, logs::Input::Posted(outcome), fx);
            }
            Ask::ReadLogs | Ask::TakenLogs { .. } | Ask::ReadFlows | Ask::TakenFlows { .. } => {}
        }
    }

    fn count(&mut self, now: Now, outcome: &Outcome, fx: &mut dyn Effects) {
        let at = now.wall.time();
        match outcome {
            Outcome::Good(()) | Outcome::Status(_) => {
                self.own.requests.succeeded += 1;
                self.own.requests.last_success = at;
            }
            Outcome::NoAnswer => {
                self.own.requests.failed += 1;
                self.own.requests.last_failure = at;
            }
            Outcome::CertMiss | Outcome::Refused => {
                self.own.requests.refused += 1;
                self.own.requests.last_failure = at;
                fx.log(LogSeverity::Warning, format!("answer of the controller not accepted: {outcome:?}"));
            }
        }
        if outcome.is_contact() {
            let old = self.observed.last_contact;
            if old.is_none_or(|old| now.mono.since_ms(old) >= CONTACT_STEP_MS) {
                self.observed.last_contact = Some(now.mono);
                fx.publish_observed(&self.observed);
            }
            if outcome.is_good() {
                self.queue(now, upload::Input::Contact, fx);
            }
        }
    }

    // ---- onboarding

    /// The machines that need to verify answers begin once there is a certificate, and, for a device that must
    /// register, once its serial number is known.
    fn go_online(&mut self, now: Now, fx: &mut dyn Effects) {
        let has_waited = now.mono.since_ms(self.started) >= SERIAL_WAIT_MS;
        if !self.serial().is_empty() || self.device().is_some() || has_waited {
            self.is_online = true;
        }
        if self.is_online && self.trusted.is_some() {
            self.onboard(now, onboard::Input::CertsKnown, fx);
        }
    }

    fn serial(&self) -> String {
        let observed = self.world.node.as_ref().map(|node| node.serial.clone());
        self.serial.clone().or(observed).unwrap_or_default()
    }

    fn device_known(&mut self, now: Now, fx: &mut dyn Effects) {
        self.own.device = self.device();
        self.attest(now, attest::Input::Start, fx);
        self.queue(now, upload::Input::Start, fx);
        self.reports(now, report::Input::Start, fx);
        self.logs(now, logs::Input::Start, fx);
        self.flows(now, logs::Input::Start, fx);
    }

    fn publish_observed(&mut self, now: Now, fx: &mut dyn Effects) {
        let _ = now;
        self.observed.device = self.device();
        self.observed.is_attested = self.is_attested();
        fx.publish_observed(&self.observed);
    }

    /// `change` is what the reports hear when the device's differs from the last.
    fn compare_device(&mut self, now: Now, change: report::Input, fx: &mut dyn Effects) {
        self.own.shown.phase = Some(self.attest.phase());
        if self.compared.as_ref() != Some(&self.own.shown) {
            self.compared = Some(self.own.shown.clone());
            let status = reports::device(&self.own.shown, self.config.as_ref(), &self.world);
            if status != self.device_status {
                self.device_status = status;
                self.reports(now, change, fx);
            }
        }
        if self.observed.is_attested != self.is_attested() {
            self.publish_observed(now, fx);
        }
    }

    // ---- machines: input, then orders

    fn certs(&mut self, now: Now, input: cert_fetch::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.certs.handle(now, input, &mut outbox);
        self.do_certs(outbox, fx);
    }

    fn do_certs(&mut self, mut outbox: Outbox<cert_fetch::Output>, fx: &mut dyn Effects) {
        while let Some(cert_fetch::Output::Fetch) = outbox.pop() {
            self.send(Ask::Certs, fx);
        }
    }

    fn onboard(&mut self, now: Now, input: onboard::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.onboard.handle(now, input, &mut outbox);
        self.do_onboard(now, outbox, fx);
    }

    fn do_onboard(&mut self, now: Now, mut outbox: Outbox<onboard::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            match order {
                onboard::Output::Register => self.send(Ask::Register { serial: self.serial() }, fx),
                onboard::Output::AskUuid => self.send(Ask::Uuid { serial: self.serial() }, fx),
                onboard::Output::RefreshCerts => self.certs(now, cert_fetch::Input::Hint, fx),
                onboard::Output::Known(device) => {
                    fx.log(LogSeverity::Info, format!("this is device {device}"));
                    if let Err(error) = self.disk.save_device(device) {
                        fx.log(LogSeverity::Error, format!("UUID not saved: {error}"));
                    }
                    if self.config.as_ref().is_some_and(|config| config.id != device) {
                        // Another device's order does not bind this one.
                        self.config = None;
                        self.compared = None;
                    }
                    self.publish_observed(now, fx);
                    self.device_known(now, fx);
                }
            }
        }
    }

    fn attest(&mut self, now: Now, input: attest::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.attest.handle(now, input, &mut outbox);
        self.do_attest(now, outbox, fx);
    }

    fn do_attest(&mut self, now: Now, mut outbox: Outbox<attest::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            let Some(device) = self.device() else { return };
            match order {
                attest::Output::PublishCerts => self.send(Ask::PublishCerts { device }, fx),
                attest::Output::AskNonce => self.send(Ask::Nonce { device }, fx),
                attest::Output::MakeQuote { nonce } => {
                    let is_made = match fx.vault(VaultRequest::Quote { nonce }) {
                        Ok(VaultReply::Quote(quote)) => {
                            self.quote = quote;
                            true
                        }
                        Ok(_) => false,
                        Err(fault) => {
                            fx.log(LogSeverity::Error, format!("no quote: {fault}"));
                            false
                        }
                    };
                    self.attest(now, attest::Input::Quoted { is_made }, fx);
                }
                attest::Output::SendQuote => {
                    let version = self.version();
                    let quote = self.quote.take();
                    self.send(Ask::Quote { device, quote, version }, fx);
                }
                attest::Output::Token(token) => {
                    self.token = token;
                    self.polling(now, polling::Input::Start, fx);
                    self.polling(now, polling::Input::Token, fx);
                }
                attest::Output::Failed => {
                    fx.log(LogSeverity::Warning, "attestation failed, tried again".into());
                    self.polling(now, polling::Input::Start, fx);
                }
                attest::Output::RefreshCerts => self.certs(now, cert_fetch::Input::Hint, fx),
            }
        }
    }

    fn polling(&mut self, now: Now, input: polling::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.polling.handle(now, input, &mut outbox);
        self.do_polling(now, outbox, fx);
    }

    fn do_polling(&mut self, now: Now, mut outbox: Outbox<polling::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            match order {
                polling::Output::Ask { hash } => {
                    let Some(device) = self.device() else { return };
                    self.send(Ask::Config { device, hash, token: self.token.clone() }, fx);
                }
                polling::Output::TokenRefused => self.attest(now, attest::Input::TokenRefused, fx),
                polling::Output::Unknown => self.onboard(now, onboard::Input::Unknown, fx),
                polling::Output::RefreshCerts => self.certs(now, cert_fetch::Input::Hint, fx),
            }
        }
    }

    fn reports(&mut self, now: Now, input: report::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.reports.handle(now, input, &mut outbox);
        self.do_reports(now, outbox, fx);
    }

    fn do_reports(&mut self, now: Now, mut outbox: Outbox<report::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            match order {
                report::Output::Info(subject) => {
                    let message = reports::info(subject, now, &self.own, self.config.as_ref(), &self.world);
                    if let Some(message) = message {
                        let (key, urgency) = reports::queue_key(subject);
                        let payload = render::info(&message);
                        if let Subject::App(app) = subject
                            && self.told.tell(app)
                        {
                            self.save_told(fx);
                        }
                        self.queue(now, upload::Input::Enqueue { key, urgency, payload }, fx);
                    }
                }
                report::Output::Metrics if self.has_metrics_under_way => {}
                report::Output::Metrics => {
                    let Some(device) = self.device() else { return };
                    self.has_metrics_under_way = true;
                    let metrics = reports::metrics(now, &self.own, self.config.as_ref(), &self.world);
                    self.send(Ask::Metrics { device, payload: render::metrics(&metrics) }, fx);
                }
            }
        }
    }

    /// What waits to be said of it is no longer true. Of an app the controller's last word would be that it halts.
    fn say_gone(&mut self, now: Now, subject: Subject, fx: &mut dyn Effects) {
        let (key, urgency) = reports::queue_key(subject);
        if let Subject::App(app) = subject {
            self.told.say_gone(app);
        }
        let order = match reports::gone(subject, now, &self.own) {
            Some(message) => upload::Input::Enqueue { key, urgency, payload: render::info(&message) },
            None => upload::Input::Forget { key },
        };
        self.queue(now, order, fx);
    }

    fn save_told(&mut self, fx: &mut dyn Effects) {
        if let Err(error) = self.disk.save_told_apps(self.told.apps()) {
            fx.log(LogSeverity::Warning, format!("list of reported apps not saved: {error}"));
        }
    }

    fn queue(&mut self, now: Now, input: upload::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.queue.handle(now, input, &mut outbox);
        self.do_queue(outbox, fx);
    }

    fn do_queue(&mut self, mut outbox: Outbox<upload::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            let result = match order {
                upload::Output::Post { key, number, payload } => {
                    let Some(device) = self.device() else { return };
                    self.send(Ask::Info { device, key, number, payload }, fx);
                    Ok(())
                }
                upload::Output::Save { key, urgency, payload } => {
                    self.disk.save_info(&SavedInfo { key, urgency, payload })
                }
                upload::Output::Erase { key } => self.disk.erase_info(&key),
            };
            if let Err(error) = result {
                fx.log(LogSeverity::Warning, format!("queue of info messages on disk: {error}"));
            }
        }
    }

    fn logs(&mut self, now: Now, input: logs::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.logs.handle(now, input, &mut outbox);
        self.do_logs(outbox, fx);
    }

    fn do_logs(&mut self, mut outbox: Outbox<logs::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            match order {
                logs::Output::Read => self.send(Ask::ReadLogs, fx),
                logs::Output::Post { batch } => {
                    let Some(device) = self.device() else { return };
                    self.send(Ask::PostLogs { device, batch, version: self.version() }, fx);
                }
                logs::Output::Taken { batch } => self.send(Ask::TakenLogs { batch }, fx),
            }
        }
    }

    fn flows(&mut self, now: Now, input: logs::Input, fx: &mut dyn Effects) {
        let mut outbox = Outbox::new();
        self.flows.handle(now, input, &mut outbox);
        self.do_flows(outbox, fx);
    }

    fn do_flows(&mut self, mut outbox: Outbox<logs::Output>, fx: &mut dyn Effects) {
        while let Some(order) = outbox.pop() {
            match order {
                logs::Output::Read => self.send(Ask::ReadFlows, fx),
                logs::Output::Post { batch } => {
                    let Some(device) = self.device() else { return };
                    self.send(Ask::PostFlows { device, batch }, fx);
                }
                logs::Output::Taken { batch } => self.send(Ask::TakenFlows { batch }, fx),
            }
        }
    }

    fn version(&self) -> String {
        self.world.node.as_ref().map_or_else(|| env!("CARGO_PKG_VERSION").into(), |node| node.version.clone())
    }

    /// A lane has room for one request of each machine and more; should it be full or its thread gone, only a restart
    /// helps.
    fn send(&mut self, ask: Ask, fx: &mut dyn Effects) {
        if let Err(ask) = fx.ask(ask) {
            let text = format!("request {} could not be handed over", name(&ask));
            self.observed.fault = Some(Fault::new(Reason::Internal, text.clone()));
            fx.publish_observed(&self.observed);
            fx.log(LogSeverity::Error, text);
        }
    }
}

fn name(ask: &Ask) -> &'static str {
    match ask {
        Ask::Certs => "certs",
        Ask::Register { .. } => "register",
        Ask::Uuid { .. } => "uuid",
        Ask::Config { .. } => "config",
        Ask::PublishCerts { .. } | Ask::Nonce { .. } | Ask::Quote { .. } => "attest",
        Ask::Info { .. } => "info",
        Ask::Metrics { .. } => "metrics",
        Ask::ReadLogs | Ask::PostLogs { .. } | Ask::TakenLogs { .. } => "newlogs",
        Ask::ReadFlows | Ask::PostFlows { .. } | Ask::TakenFlows { .. } => "flowlog",
    }
}

#[cfg(test)]
mod tests;
