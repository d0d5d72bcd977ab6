// SPDX-License-Identifier: Apache-2.0
//! Events by time: what is due next happens, its effects become events, and every checker looks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use model::id::AppId;
use model::observed::Exit;
use model::reason::{self, Reason};
use node_agent::agent::ask::{Ask, HttpReply, Lane};
use node_agent::agent::http::Done;
use reconcile::Chance;
use uuid::Uuid;

use crate::check::{self, Checker};
use crate::controller::{Controller, HOLD_MS, Reply};
use crate::fuse::Blow;
use crate::link::{Link, Way};
use crate::node::{Input, Life, Name, Node, Out, Plants, shim};
use crate::scenario::{Fault, Scenario, What};
use crate::story::Story;
use crate::{CONVERGE_MS, DAY_MS, EPOCH_S, Fact, Failure, MINUTE_MS};

/// Between two looks of checkers that look at the whole.
const TICK_MS: u64 = 10 * MINUTE_MS;
/// More events within one millisecond are a loop.
const MAX_EVENTS_PER_MS: u64 = 20_000;
/// After a change of the config, others that follow go out with it, as the controller has it.
const SETTLE_MS: u64 = 20;
/// The log process has lines about so often.
const LOG_LINES_MS: (u64, u64) = (20_000, 30 * MINUTE_MS);
/// How long a box is off after a cut in the middle of something.
const SHORT_CUT_MS: (u64, u64) = (1_000, 60_000);
/// A refused connection is known soon.
const REFUSED_MS: u64 = 30;

#[derive(Debug)]
enum Event {
    Step(usize),
    /// Something that failed may be over.
    Refresh(usize),
    ControllerBack,
    PowerOn(usize),
    Restart(usize, Name),
    Resume(usize, Name),
    Wake(usize, Name),
    Deliver(usize, Name),
    Give {
        node: usize,
        boot: u64,
        name: Name,
        incarnation: Option<u64>,
        input: Input,
    },
    Shim {
        node: usize,
        boot: u64,
        app: AppId,
        token: u64,
    },
    Arrive {
        node: usize,
        incarnation: u64,
        ask: Ask,
        is_answer_lost: bool,
    },
    Answer {
        node: usize,
        incarnation: u64,
        lane: Lane,
        reply: Option<HttpReply>,
        is_kept: bool,
    },
    HoldOver(u64),
    Tick,
    End,
}

struct Due {
    at_ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at_ms, self.order) == (other.at_ms, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at_ms, self.order).cmp(&(other.at_ms, other.order))
    }
}

#[derive(Debug)]
struct Held {
    number: u64,
    node: usize,
    incarnation: u64,
    device: Uuid,
    hash: String,
}

/// Everything there is.
pub struct World {
    pub now_ms: u64,
    pub events: u64,
    pub nodes: Vec<Node>,
    pub controller: Controller,
    pub story: Story,
    scenario: Scenario,
    links: Vec<Link>,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    chance: Chance,
    checkers: Vec<Box<dyn Checker>>,
    held: Vec<Held>,
    controller_down_until: u64,
    answers_until: (u16, u64),
    armed: BTreeMap<(usize, Name), u64>,
    events_of_ms: (u64, u64),
    plants: Plants,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now_ms", &self.now_ms).finish_non_exhaustive()
    }
}

