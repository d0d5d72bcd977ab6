// SPDX-License-Identifier: Apache-2.0
//! One box: its processes around the real decisions, the bus between them, and what outlives them.
//!
//! A process is a slot with a client of the bus and a body. It lives, is dead until init starts it again, or hangs; what
//! comes for it while it hangs waits. Frames travel through the real broker under the rules of the real manifests, and
//! reach their readers a little later and now and then in pieces.

pub mod agent;
pub mod init;
pub mod net;
pub mod planner;
pub mod run;
pub mod shim;
pub mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::OnceLock;

use ipc::broker::{Broker, BusFrame, Notice, Rules};
use ipc::client::{Client, Topics};
use ipc::manifest::Manifest;
use ipc::topics::Topic;
use model::id::{AppId, ContentTreeId};
use model::time::{MonoMs, Now, Wall, WallTime};
use node_agent::agent::ask::{Ask, Lane};
use node_agent::agent::http::Done;
use reconcile::Chance;

use crate::disk::Disk;
use crate::fuse::Fuse;
use crate::{EPOCH_S, Fact};

/// Wall time before this is a clock that lost its battery, as services have it.
const FLOOR_S: i64 = 1_767_225_600;
/// Time the firmware and the kernel take.
const BOOT_MS: u64 = 4_000;
/// Pause before a dead process is started again, doubling with each death to the longest.
const FIRST_RESTART_MS: u64 = 100;
const LONGEST_RESTART_MS: u64 = 30_000;
/// Deaths older than this are forgiven.
const FORGIVEN_MS: u64 = 600_000;
/// Longest way of a frame from the bus to a reader.
const BUS_MS: u64 = 4;

/// The node's processes that take part. vault and fetch answer calls only, and are played by the box itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    Agent,
    Planner,
    Store,
    Net,
    Run,
    Init,
    Bus,
}

impl Name {
    /// Those that can be made to fail.
    pub const SERVICES: [Name; 6] =
        [Name::Agent, Name::Planner, Name::Store, Name::Net, Name::Run, Name::Bus];

    pub const fn text(self) -> &'static str {
        match self {
            Name::Agent => "agent",
            Name::Planner => "planner",
            Name::Store => "store",
            Name::Net => "net",
            Name::Run => "run",
            Name::Init => "init",
            Name::Bus => "bus",
        }
    }
}

/// What wakes a process.
#[derive(Clone, Debug)]
pub enum Input {
    Start,
    Topics,
    Wake,
    Done(Done),
    /// A pull of this number has ended.
    Pulled(ContentTreeId, u64),
    /// A shim spoke, or its channel closed.
    Shim(AppId, Option<node_core::run::Shim>),
}

/// What a process has done outside, for the world to carry on.
#[derive(Debug)]
pub enum Out {
    Ask(Ask),
    /// Frames wait for this reader.
    Deliver(Name, u64),
    /// Give this to the process after so many milliseconds, if it is still the same one.
    Later(u64, Name, Input),
    /// A shim is to take its next step.
    Shim(u64, AppId, u64),
    Fact(Fact),
    /// A line of the story.
    Say(Name, String),
}

/// What a process's body is given with every input.
#[derive(Debug)]
pub struct Cx<'a> {
    pub now: Now,
    pub name: Name,
    pub topics: &'a mut Client,
    pub machine: &'a mut Machine,
    pub chance: &'a mut Chance,
    pub out: &'a mut Vec<Out>,
}

impl Cx<'_> {
    /// Whether an effect still happens.
    pub fn effect(&self) -> bool {
        self.machine.fuse.effect(self.name)
    }

    pub fn put<T: Topic>(&mut self, key: &str, value: &T::Value) {
        Topics::publish::<T>(self.topics, key, value);
    }

    pub fn take_away<T: Topic>(&mut self, key: &str) {
        Topics::remove::<T>(self.topics, key);
    }

    pub fn all_stand<T: Topic>(&mut self) {
        Topics::synced::<T>(self.topics);
    }

    /// Takes away keys that no longer stand and says that the others are all.
    pub fn replace_keys<T: Topic>(&mut self, old: &mut BTreeSet<String>, new: BTreeSet<String>) {
        for key in old.difference(&new) {
            self.take_away::<T>(key);
        }
        self.all_stand::<T>();
        *old = new;
    }

    pub fn all<T: Topic>(&self) -> BTreeMap<String, T::Value> {
        Topics::all::<T>(self.topics)
    }

    pub fn is_synced<T: Topic>(&self) -> bool {
        Topics::is_synced::<T>(self.topics)
    }

    pub fn say(&mut self, text: impl Into<String>) {
        self.out.push(Out::Say(self.name, text.into()));
    }
}

