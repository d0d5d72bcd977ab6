// SPDX-License-Identifier: Apache-2.0
//! The agent: the real core, with a vault and lanes played by the box.

use ipc::calls::{NodeCert, NodeIdentity, VaultReply, VaultRequest};
use ipc::topics;
use model::config::DeviceConfig;
use model::log::LogSeverity;
use model::observed::AgentObserved;
use model::reason::{Fault, Reason};
use model::secret::SecretHandle;
use model::time::MonoMs;
use node_agent::agent::ask::Ask;
use node_agent::agent::core::{Core, Effects, Setup};
use node_agent::agent::disk::Disk;
use node_agent::agent::world::World;

use super::{Cx, Input, Name, Out, Plants};
use crate::disk::View;
use crate::keys::keys;

/// Between two questions to a vault that does not answer.
const IDENTITY_PAUSE_MS: u64 = 1_000;
/// `ZCertType` of the node's ECDH certificate.
const CERT_ECDH: i32 = 13;
/// What the vault of the box seals with; enough to make clear text unreadable.
const MASK: u8 = 0x5a;

#[derive(Debug)]
pub struct Agent {
    core: Option<Box<Core>>,
    retry_at: Option<MonoMs>,
    plants: Plants,
}

impl Agent {
    pub fn new(plants: Plants) -> Agent {
        Agent { core: None, retry_at: None, plants }
    }

    pub fn core(&self) -> Option<&Core> {
        self.core.as_deref()
    }

    pub fn deadline(&self) -> Option<MonoMs> {
        match &self.core {
            Some(core) => core.deadline(),
            None => self.retry_at,
        }
    }

    pub fn handle(&mut self, cx: &mut Cx<'_>, input: Input) {
        let now = cx.now;
        let Some(core) = &mut self.core else {
            return self.begin(cx);
        };
        match input {
            Input::Topics => {
                let world = World::read(cx.topics);
                core.observe(now, world, &mut Fx { cx, plants: self.plants });
            }
            Input::Done(done) => core.done(now, done, &mut Fx { cx, plants: self.plants }),
            Input::Start | Input::Wake | Input::Pulled(..) | Input::Shim(..) => {}
        }
        core.wake(now, &mut Fx { cx, plants: self.plants });
    }

    /// Without an identity there is nothing to do.
    fn begin(&mut self, cx: &mut Cx<'_>) {
        World::subscribe(cx.topics);
        let now = cx.now;
        if cx.machine.is_vault_down {
            self.retry_at = Some(now.mono.plus_ms(IDENTITY_PAUSE_MS));
            return;
        }
        let view = View::new(cx.machine.disk.clone(), Name::Agent);
        let setup = Setup {
            identity: identity(&cx.machine.serial),
            disk: Disk::new(view),
            seed: cx.chance.next_u64(),
            serial: Some(cx.machine.serial.clone()),
        };
        let world = World::read(cx.topics);
        let mut core = Box::new(Core::new(setup));
        let mut fx = Fx { cx, plants: self.plants };
        core.observe(now, world, &mut fx);
        core.start(now, &mut fx);
        // Without a saved config there is none until the controller sends it: absent is really absent.
        cx.all_stand::<topics::Config>();
        cx.all_stand::<topics::AgentObserved>();
        core.wake(now, &mut Fx { cx, plants: self.plants });
        self.core = Some(core);
    }
}

fn identity(serial: &str) -> NodeIdentity {
    let keys = keys();
    NodeIdentity {
        device_cert_pem: keys.ecdh_pem.clone(),
        onboarding_cert_pem: Some("onboarding".into()),
        node_certs: vec![NodeCert { kind: CERT_ECDH, pem: keys.ecdh_pem.clone(), tpm_public: None }],
        soft_serial: Some(serial.into()),
        server: "controller.example".into(),
        root_certs_pem: keys.root_pem.clone(),
        tls_root_certs_pem: keys.root_pem.clone(),
    }
}

struct Fx<'a, 'b> {
    cx: &'a mut Cx<'b>,
    plants: Plants,
}

impl Effects for Fx<'_, '_> {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        if self.cx.effect() {
            if self.plants.agent_sends_twice && matches!(ask, Ask::Info { .. }) {
                self.cx.out.push(Out::Ask(ask.clone()));
            }
            self.cx.out.push(Out::Ask(ask));
        }
        Ok(())
    }

    fn vault(&mut self, request: VaultRequest) -> Result<VaultReply, Fault> {
        if self.cx.machine.is_vault_down {
            return Err(Fault::new(Reason::ServiceUnavailable, "vault"));
        }
        Ok(match request {
            VaultRequest::Seal { clear } if self.plants.agent_forgets_seal => {
                VaultReply::Sealed(SecretHandle::Sealed { sealed: clear })
            }
            VaultRequest::Seal { clear } => {
                let sealed = clear.iter().map(|byte| byte ^ MASK).collect();
                VaultReply::Sealed(SecretHandle::Sealed { sealed })
            }
            VaultRequest::Quote { .. } => VaultReply::Quote(None),
            VaultRequest::TrustControllerCerts { .. } => VaultReply::Done,
            _ => return Err(Fault::new(Reason::Internal, "the simulated vault does not do this")),
        })
    }

    fn publish_config(&mut self, config: &DeviceConfig) {
        self.cx.put::<topics::Config>("", config);
    }

    fn publish_observed(&mut self, observed: &AgentObserved) {
        self.cx.put::<topics::AgentObserved>("", observed);
    }

    fn log(&mut self, severity: LogSeverity, text: String) {
        if severity != LogSeverity::Debug {
            self.cx.say(text);
        }
    }
}