impl World {
    pub fn new(scenario: &Scenario, tells_all: bool, plants: Plants) -> World {
        let intervals = (scenario.metric_interval_s, scenario.config_interval_s);
        let mut world = World {
            now_ms: 0,
            events: 0,
            nodes: (0..scenario.nodes).map(|index| Node::new(index, plants)).collect(),
            controller: Controller::new(scenario.holds, scenario.clear_secrets, intervals),
            story: Story::new(tells_all),
            scenario: scenario.clone(),
            links: (0..scenario.nodes).map(|_| Link::default()).collect(),
            queue: BinaryHeap::new(),
            order: 0,
            chance: Chance::new(scenario.seed),
            checkers: check::all(),
            held: Vec::new(),
            controller_down_until: 0,
            answers_until: (0, 0),
            armed: BTreeMap::new(),
            events_of_ms: (0, 0),
            plants,
        };
        for (number, step) in scenario.steps.iter().enumerate() {
            world.at(step.at_ms, Event::Step(number));
        }
        for node in 0..scenario.nodes {
            world.nodes[node].machine.disk.is_lying.set(plants.lying_disk);
            let at_ms = world.chance.between(0, 5_000);
            world.at(at_ms, Event::PowerOn(node));
        }
        world.at(TICK_MS, Event::Tick);
        let quiet_ms = scenario.days * DAY_MS;
        world.at(quiet_ms.saturating_sub(60 * MINUTE_MS) + CONVERGE_MS, Event::End);
        world
    }

    /// One more checker, of a test.
    pub fn watch(&mut self, checker: Box<dyn Checker>) {
        self.checkers.push(checker);
    }