/// What outlives processes: hardware, kernel, shims.
#[derive(Debug)]
pub struct Machine {
    pub serial: String,
    pub disk: Rc<Disk>,
    pub fuse: Rc<Fuse>,
    pub shims: BTreeMap<AppId, shim::Shim>,
    /// Apps whose interfaces the kernel's rules stand for; of the last round of net.
    pub attachable: BTreeMap<AppId, Option<model::reason::Fault>>,
    pub is_net_alive: bool,
    pub lease: Option<Ipv4Addr>,
    pub is_vault_down: bool,
    pub is_kernel_failing: bool,
    pub is_registry_down: bool,
    pub is_spawn_failing: bool,
    pub restart_counter: u32,
    pub next_token: u64,
}

impl Machine {
    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}

/// How a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Up,
    Dead { restart_ms: u64 },
    Hung { until_ms: u64 },
}

#[derive(Debug)]
enum Body {
    Agent(agent::Agent),
    Planner(Box<planner::Process>),
    Store(store::Store),
    Net(net::Net),
    Run(run::Run),
    Init(init::Init),
}

#[derive(Debug)]
pub struct Slot {
    pub life: Life,
    /// Counts the processes that were.
    pub incarnation: u64,
    client: Client,
    body: Option<Body>,
    deaths: Vec<u64>,
    /// What came while it hung.
    inbox: VecDeque<Input>,
    is_delivering: bool,
}

/// Value of a topic on its way.
pub type Frame = Rc<(String, String, Vec<u8>)>;

/// The clock of a box.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// What it shows is so much ahead of true time.
    pub ahead_s: i64,
    /// Since then it gains so many millionths.
    pub drift: Option<(u64, i32)>,
    /// Steered by a time source.
    pub is_synchronised: bool,
}

impl Clock {
    /// As a time source keeps it.
    pub fn right() -> Clock {
        Clock { ahead_s: 0, drift: None, is_synchronised: true }
    }

    /// What it shows at a moment of the world.
    fn time(&self, t: u64) -> WallTime {
        let gained = |(since, ppm): (u64, i32)| t.saturating_sub(since) as i64 * i64::from(ppm) / 1_000_000;
        let ms = (EPOCH_S + self.ahead_s) * 1_000 + t as i64 + self.drift.map_or(0, gained);
        WallTime { seconds: ms.div_euclid(1_000), nanos: ms.rem_euclid(1_000) as u32 * 1_000_000 }
    }
}

/// A box.
#[derive(Debug)]
pub struct Node {
    pub index: usize,
    pub is_on: bool,
    pub booted_ms: u64,
    pub boots: u64,
    pub clock: Clock,
    pub machine: Machine,
    pub slots: BTreeMap<Name, Slot>,
    bus: Option<Broker<Frame>>,
    /// Requests that wait in their lanes, the first of each under way.
    pub lanes: BTreeMap<Lane, VecDeque<Ask>>,
    pub last_disturbed_ms: u64,
    rules: Rules,
    plants: Plants,
}

/// Faults built into a node's own code, by which the tests show that the checkers see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plants {
    pub planner: Option<planner::Plant>,
    pub store_drops_used: bool,
    pub agent_forgets_seal: bool,
    pub agent_sends_twice: bool,
    pub run_stops_offline: bool,
    pub rogue_writer: bool,
    pub lying_disk: bool,
    pub endless_queue: bool,
    /// The controller goes on from a backup as if nothing had happened since.
    pub restore_without_doubt: bool,
}

/// Who may read and write what, from the manifests of the product.
pub fn rules(plants: Plants) -> Rules {
    static READERS: OnceLock<BTreeMap<String, Vec<String>>> = OnceLock::new();
    let readers = READERS.get_or_init(|| {
        let texts = [
            include_str!("../../../../services/agent.toml"),
            include_str!("../../../../services/planner.toml"),
            include_str!("../../../../services/store.toml"),
            include_str!("../../../../services/net.toml"),
            include_str!("../../../../services/run.toml"),
        ];
        let manifests = texts.iter().filter_map(|text| Manifest::parse(text).ok());
        manifests.map(|manifest| (manifest.name, manifest.reads)).collect()
    });
    // The planted one lets run write what is the vault's.
    let writer =
        |topic: &str, writer| if plants.rogue_writer && topic == "vault-observed" { "run" } else { writer };
    let topics: Vec<(&str, &str)> =
        ipc::topics::ALL.iter().map(|(topic, owner)| (*topic, writer(topic, *owner))).collect();
    Rules::new(&topics, readers)
}

impl Node {
    pub fn new(index: usize, plants: Plants) -> Node {
        let fuse = Rc::new(Fuse::default());
        let machine = Machine {
            serial: format!("SIM-{index:03}"),
            disk: Rc::new(Disk::new(fuse.clone())),
            fuse,
            shims: BTreeMap::new(),
            attachable: BTreeMap::new(),
            is_net_alive: false,
            lease: Some(Ipv4Addr::new(192, 0, 2, 10 + index as u8)),
            is_vault_down: false,
            is_kernel_failing: false,
            is_registry_down: false,
            is_spawn_failing: false,
            restart_counter: 0,
            next_token: 0,
        };
        Node {
            index,
            is_on: false,
            booted_ms: 0,
            boots: 0,
            clock: Clock::right(),
            machine,
            slots: BTreeMap::new(),
            bus: None,
            lanes: BTreeMap::new(),
            last_disturbed_ms: 0,
            rules: rules(plants),
            plants,
        }
    }

    pub fn now(&self, t: u64) -> Now {
        let mono = MonoMs(t.saturating_sub(self.booted_ms) + BOOT_MS);
        let wall = self.clock.time(t);
        let wall = match wall.seconds {
            ..FLOOR_S => Wall::Unset,
            _ if self.clock.is_synchronised => Wall::Trusted(wall),
            _ => Wall::Plausible(wall),
        };
        Now { mono, wall }
    }

    /// World time of a moment of this box.
    pub fn world_ms(&self, at: MonoMs) -> u64 {
        (self.booted_ms + at.0).saturating_sub(BOOT_MS)
    }

    /// Power comes: init starts, and soon everything else.
    pub fn power_on(&mut self, t: u64, chance: &mut Chance) {
        self.is_on = true;
        self.booted_ms = t;
        self.boots += 1;
        self.machine.restart_counter += 1;
        self.bus = Some(Broker::new(self.rules.clone()));
        let names = [Name::Init, Name::Bus, Name::Agent, Name::Planner, Name::Store, Name::Net, Name::Run];
        for name in names {
            let incarnation = self.slots.get(&name).map_or(0, |slot| slot.incarnation);
            let restart_ms = match name {
                Name::Init | Name::Bus => t + BOOT_MS,
                _ => t + BOOT_MS + chance.between(20, 900),
            };
            let slot = Slot {
                life: Life::Dead { restart_ms },
                incarnation,
                client: Client::default(),
                body: None,
                deaths: Vec::new(),
                inbox: VecDeque::new(),
                is_delivering: false,
            };
            self.slots.insert(name, slot);
        }
    }

    /// Power goes.
    pub fn power_off(&mut self, chance: &mut Chance) {
        self.is_on = false;
        self.machine.disk.cut(chance);
        self.machine.shims.clear();
        self.machine.attachable.clear();
        self.machine.is_net_alive = false;
        self.bus = None;
        self.lanes.clear();
        self.machine.fuse.disarm();
        for slot in self.slots.values_mut() {
            slot.life = Life::Dead { restart_ms: u64::MAX };
            slot.body = None;
            slot.inbox.clear();
        }
    }

    /// A process dies; init starts it again after a pause.
    pub fn kill(&mut self, t: u64, name: Name) {
        let Some(slot) = self.slots.get_mut(&name) else { return };
        if matches!(slot.life, Life::Dead { .. }) {
            return;
        }
        slot.deaths.retain(|at| t - at < FORGIVEN_MS);
        let wait_ms = FIRST_RESTART_MS.saturating_mul(1 << slot.deaths.len().min(20)).min(LONGEST_RESTART_MS);
        slot.deaths.push(t);
        slot.life = Life::Dead { restart_ms: t + wait_ms };
        slot.body = None;
        slot.inbox.clear();
        slot.client = Client::default();
        slot.is_delivering = false;
        match name {
            Name::Bus => self.bus = None,
            Name::Agent => self.lanes.clear(),
            Name::Net => self.machine.is_net_alive = false,
            _ => {}
        }
        if let Some(bus) = &mut self.bus {
            bus.disconnect(name.text());
        }
    }