    /// Until the end, or until a checker sees something.
    pub fn live(&mut self) -> Result<(), Failure> {
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now_ms = due.at_ms;
            self.events += 1;
            self.events_of_ms = if self.events_of_ms.0 == due.at_ms {
                (due.at_ms, self.events_of_ms.1 + 1)
            } else {
                (due.at_ms, 0)
            };
            if self.events_of_ms.1 > MAX_EVENTS_PER_MS {
                let text =
                    format!("more than {MAX_EVENTS_PER_MS} events in one millisecond: {:?}", due.event);
                return Err(Failure { checker: "no loop", at_ms: self.now_ms, text });
            }
            if let Event::End = due.event {
                return self.facts(0, &Fact::End);
            }
            self.happen(due.event)?;
        }
        Ok(())
    }

    pub fn is_controller_down(&self) -> bool {
        self.now_ms < self.controller_down_until
    }

    /// True time in milliseconds since 1970.
    fn wall_ms(&self) -> i64 {
        EPOCH_S * 1_000 + self.now_ms as i64
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at_ms, order: self.order, event }));
    }

    fn after(&mut self, wait_ms: u64, event: Event) {
        self.at(self.now_ms.saturating_add(wait_ms), event);
    }

    fn tell(&mut self, node: usize, name: Name, text: &str) {
        self.story.line(self.now_ms, &format!("{node}/{}", name.text()), text);
    }

    fn facts(&mut self, node: usize, fact: &Fact) -> Result<(), Failure> {
        self.tell_fact(node, fact);
        let mut checkers = std::mem::take(&mut self.checkers);
        let mut result = Ok(());
        for checker in &mut checkers {
            if let Err(text) = checker.see(self, node, fact) {
                result = Err(Failure { checker: checker.name(), at_ms: self.now_ms, text });
                break;
            }
        }
        self.checkers = checkers;
        result
    }

    fn tell_fact(&mut self, node: usize, fact: &Fact) {
        match fact {
            Fact::AppStarted { spec } => {
                let text = format!("{} runs, instance {}", spec.name, spec.instance);
                self.tell(node, Name::Run, &text);
            }
            Fact::AppStopped { app, instance } => {
                let text = format!("app {app} is stopped, instance {instance}");
                self.tell(node, Name::Run, &text);
            }
            Fact::VolumeMade { key } => self.tell(node, Name::Store, &format!("volume {key} is made")),
            Fact::VolumeDropped { key } => self.tell(node, Name::Store, &format!("volume {key} goes")),
            Fact::PowerOn => self.tell(node, Name::Init, "power is on"),
            Fact::PowerOff => self.tell(node, Name::Init, "power is off"),
            Fact::Refused { text } => self.tell(node, Name::Bus, text),
            Fact::Put { frame, .. } if frame.0 == "app-status" => {
                if let Ok(status) = postcard::from_bytes::<model::status::AppStatus>(&frame.2) {
                    let faults: Vec<_> = status.faults.iter().map(|fault| fault.reason.code()).collect();
                    let text = format!("{} is {:?} {}", status.name, status.state, faults.join(" "));
                    self.tell(node, Name::Planner, text.trim_end());
                }
            }
            _ => {}
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Failure> {
        let mut out = Vec::new();
        let t = self.now_ms;
        let node = match event {
            Event::Step(number) => return self.step(number),
            Event::Refresh(node) => {
                self.refresh(node, &mut out);
                node
            }
            Event::ControllerBack => {
                if !self.is_controller_down() {
                    self.controller.restart();
                    self.story.line(t, "controller", "is back");
                }
                return Ok(());
            }
            Event::PowerOn(node) => {
                if self.nodes[node].is_on {
                    return Ok(());
                }
                self.nodes[node].power_on(t, &mut self.chance);
                let slots = &self.nodes[node].slots;
                let starts: Vec<(Name, u64)> = slots
                    .iter()
                    .filter_map(|(name, slot)| match slot.life {
                        Life::Dead { restart_ms } => Some((*name, restart_ms)),
                        _ => None,
                    })
                    .collect();
                for (name, at_ms) in starts {
                    self.at(at_ms, Event::Restart(node, name));
                }
                self.disturb(node);
                self.facts(node, &Fact::PowerOn)?;
                node
            }
            Event::Restart(node, name) => {
                let life = self.nodes[node].slots.get(&name).map(|slot| slot.life);
                if life == Some(Life::Dead { restart_ms: t }) {
                    self.nodes[node].start(t, name, &mut self.chance, &mut out);
                }
                node
            }
            Event::Resume(node, name) => {
                let life = self.nodes[node].slots.get(&name).map(|slot| slot.life);
                if life == Some(Life::Hung { until_ms: t }) {
                    self.tell(node, name, "goes on");
                    self.disturb(node);
                    self.nodes[node].resume(t, name, &mut self.chance, &mut out);
                }
                node
            }
            Event::Wake(node, name) => {
                // An earlier one took its place.
                if self.armed.get(&(node, name)) != Some(&t) {
                    return Ok(());
                }
                self.armed.remove(&(node, name));
                if self.nodes[node].deadline_ms(name).is_some_and(|at_ms| at_ms <= t) {
                    self.nodes[node].give(t, name, Input::Wake, &mut self.chance, &mut out);
                }
                node
            }
            Event::Deliver(node, name) => {
                self.nodes[node].deliver(t, name, &mut self.chance, &mut out);
                node
            }
            Event::Give { node, boot, name, incarnation, input } => {
                let is_same = incarnation.is_none_or(|i| self.incarnation(node, name) == i);
                if self.nodes[node].boots == boot && is_same {
                    self.nodes[node].give(t, name, input, &mut self.chance, &mut out);
                }
                node
            }
            Event::Shim { node, boot, app, token } => {
                if self.nodes[node].boots == boot && self.nodes[node].is_on {
                    let now = self.nodes[node].now(t);
                    let machine = &mut self.nodes[node].machine;
                    shim::take_step(machine, t, now, app, token, &mut self.chance, &mut out);
                }
                node
            }
            Event::Arrive { node, incarnation, ask, is_answer_lost } => {
                return self.arrive(node, incarnation, ask, is_answer_lost);
            }
            Event::Answer { node, incarnation, lane, reply, is_kept } => {
                return self.answer(node, incarnation, lane, reply, is_kept);
            }
            Event::HoldOver(number) => {
                if let Some(index) = self.held.iter().position(|held| held.number == number) {
                    let held = self.held.remove(index);
                    let reply = self.controller.config_answer(held.device, &held.hash);
                    self.send_back(held.node, held.incarnation, Lane::Config, reply, false);
                }
                return Ok(());
            }
            Event::Tick => {
                self.after(TICK_MS, Event::Tick);
                if self.plants.rogue_writer && t > 60 * MINUTE_MS {
                    self.nodes[0].write_rogue(Name::Run, "vault-observed", "", vec![1], &mut out);
                }
                for node in 0..self.nodes.len() {
                    self.facts(node, &Fact::Tick)?;
                }
                0
            }
            Event::End => return Ok(()),
        };
        self.carry_on(node, out)
    }

    fn incarnation(&self, node: usize, name: Name) -> u64 {
        self.nodes[node].slots.get(&name).map_or(0, |slot| slot.incarnation)
    }

    fn disturb(&mut self, node: usize) {
        self.nodes[node].last_disturbed_ms = self.now_ms;
    }

    /// Effects become events; ends that came with them happen; deadlines are set.
    fn carry_on(&mut self, node: usize, mut out: Vec<Out>) -> Result<(), Failure> {
        let mut rounds = 0;
        while !out.is_empty() {
            rounds += 1;
            let mut more = Vec::new();
            for one in out {
                self.carry_out(node, one, &mut more)?;
            }
            out = if rounds < 100 { more } else { Vec::new() };
        }
        match self.nodes[node].machine.fuse.take_blown() {
            Some(Blow::Power) => {
                let off_ms = self.chance.between(SHORT_CUT_MS.0, SHORT_CUT_MS.1);
                self.cut_power(node, off_ms)?;
            }
            Some(Blow::Process(name)) => self.kill(node, name),
            None => {}
        }
        self.arm(node);
        self.end_holds();
        Ok(())
    }

    fn arm(&mut self, node: usize) {
        for name in [Name::Agent, Name::Planner, Name::Store, Name::Net, Name::Run] {
            let Some(at_ms) = self.nodes[node].deadline_ms(name) else { continue };
            let at_ms = at_ms.max(self.now_ms);
            if self.armed.get(&(node, name)).is_none_or(|armed| at_ms < *armed) {
                self.armed.insert((node, name), at_ms);
                self.at(at_ms, Event::Wake(node, name));
            }
        }
    }

    fn carry_out(&mut self, node: usize, one: Out, _more: &mut Vec<Out>) -> Result<(), Failure> {
        let boot = self.nodes[node].boots;
        match one {
            Out::Ask(ask) => {
                if matches!(ask, Ask::TakenLogs { .. } | Ask::TakenFlows { .. }) {
                    return Ok(());
                }
                let lane = ask.lane();
                let copies = if self.plants.endless_queue && lane == Lane::Logs { 40 } else { 1 };
                let waiting = self.nodes[node].lanes.entry(lane).or_default();
                let was_empty = waiting.is_empty();
                waiting.extend(std::iter::repeat_n(ask, copies));
                if was_empty {
                    self.send_front(node, lane);
                }
            }
            Out::Deliver(name, wait_ms) => self.after(wait_ms, Event::Deliver(node, name)),
            Out::Later(wait_ms, name, input) => {
                // What a shim says reaches whichever process listens; results are for the one that asked.
                let incarnation = (!matches!(input, Input::Shim(..))).then(|| self.incarnation(node, name));
                self.after(wait_ms, Event::Give { node, boot, name, incarnation, input });
            }
            Out::Shim(wait_ms, app, token) => self.after(wait_ms, Event::Shim { node, boot, app, token }),
            Out::Fact(fact) => {
                if matches!(&fact, Fact::Put { frame, .. } if frame.0 == "config") {
                    self.disturb(node);
                }
                self.facts(node, &fact)?;
            }
            Out::Say(name, text) => self.tell(node, name, &text),
        }
        Ok(())
    }

    // ---- requests

    /// The first request of a lane goes out.
    fn send_front(&mut self, node: usize, lane: Lane) {
        let Some(ask) = self.nodes[node].lanes.get(&lane).and_then(|asks| asks.front()).cloned() else {
            return;
        };
        let incarnation = self.incarnation(node, Name::Agent);
        if let Ask::ReadLogs | Ask::ReadFlows = ask {
            // The log answers when it has lines, or says at last that it has none.
            let wait_ms = self.chance.between(LOG_LINES_MS.0, LOG_LINES_MS.1);
            return self
                .after(wait_ms, Event::Answer { node, incarnation, lane, reply: None, is_kept: false });
        }
        let none = Event::Answer { node, incarnation, lane, reply: None, is_kept: false };
        let machine = &self.nodes[node].machine;
        // Without the vault nothing is signed.
        let is_signed = !machine.is_vault_down || matches!(ask, Ask::Certs);
        let is_reachable = machine.lease.is_some() && is_signed;
        let is_answer_signed = !matches!(
            ask,
            Ask::Info { .. } | Ask::Metrics { .. } | Ask::PostLogs { .. } | Ask::PostFlows { .. }
        );
        match self.links[node].way(self.now_ms, is_reachable, is_answer_signed, &mut self.chance) {
            Way::Lost { after_ms } => self.after(after_ms, none),
            Way::Forged { after_ms, reply } => {
                let reply = Some(reply);
                self.after(after_ms, Event::Answer { node, incarnation, lane, reply, is_kept: false });
            }
            Way::There { after_ms, is_answer_lost } => {
                self.after(after_ms, Event::Arrive { node, incarnation, ask, is_answer_lost });
            }
        }
    }

    /// A request comes to the controller.
    fn arrive(
        &mut self,
        node: usize,
        incarnation: u64,
        ask: Ask,
        is_answer_lost: bool,
    ) -> Result<(), Failure> {
        let lane = ask.lane();
        if self.is_controller_down() {
            let none = Event::Answer { node, incarnation, lane, reply: None, is_kept: false };
            self.after(REFUSED_MS, none);
            return Ok(());
        }
        if self.now_ms < self.answers_until.1 {
            let reply = HttpReply { status: self.answers_until.0, untrusted_body: Vec::new() };
            self.send_back(node, incarnation, lane, reply, is_answer_lost);
            return Ok(());
        }
        let serial = self.nodes[node].machine.serial.clone();
        let reply = self.controller.handle(&serial, &ask, self.wall_ms());
        self.end_holds();
        match reply {
            Reply::Held { device, hash } => {
                self.order += 1;
                let number = self.order;
                self.held.push(Held { number, node, incarnation, device, hash });
                self.after(HOLD_MS, Event::HoldOver(number));
            }
            Reply::Now(reply) => {
                let is_kept = reply.status == 201;
                if let (true, Ask::Info { key, number, payload, .. }) = (is_kept, ask) {
                    self.facts(node, &Fact::InfoArrived { key, incarnation, number, payload })?;
                }
                self.send_back(node, incarnation, lane, reply, is_answer_lost);
            }
        }
        Ok(())
    }

    fn end_holds(&mut self) {
        let changed = self.controller.take_changed();
        for device in changed {
            let version = self.controller.published.get(&device).map(|p| p.config.version.clone());
            let text = format!("publishes config {} for {device}", version.unwrap_or_default());
            self.story.line(self.now_ms, "controller", text);
            let (over, held) = std::mem::take(&mut self.held).into_iter().partition(|h| h.device == device);
            self.held = held;
            let over: Vec<Held> = over;
            for held in over {
                self.held.push(Held { device, ..held });
                let number = self.held[self.held.len() - 1].number;
                self.after(SETTLE_MS, Event::HoldOver(number));
            }
        }
    }

    fn send_back(&mut self, node: usize, incarnation: u64, lane: Lane, reply: HttpReply, is_lost: bool) {
        let is_kept = reply.status == 201;
        let event = |reply, is_kept| Event::Answer { node, incarnation, lane, reply, is_kept };
        match self.links[node].way_back(self.now_ms, is_lost, &mut self.chance) {
            Some(after_ms) => self.after(after_ms, event(Some(reply), is_kept)),
            None => self.after(crate::link::SEND_TIMEOUT_MS, event(None, false)),
        }
    }

    /// A lane has its answer, and goes on to the next request.
    fn answer(
        &mut self,
        node: usize,
        incarnation: u64,
        lane: Lane,
        reply: Option<HttpReply>,
        is_kept: bool,
    ) -> Result<(), Failure> {
        if self.incarnation(node, Name::Agent) != incarnation {
            return Ok(());
        }
        let Some(ask) = self.nodes[node].lanes.get_mut(&lane).and_then(std::collections::VecDeque::pop_front)
        else {
            return Ok(());
        };
        let delivered = match &ask {
            Ask::Info { key, number, payload, .. } if is_kept => Some(Fact::InfoDelivered {
                key: key.clone(),
                incarnation,
                number: *number,
                payload: payload.clone(),
            }),
            _ => None,
        };
        let done = match ask {
            Ask::ReadFlows => Done::Flows { batch: None, lost: None },
            Ask::ReadLogs => Done::Logs { batch: (self.chance.between(0, 3) == 0).then_some(self.now_ms) },
            ask => {
                let silent = || reason::Fault::new(Reason::ControllerUnreachable, "no answer");
                Done::Http { ask, result: reply.ok_or_else(silent) }
            }
        };
        self.send_front(node, lane);
        let mut out = Vec::new();
        let is_up = self.nodes[node].is_up(Name::Agent);
        self.nodes[node].give(self.now_ms, Name::Agent, Input::Done(done), &mut self.chance, &mut out);
        let boots = self.nodes[node].boots;
        self.carry_on(node, out)?;
        let is_same = self.incarnation(node, Name::Agent) == incarnation
            && self.nodes[node].is_up(Name::Agent)
            && self.nodes[node].boots == boots
            && self.nodes[node].is_on;
        match delivered {
            Some(fact) if is_up && is_same => self.facts(node, &fact),
            _ => Ok(()),
        }
    }

    // ---- what happens to the world

    fn step(&mut self, number: usize) -> Result<(), Failure> {
        let Some(step) = self.scenario.steps.get(number).cloned() else { return Ok(()) };
        match step.what {
            What::Operator(action) => {
                // An operator has to wait for a controller.
                if self.is_controller_down() {
                    self.at(self.controller_down_until, Event::Step(number));
                    return Ok(());
                }
                let text = self.controller.act(action, self.wall_ms());
                self.story.line(self.now_ms, "operator", text);
                self.end_holds();
                Ok(())
            }
            What::Fault(node, fault) => {
                let node = node.min(self.nodes.len() - 1);
                self.story.line(self.now_ms, &format!("{node}"), format!("fault {fault:?}"));
                self.disturb(node);
                self.fail(node, fault)
            }
        }
    }

    fn fail(&mut self, node: usize, fault: Fault) -> Result<(), Failure> {
        let t = self.now_ms;
        let mut out = Vec::new();
        if let Some(for_ms) = self.links[node].begin(t, fault) {
            self.after(for_ms, Event::Refresh(node));
            self.refresh(node, &mut out);
        }
        match fault {
            Fault::PowerCut { off_ms } => return self.cut_power(node, off_ms),
            Fault::PowerCutAtEffect { effects } => self.nodes[node].machine.fuse.arm(Blow::Power, effects),
            Fault::Crash(name) => self.kill(node, name),
            Fault::CrashAtEffect { name, effects } => {
                self.nodes[node].machine.fuse.arm(Blow::Process(name), effects);
            }
            Fault::Hang { name, for_ms } => {
                if let Some(slot) = self.nodes[node].slots.get_mut(&name)
                    && slot.life == Life::Up
                {
                    slot.life = Life::Hung { until_ms: t + for_ms };
                    self.after(for_ms, Event::Resume(node, name));
                }
            }
            Fault::ClockStep { seconds } => {
                let clock = &mut self.nodes[node].clock;
                clock.ahead_s += seconds;
                clock.is_synchronised = false;
                self.links[node].clock_wrong_until = t + 60 * MINUTE_MS;
                self.after(60 * MINUTE_MS, Event::Refresh(node));
            }
            Fault::ClockDrift { ppm, for_ms } => {
                let clock = &mut self.nodes[node].clock;
                clock.drift = Some((t, ppm));
                clock.is_synchronised = false;
                self.links[node].clock_wrong_until = t + for_ms;
                self.after(for_ms, Event::Refresh(node));
            }
            Fault::ClockDead { for_ms } => {
                let clock = &mut self.nodes[node].clock;
                clock.ahead_s = -(EPOCH_S + (t / 1_000) as i64);
                clock.is_synchronised = false;
                self.links[node].clock_wrong_until = t + for_ms;
                self.after(for_ms, Event::Refresh(node));
            }
            Fault::AppExits { app, code } => self.end_app(node, app, Some(Exit::Code(code)), &mut out),
            Fault::ShimDies { app } => self.end_app(node, app, None, &mut out),
            Fault::ControllerDown { for_ms } => {
                self.controller_down_until = self.controller_down_until.max(t + for_ms);
                self.at(self.controller_down_until, Event::ControllerBack);
                self.drop_holds();
            }
            Fault::ControllerRestored { changes, has_reports } => {
                let now_ms = self.wall_ms();
                self.controller.restore(changes, has_reports, now_ms);
                if self.plants.restore_without_doubt {
                    self.controller.end_doubt();
                }
                self.drop_holds();
            }
            Fault::ControllerAnswers { status, for_ms } => self.answers_until = (status, t + for_ms),
            _ => {}
        }
        self.carry_on(node, out)
    }

    /// The connections of all held answers break.
    fn drop_holds(&mut self) {
        for Held { node, incarnation, .. } in std::mem::take(&mut self.held) {
            let lane = Lane::Config;
            self.after(REFUSED_MS, Event::Answer { node, incarnation, lane, reply: None, is_kept: false });
        }
    }

    fn end_app(&mut self, node: usize, number: u8, exit: Option<Exit>, out: &mut Vec<Out>) {
        let shims = &self.nodes[node].machine.shims;
        let Some(app) = shims.keys().nth(usize::from(number)).copied() else { return };
        if shim::end(&mut self.nodes[node].machine, app, exit, out) {
            self.tell(node, Name::Run, &format!("app {app} ends by itself: {exit:?}"));
        }
    }

    fn cut_power(&mut self, node: usize, off_ms: u64) -> Result<(), Failure> {
        if !self.nodes[node].is_on {
            return Ok(());
        }
        self.nodes[node].power_off(&mut self.chance);
        self.held.retain(|held| held.node != node);
        self.disturb(node);
        self.facts(node, &Fact::PowerOff)?;
        self.after(off_ms, Event::PowerOn(node));
        Ok(())
    }

    fn kill(&mut self, node: usize, name: Name) {
        self.nodes[node].kill(self.now_ms, name);
        self.disturb(node);
        if let Some(Life::Dead { restart_ms }) = self.nodes[node].slots.get(&name).map(|slot| slot.life)
            && restart_ms != u64::MAX
        {
            self.tell(node, name, "dies");
            if name == Name::Agent {
                self.held.retain(|held| held.node != node);
            }
            self.at(restart_ms, Event::Restart(node, name));
        }
    }

    /// What fails now and what does not any more.
    fn refresh(&mut self, node: usize, out: &mut Vec<Out>) {
        let t = self.now_ms;
        let link = &self.links[node];
        let machine = &mut self.nodes[node].machine;
        machine.is_vault_down = t < link.vault_down_until;
        machine.is_kernel_failing = t < link.kernel_fails_until;
        machine.is_spawn_failing = t < link.spawn_fails_until;
        machine.is_registry_down = t < link.registry_down_until || link.is_down(t) || !link.has_names(t);
        machine.disk.is_full.set(t < link.disk_full_until);
        let lease = (t >= link.lease_lost_until)
            .then(|| std::net::Ipv4Addr::new(192, 0, 2, 10 + node as u8 + link.lease_number));
        let is_news = machine.lease != lease;
        machine.lease = lease;
        if t >= link.clock_wrong_until {
            self.nodes[node].clock = crate::node::Clock::right();
        }
        self.disturb(node);
        if is_news {
            // The kernel tells net.
            self.nodes[node].give(t, Name::Net, Input::Wake, &mut self.chance, out);
        }
    }
}