    /// A dead process is started.
    pub fn start(&mut self, t: u64, name: Name, chance: &mut Chance, out: &mut Vec<Out>) {
        let Some(slot) = self.slots.get_mut(&name) else { return };
        slot.life = Life::Up;
        slot.incarnation += 1;
        if name == Name::Bus {
            let mut bus = Broker::new(self.rules.clone());
            for (name, slot) in &mut self.slots {
                if slot.body.is_some() {
                    bus.connect(name.text());
                    slot.client.connected();
                    slot.is_delivering = false;
                }
            }
            self.bus = Some(bus);
            let names: Vec<Name> = self.slots.keys().copied().collect();
            names.into_iter().for_each(|name| self.flush(name, chance, out));
            return;
        }
        if let Some(bus) = &mut self.bus {
            bus.connect(name.text());
        }
        let disk = self.machine.disk.clone();
        slot.body = Some(match name {
            Name::Agent => Body::Agent(agent::Agent::new(self.plants)),
            Name::Planner => Body::Planner(Box::new(planner::Process::load(disk, self.plants.planner))),
            Name::Store => Body::Store(store::Store::load(disk, self.plants.store_drops_used)),
            Name::Net => Body::Net(net::Net::default()),
            Name::Run => Body::Run(run::Run::new(self.plants)),
            Name::Init | Name::Bus => Body::Init(init::Init),
        });
        self.give(t, name, Input::Start, chance, out);
    }

    /// Ends a hang: what waited is taken now.
    pub fn resume(&mut self, t: u64, name: Name, chance: &mut Chance, out: &mut Vec<Out>) {
        let Some(slot) = self.slots.get_mut(&name) else { return };
        if !matches!(slot.life, Life::Hung { .. }) {
            return;
        }
        slot.life = Life::Up;
        if name == Name::Bus {
            let names: Vec<Name> = self.slots.keys().copied().collect();
            names.into_iter().for_each(|name| self.flush(name, chance, out));
            return;
        }
        let inbox = std::mem::take(&mut slot.inbox);
        for input in inbox {
            self.give(t, name, input, chance, out);
        }
        self.give(t, name, Input::Wake, chance, out);
        self.deliver(t, name, chance, out);
    }

    pub fn is_up(&self, name: Name) -> bool {
        self.slots.get(&name).is_some_and(|slot| slot.life == Life::Up)
    }

    /// Gives a process something; waits while it hangs, is lost when it is dead.
    pub fn give(&mut self, t: u64, name: Name, input: Input, chance: &mut Chance, out: &mut Vec<Out>) {
        let now = self.now(t);
        self.machine.disk.now_ms.set(t);
        let Some(slot) = self.slots.get_mut(&name) else { return };
        match slot.life {
            Life::Dead { .. } => return,
            Life::Hung { .. } => {
                if !matches!(input, Input::Wake | Input::Topics) {
                    slot.inbox.push_back(input);
                }
                return;
            }
            Life::Up => {}
        }
        let Some(mut body) = slot.body.take() else { return };
        let cx = &mut Cx { now, name, topics: &mut slot.client, machine: &mut self.machine, chance, out };
        match &mut body {
            Body::Agent(agent) => agent.handle(cx, input),
            Body::Planner(planner) => planner.handle(cx, &input),
            Body::Store(store) => store.handle(cx, input),
            Body::Net(net) => net.handle(cx, &input),
            Body::Run(run) => run.handle(cx, input),
            Body::Init(init) => init.handle(cx, &input),
        }
        slot.body = Some(body);
        self.flush(name, chance, out);
    }

    /// World time at which a process wants to be woken.
    pub fn deadline_ms(&self, name: Name) -> Option<u64> {
        let slot = self.slots.get(&name).filter(|slot| slot.life == Life::Up)?;
        let at = match slot.body.as_ref()? {
            Body::Agent(agent) => agent.deadline(),
            Body::Planner(planner) => planner.deadline(),
            Body::Store(store) => store.deadline(),
            Body::Net(net) => net.deadline(),
            Body::Run(run) => run.deadline(),
            Body::Init(_) => None,
        };
        at.map(|at| self.world_ms(at))
    }

    /// Says what a process published to the bus.
    fn flush(&mut self, name: Name, chance: &mut Chance, out: &mut Vec<Out>) {
        let is_bus_up = self.is_up(Name::Bus);
        let (Some(slot), Some(bus)) = (self.slots.get_mut(&name), &mut self.bus) else { return };
        if !is_bus_up {
            return;
        }
        let writer = name.text();
        while let Some(frame) = slot.client.front() {
            if !self.machine.fuse.effect(name) {
                return;
            }
            let refused = match frame {
                BusFrame::Subscribe { topic } => bus.subscribe(writer, topic).err(),
                BusFrame::Put { topic, key, value } => {
                    let frame: Frame = Rc::new((topic.into(), key.into(), value.to_vec()));
                    let bytes = value.len() + topic.len() + key.len();
                    match bus.put(writer, topic, key, frame.clone(), bytes) {
                        Ok(()) => {
                            out.push(Out::Fact(Fact::Put { writer: name, frame }));
                            None
                        }
                        Err(refused) => Some(refused),
                    }
                }
                BusFrame::Remove { topic, key } => {
                    let fact = Fact::Removed { topic: topic.into(), key: key.into() };
                    out.push(Out::Fact(fact));
                    bus.remove(writer, topic, key).err()
                }
                BusFrame::Synced { topic } => bus.synced(writer, topic).err(),
            };
            if let Some(refused) = refused {
                out.push(Out::Fact(Fact::Refused { text: refused.to_string() }));
            }
            slot.client.sent();
        }
        let waiting: Vec<&str> = bus.waiting().collect();
        for (name, slot) in &mut self.slots {
            if !slot.is_delivering && waiting.contains(&name.text()) {
                slot.is_delivering = true;
                out.push(Out::Deliver(*name, chance.between(0, BUS_MS)));
            }
        }
    }

    /// Gives a reader what waits for it, all or a part.
    pub fn deliver(&mut self, t: u64, name: Name, chance: &mut Chance, out: &mut Vec<Out>) {
        let is_bus_up = self.is_up(Name::Bus);
        let (Some(slot), Some(bus)) = (self.slots.get_mut(&name), &mut self.bus) else { return };
        slot.is_delivering = false;
        if slot.life != Life::Up || !is_bus_up {
            return;
        }
        let most = if chance.between(0, 3) == 0 { chance.between(1, 6) } else { 256 };
        let mut changed = BTreeSet::new();
        for _ in 0..most {
            let Some(notice) = bus.front(name.text()) else { break };
            changed.extend(match &notice {
                Notice::Put(frame) => {
                    slot.client.see(&BusFrame::Put { topic: &frame.0, key: &frame.1, value: &frame.2 })
                }
                Notice::Remove { topic, key } => slot.client.see(&BusFrame::Remove { topic, key }),
                Notice::Synced { topic } => slot.client.see(&BusFrame::Synced { topic }),
            });
            bus.sent(name.text());
        }
        if bus.front(name.text()).is_some() {
            slot.is_delivering = true;
            out.push(Out::Deliver(name, chance.between(0, BUS_MS)));
        }
        if !changed.is_empty() {
            self.give(t, name, Input::Topics, chance, out);
        }
    }

    /// A frame written past the rules of its writer, for the test of the checker.
    pub fn write_rogue(&mut self, writer: Name, topic: &str, key: &str, value: Vec<u8>, out: &mut Vec<Out>) {
        let Some(bus) = &mut self.bus else { return };
        let frame: Frame = Rc::new((topic.into(), key.into(), value));
        if bus.put(writer.text(), topic, key, frame.clone(), 1).is_ok() {
            out.push(Out::Fact(Fact::Put { writer, frame }));
        }
    }

    pub fn agent(&self) -> Option<&node_agent::agent::core::Core> {
        match self.slots.get(&Name::Agent)?.body.as_ref()? {
            Body::Agent(agent) => agent.core(),
            _ => None,
        }
    }

    /// The app is not ordered, nothing of it is there, and the planner knows nothing of it: it would be a new one.
    pub fn has_forgotten(&self, app: AppId) -> bool {
        let config = self.agent().and_then(node_agent::agent::core::Core::config);
        let is_ordered = config.is_none_or(|config| config.apps.iter().any(|ordered| ordered.id == app));
        let is_known = self.planner().is_none_or(|planner| planner.state().0.apps.contains_key(&app));
        !is_ordered && !is_known && !self.machine.shims.contains_key(&app)
    }

    pub fn planner(&self) -> Option<&node_base::planner::Planner> {
        match self.slots.get(&Name::Planner)?.body.as_ref()? {
            Body::Planner(planner) => Some(planner.planner()),
            _ => None,
        }
    }

    pub fn store(&self) -> Option<&store::Store> {
        match self.slots.get(&Name::Store)?.body.as_ref()? {
            Body::Store(store) => Some(store),
            _ => None,
        }
    }

    /// Topics as a process sees them.
    pub fn topics(&self, name: Name) -> Option<&Client> {
        self.slots.get(&name).map(|slot| &slot.client)
    }
}
