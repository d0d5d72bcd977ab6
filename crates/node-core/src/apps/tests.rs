// SPDX-License-Identifier: Apache-2.0
//! The planner against a small world that does what it is told, one step per round.

extern crate std;

mod volumes;

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;

use model::config::*;
use model::desired::{ContentSources, ImageConfig};
use model::id::*;
use model::observed::*;
use model::reason::Reason;
use model::status::SwState;
use model::time::MonoMs;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Rounds in which any single change must have settled: each takes one step per round.
const ROUNDS_MAX: usize = 12;

fn uuid(kind: u8, number: u8) -> Uuid {
    Uuid::from_bytes([kind, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
}

fn app(number: u8) -> AppInstance {
    AppInstance {
        id: AppId(uuid(6, number)),
        version: "1".into(),
        name: alloc::format!("App {number}"),
        is_active: true,
        resources: Resources { memory_bytes: 64 << 20, vcpus: 1, mode: VirtualizationMode::NoHyper },
        volumes: vec![VolumeRef {
            key: VolumeKey { id: VolumeId(uuid(5, number)), generation: 0 },
            mount_dir: String::new(),
        }],
        interfaces: vec![AppInterface {
            name: "eth0".into(),
            network: NetworkInstanceId(uuid(2, 1)),
            mac: None,
            address: None,
            acl: vec![AclRule {
                id: 1,
                direction: AclDirection::Both,
                matches: AclMatch {
                    protocol: Some(AclProtocol::Tcp),
                    local_port: Some(PortRange {
                        first: 8000 + u16::from(number),
                        last: 8000 + u16::from(number),
                    }),
                    ..AclMatch::default()
                },
                action: AclAction::PortMap { app_port: 80 },
            }],
        }],
        restart_counter: 0,
        purge_counter: 0,
        user_data: None,
        profiles: vec![],
        start_delay_s: 0,
        adapters: vec![],
    }
}

fn config(apps: &[AppInstance]) -> DeviceConfig {
    let mut config = DeviceConfig::empty(DeviceId(uuid(1, 1)));
    config.physical_ios = vec![PhysicalIo {
        kind: 1,
        physical_label: "eth0".into(),
        logical_label: "eth0".into(),
        assignment_group: "eth0".into(),
        interface: Some("eth0".into()),
        usage: 1,
    }];
    config.system_adapters = vec![SystemAdapter {
        name: "eth0".into(),
        lower_layer: "".into(),
        network: None,
        is_uplink: true,
        cost: 0,
        shared_labels: vec![],
    }];
    config.network_instances = vec![NetworkInstance {
        id: NetworkInstanceId(uuid(2, 1)),
        version: "1".into(),
        name: "local".into(),
        is_active: true,
        port: "uplink".into(),
        mtu: 0,
        is_flow_logged: false,
        kind: NetworkInstanceKind::Local(LocalNetwork {
            domain: String::new(),
            ntp: Vec::new(),
            routes: Vec::new(),
            routes_uplinks: false,
            subnet: "10.11.12.0/24".parse().unwrap(),
            gateway: "10.11.12.1".parse().unwrap(),
            dns: vec![],
            range: ("10.11.12.2".parse().unwrap(), "10.11.12.254".parse().unwrap()),
            static_names: vec![],
        }),
    }];
    config.datastores = vec![Datastore {
        id: DatastoreId(uuid(3, 1)),
        kind: DatastoreKind::ContainerRegistry,
        fqdn: "docker://registry.example".into(),
        path: "".into(),
        credentials: None,
        ca_pem: vec![],
    }];
    for app in apps {
        let number = app.id.0.as_bytes()[15];
        let tree = ContentTreeId(uuid(4, number));
        config.content_trees.push(ContentTree {
            id: tree,
            name: app.name.clone(),
            datastores: vec![DatastoreId(uuid(3, 1))],
            url: "web:1".into(),
            format: ContentFormat::Container,
            digest: None,
            max_size_bytes: 0,
            generation: 0,
        });
        for used in &app.volumes {
            config.volumes.push(Volume {
                key: used.key,
                name: app.name.clone(),
                origin: VolumeOrigin::Content(tree),
                max_size_bytes: 0,
                is_read_only: false,
            });
        }
    }
    config.apps = apps.to_vec();
    config
}

/// Does what it is told; remembers every instance of an app it ever ran.
struct World {
    observed: Observed,
    memory: Memory,
    desired: Desired,
    last: Option<Plan>,
    /// Root volume of every instance ever ordered.
    roots: BTreeMap<(AppId, u64), VolumeKey>,
}

impl World {
    fn new() -> World {
        let mut observed = Observed::default();
        observed.ports.insert(
            "eth0".into(),
            PortObserved {
                name: "eth0".into(),
                mac: None,
                is_up: true,
                mtu: 1500,
                addresses: vec![],
                gateways: vec![],
                dns: vec![],
                search: Vec::new(),
            },
        );
        World {
            observed,
            memory: Memory::default(),
            desired: Desired::default(),
            last: None,
            roots: BTreeMap::new(),
        }
    }

    fn round(&mut self, config: &DeviceConfig) -> bool {
        let plan = plan(config, &self.observed, &self.memory, &self.desired);
        let again = super::plan(config, &self.observed, &self.memory, &self.desired);
        assert_eq!(plan, again, "same inputs, same plan");
        self.check(&plan);
        let before = (self.observed.clone(), self.memory.clone(), self.desired.clone());
        self.memory = plan.memory.clone();
        self.desired = plan.desired.clone();
        self.roots.extend(plan.desired.apps.values().map(|a| ((a.app, a.instance), a.root)));
        self.last = Some(plan);
        self.obey();
        before != (self.observed.clone(), self.memory.clone(), self.desired.clone())
    }

    fn settle(&mut self, config: &DeviceConfig) {
        for _ in 0..ROUNDS_MAX {
            if !self.round(config) {
                return;
            }
        }
        panic!("not settled after {ROUNDS_MAX} rounds");
    }

    /// What must hold between any two steps.
    fn check(&self, plan: &Plan) {
        for (id, seen) in &self.observed.apps {
            if is_alive(seen) {
                let root = self.roots[&(*id, seen.instance)];
                assert!(plan.desired.volumes.contains_key(&root), "volume of a living app goes");
                if self.desired.vifs.contains_key(id) {
                    assert!(plan.desired.vifs.contains_key(id), "interfaces of a living app go");
                }
            }
        }
        for app in plan.desired.apps.values() {
            assert!(plan.desired.volumes.contains_key(&app.root), "volume of an ordered app goes");
            assert!(self.observed.volumes.contains_key(&app.root), "ordered without its volume");
        }
        for vifs in plan.desired.vifs.values() {
            for vif in &vifs.vifs {
                assert!(plan.desired.networks.contains_key(&vif.network), "network of an interface goes");
                assert!(vif.host_name.len() <= 15);
            }
        }
        let addresses: Vec<_> =
            plan.desired.vifs.values().flat_map(|v| &v.vifs).map(|v| (v.network, v.address)).collect();
        let unique: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(unique.len(), addresses.len(), "an address is given twice");
        for (id, app) in &plan.memory.apps {
            if let Some(old) = self.memory.apps.get(id) {
                assert!(app.instance >= old.instance, "instance goes back");
                assert!(app.local_generation >= old.local_generation, "generation goes back");
            }
        }
    }

    /// One step of every process.
    fn obey(&mut self) {
        let o = &mut self.observed;
        o.volumes.retain(|key, _| self.desired.volumes.contains_key(key));
        for (key, want) in &self.desired.volumes {
            if o.volumes.contains_key(key) {
                continue;
            }
            let content = match want.origin {
                VolumeOrigin::Blank => None,
                VolumeOrigin::Content(tree) => o.content.get(&tree).map(|c| &c.state),
            };
            let made = match (want.origin, content) {
                (VolumeOrigin::Blank, _) => Some(MadeVolume::Directory),
                (_, Some(ContentState::Loaded(image))) => Some(MadeVolume::Image(image.clone())),
                (_, Some(ContentState::LoadedFile(file))) => Some(MadeVolume::File(file.digest)),
                _ => None,
            };
            if made.is_some() {
                o.volumes.insert(*key, VolumeObserved { key: *key, made, used_bytes: 0, fault: None });
            }
        }
        o.content.retain(|id, _| self.desired.content.contains_key(id));
        for (id, want) in &self.desired.content {
            let image = Image {
                digest: Digest([7; 32]),
                total_bytes: 1000,
                config: ImageConfig { entrypoint: vec!["/bin/web".into()], ..ImageConfig::default() },
                layers: vec![Digest([8; 32])],
                blobs: vec![],
            };
            let state = match o.content.get(id).map(|c| &c.state) {
                None => ContentState::ResolvingTag,
                Some(ContentState::ResolvingTag) => {
                    ContentState::Downloading { digest: Digest([7; 32]), done_bytes: 10, total_bytes: 1000 }
                }
                Some(_) => match want.sources {
                    ContentSources::Registries(_) => ContentState::Loaded(image),
                    ContentSources::Servers(_) => ContentState::LoadedFile(Blob {
                        digest: Digest([9; 32]),
                        size_bytes: 5,
                        media_type: String::new(),
                    }),
                },
            };
            o.content
                .insert(*id, ContentObserved { id: *id, generation: want.generation, state, fault: None });
        }
        o.networks = self
            .desired
            .networks
            .values()
            .map(|n| {
                let bridge = alloc::format!("bn{}", n.number);
                (
                    n.id,
                    NetworkObserved { id: n.id, bridge, is_up: true, mtu: 1500, uplink: None, fault: None },
                )
            })
            .collect();
        o.vifs = self
            .desired
            .vifs
            .values()
            .map(|v| {
                let seen = |vif: &model::desired::VifDesired| VifObserved {
                    name: vif.name.clone(),
                    host_name: vif.host_name.clone(),
                    mac: vif.mac,
                    address: vif.address,
                    is_ready: true,
                    fault: None,
                };
                (v.app, VifsObserved { app: v.app, vifs: v.vifs.iter().map(seen).collect() })
            })
            .collect();
        let seen: Vec<AppId> = o.apps.keys().chain(self.desired.apps.keys()).copied().collect();
        for id in seen {
            let want = self.desired.apps.get(&id);
            let running = RunState::Running { since: MonoMs(1), started_at: None };
            let next = match (want, o.apps.get(&id)) {
                (None, Some(seen)) if is_alive(seen) => Some((seen.instance, RunState::Halted)),
                (None, _) => None,
                (Some(want), None) => Some((want.instance, RunState::Starting)),
                (Some(want), Some(seen)) if seen.instance != want.instance => {
                    Some((want.instance, RunState::Starting))
                }
                (Some(want), Some(_)) => Some((want.instance, running)),
            };
            match next {
                Some((instance, state)) => {
                    o.apps.insert(
                        id,
                        AppObserved { app: id, instance, state, starts: 1, health: None, fault: None },
                    );
                }
                None => {
                    o.apps.remove(&id);
                }
            }
        }
    }

    /// What runs is gone with the power; what is on the disk stays.
    fn cut_power(&mut self) {
        self.observed.apps.clear();
        self.observed.vifs.clear();
        self.observed.networks.clear();
    }

    fn state(&self, number: u8) -> SwState {
        self.status(number).state
    }
    fn status(&self, number: u8) -> &AppStatus {
        &self.last.as_ref().unwrap().status.apps[&AppId(uuid(6, number))]
    }
    fn reasons(&self, number: u8) -> Vec<Reason> {
        self.status(number).faults.iter().map(|f| f.reason).collect()
    }
    fn instance(&self, number: u8) -> u64 {
        self.observed.apps[&AppId(uuid(6, number))].instance
    }
}

#[test]
fn an_app_comes_up_in_the_order_the_operator_is_told() {
    let mut world = World::new();
    let config = config(&[app(1)]);
    let mut story = vec![];
    for _ in 0..ROUNDS_MAX {
        world.round(&config);
        if story.last() != Some(&world.state(1)) {
            story.push(world.state(1));
        }
    }
    use SwState::*;
    assert_eq!(
        story,
        [Initial, ResolvingTag, Downloading, CreatingVolume, Booting, Running].as_slice(),
        "{story:?}"
    );
}

#[test]
fn restart_counter_starts_a_new_instance_and_keeps_the_volume() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let (instance, volumes) = (world.instance(1), world.desired.volumes.clone());
    let mut changed = app(1);
    changed.restart_counter = 1;
    world.settle(&config(&[changed]));
    assert_eq!((world.state(1), world.instance(1)), (SwState::Running, instance + 1));
    assert_eq!(world.desired.volumes, volumes);
}

#[test]
fn purge_counter_alone_makes_a_new_volume_of_the_nodes_own() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let old = world.desired.apps[&AppId(uuid(6, 1))].root;
    let mut changed = app(1);
    changed.purge_counter = 1;
    world.settle(&config(&[changed.clone()]));
    let new = world.desired.apps[&AppId(uuid(6, 1))].root;
    assert_eq!((new.id, new.generation), (old.id, old.generation + 1));
    assert!(!world.desired.volumes.contains_key(&old), "the old volume goes");
    assert_eq!(world.state(1), SwState::Running);
    world.settle(&config(&[changed]));
    assert_eq!(world.desired.apps[&AppId(uuid(6, 1))].root, new, "purged once");
}

#[test]
fn purge_with_a_raised_generation_uses_that_one() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let mut changed = app(1);
    changed.purge_counter = 1;
    changed.volumes[0].key.generation = 5;
    world.settle(&config(&[changed]));
    assert_eq!(world.desired.apps[&AppId(uuid(6, 1))].root.generation, 5);
    assert_eq!(world.state(1), SwState::Running);
}

#[test]
fn changes_without_their_counter_are_reported_and_the_app_runs_on() {
    for (change, reason) in [
        (
            Box::new(|a: &mut AppInstance| a.resources.memory_bytes = 1 << 20)
                as Box<dyn Fn(&mut AppInstance)>,
            Reason::RestartNeeded,
        ),
        (Box::new(|a: &mut AppInstance| a.volumes[0].key.generation = 9), Reason::PurgeNeeded),
    ] {
        let mut world = World::new();
        world.settle(&config(&[app(1)]));
        let instance = world.instance(1);
        let mut changed = app(1);
        change(&mut changed);
        world.settle(&config(&[changed]));
        assert_eq!((world.state(1), world.instance(1)), (SwState::Running, instance));
        assert_eq!(world.reasons(1), [reason]);
    }
}

#[test]
fn an_acl_reaches_the_running_app_at_once() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let instance = world.instance(1);
    let mut changed = app(1);
    changed.interfaces[0].acl.clear();
    world.settle(&config(&[changed]));
    assert!(world.desired.vifs[&AppId(uuid(6, 1))].vifs[0].acl.is_empty());
    assert_eq!(world.instance(1), instance);
}

#[test]
fn deactivated_app_halts_and_keeps_its_volume() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let mut changed = app(1);
    changed.is_active = false;
    world.settle(&config(&[changed]));
    assert_eq!(world.state(1), SwState::Halted);
    assert_eq!(world.desired.volumes.len(), 1);
    assert!(world.desired.vifs.is_empty());
}

#[test]
fn deleted_app_leaves_nothing() {
    let mut world = World::new();
    world.settle(&config(&[app(1), app(2)]));
    world.settle(&config(&[app(2)]));
    assert_eq!(world.desired.apps.len(), 1);
    assert_eq!(world.desired.volumes.len(), 1);
    assert_eq!(world.memory.apps.len(), 1);
    assert_eq!(world.state(2), SwState::Running);
}

#[test]
fn an_app_that_wants_a_hypervisor_never_runs_without() {
    for mode in
        [VirtualizationMode::Pv, VirtualizationMode::Hvm, VirtualizationMode::Fml, VirtualizationMode::Legacy]
    {
        let mut world = World::new();
        let mut vm = app(1);
        vm.resources.mode = mode;
        world.settle(&config(&[vm, app(2)]));
        assert_eq!((world.state(1), world.state(2)), (SwState::Failed, SwState::Running));
        assert_eq!(world.reasons(1), [Reason::IsolationUnavailable]);
        assert_eq!(world.desired.apps.len(), 1);
    }
}

#[test]
fn the_older_app_keeps_a_port_two_want() {
    let mut world = World::new();
    world.settle(&config(&[app(2)]));
    let mut thief = app(1);
    thief.interfaces[0].acl = app(2).interfaces[0].acl.clone();
    world.settle(&config(&[thief, app(2)]));
    assert_eq!((world.state(1), world.state(2)), (SwState::Failed, SwState::Running));
    assert_eq!(world.reasons(1), [Reason::AddressConflict]);
}

#[test]
fn maintenance_mode_changes_nothing() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let mut quiet = config(&[]);
    quiet.items.push(ConfigItem { key: "maintenance.mode".into(), value: "enabled".into() });
    let before = world.desired.clone();
    world.settle(&quiet);
    assert_eq!(world.desired, before);
}

#[test]
fn a_reference_to_something_missing_strikes_only_its_app() {
    let mut world = World::new();
    let mut broken = config(&[app(1), app(2)]);
    broken.volumes.remove(0);
    world.settle(&broken);
    assert_eq!((world.state(1), world.state(2)), (SwState::Failed, SwState::Running));
    assert_eq!(world.reasons(1), [Reason::MissingReference]);
}

#[test]
fn an_app_that_cannot_be_read_any_more_runs_on() {
    let mut world = World::new();
    world.settle(&config(&[app(1), app(2)]));
    let before = world.desired.clone();
    let mut broken = config(&[app(2)]);
    let fault =
        |object| ConfigFault { object, fault: model::reason::Fault::new(Reason::InvalidConfig, "apps[0]") };
    broken.faults.push(fault(ObjectRef::App(AppId(uuid(6, 1)))));
    broken.faults.push(fault(ObjectRef::Volume(app(1).volumes[0].key)));
    broken.faults.push(fault(ObjectRef::ContentTree(ContentTreeId(uuid(4, 1)))));
    world.settle(&broken);
    assert_eq!(world.desired, before);
    assert_eq!((world.state(1), world.reasons(1)), (SwState::Running, vec![Reason::InvalidConfig]));
    world.settle(&config(&[app(2)]));
    assert_eq!(world.desired.apps.len(), 1, "deleted once it is really absent");
}

#[test]
fn what_was_committed_survives_a_restart_of_everything() {
    let mut world = World::new();
    let config = config(&[app(1), app(2)]);
    world.settle(&config);
    let (memory, desired) = (world.memory.clone(), world.desired.clone());
    world.cut_power();
    world.desired = Desired::default();
    world.settle(&config);
    assert_eq!(world.memory, memory, "same numbers, addresses and instances");
    assert_eq!(world.desired, desired);
}

#[test]
fn an_app_whose_purge_cannot_go_on_comes_back_from_its_old_volume_after_a_power_cut() {
    let mut world = World::new();
    world.settle(&config(&[app(1)]));
    let old = app(1).volumes[0].key;
    let mut purged = app(1);
    (purged.purge_counter, purged.volumes[0].key.generation) = (1, 1);
    let mut purged = config(&[purged]);
    let missing = ContentTreeId(uuid(4, 99));
    purged.content_trees[0].id = missing;
    purged.volumes[0].origin = VolumeOrigin::Content(missing);
    let rounds = |world: &mut World| {
        for _ in 0..6 {
            world.round(&purged);
            world.observed.content.remove(&missing);
        }
        assert_eq!((world.state(1), world.instance(1)), (SwState::Purging, 1));
        assert!(world.observed.volumes.contains_key(&old));
    };
    rounds(&mut world);
    world.cut_power();
    rounds(&mut world);
}

#[test]
fn what_a_plan_that_is_not_carried_out_would_end_is_told_as_it_is() {
    let mut world = World::new();
    world.settle(&config(&[app(1), app(2)]));
    let mut off = app(1);
    off.is_active = false;
    let config = config(&[off]);
    let would = plan(&config, &world.observed, &world.memory, &world.desired).status;
    let is = status(&config, &world.observed, &world.memory, &world.desired);
    let states = |status: &Status| status.apps.values().map(|app| app.state).collect::<Vec<_>>();
    assert_eq!(states(&would), [SwState::Halting, SwState::Halting]);
    assert_eq!(states(&is), [SwState::Running, SwState::Running]);
}

/// One change an operator makes, or the power.
#[derive(Clone, Debug)]
enum Change {
    Add(u8),
    Remove(u8),
    Restart(u8),
    Purge(u8),
    Toggle(u8),
    Memory(u8, u8),
    Generation(u8),
    PowerCut,
}

fn changes() -> impl Strategy<Value = Vec<(Change, u8)>> {
    let number = 1..5u8;
    let change = prop_oneof![
        number.clone().prop_map(Change::Add),
        number.clone().prop_map(Change::Remove),
        number.clone().prop_map(Change::Restart),
        number.clone().prop_map(Change::Purge),
        number.clone().prop_map(Change::Toggle),
        (number.clone(), 1..4u8).prop_map(|(n, m)| Change::Memory(n, m)),
        number.prop_map(Change::Generation),
        Just(Change::PowerCut),
    ];
    proptest::collection::vec((change, 0..4u8), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the operator does and whenever, the planner settles, and what was checked in every round held.
    #[test]
    fn any_history_settles(history in changes()) {
        let mut world = World::new();
        let mut apps: BTreeMap<u8, AppInstance> = BTreeMap::new();
        for (change, rounds) in history {
            let mut with = |number: u8, f: &dyn Fn(&mut AppInstance)| { if let Some(a) = apps.get_mut(&number) { f(a); } };
            match change {
                Change::Add(n) => { apps.entry(n).or_insert_with(|| app(n)); }
                Change::Remove(n) => { apps.remove(&n); }
                Change::PowerCut => world.cut_power(),
                Change::Restart(n) => with(n, &|a| a.restart_counter += 1),
                Change::Purge(n) => with(n, &|a| a.purge_counter += 1),
                Change::Toggle(n) => with(n, &|a| a.is_active = !a.is_active),
                Change::Memory(n, m) => with(n, &|a| a.resources.memory_bytes = u64::from(m) << 20),
                Change::Generation(n) => with(n, &|a| { a.volumes[0].key.generation += 1; a.purge_counter += 1; }),
            }
            let config = config(&apps.values().cloned().collect::<Vec<_>>());
            for _ in 0..rounds { world.round(&config); }
        }
        let config = config(&apps.values().cloned().collect::<Vec<_>>());
        world.settle(&config);
        let last = world.last.as_ref().unwrap();
        for app in apps.values() {
            let state = last.status.apps[&app.id].state;
            if app.is_active {
                prop_assert_eq!(state, SwState::Running, "{}", app.name.to_string());
            } else {
                prop_assert!(matches!(state, SwState::Halted | SwState::Installed), "{:?}", state);
            }
        }
        prop_assert_eq!(world.observed.apps.len(), apps.values().filter(|a| a.is_active).count());
    }
}

#[test]
fn a_purge_counter_that_comes_back_to_what_runs_is_a_purge_all_the_same() {
    let mut world = World::new();
    let with = |counter: u32| {
        let mut app = app(2);
        app.purge_counter = counter;
        app.volumes[0].key.generation = u64::from(counter);
        config(&[app])
    };
    world.settle(&with(1));
    let root = world.desired.apps.values().next().unwrap().root;
    // too short for anything to be started
    world.round(&config(&[]));
    world.round(&with(0));
    world.settle(&with(1));
    assert_eq!(world.last.as_ref().unwrap().status.apps.values().next().unwrap().state, SwState::Running);
    assert_ne!(world.desired.apps.values().next().unwrap().root, root);
}

#[test]
fn health_is_told_as_state_and_fault() {
    let mut world = World::new();
    let config = config(&[app(1)]);
    world.settle(&config);
    for (health, state, reasons) in [
        (Health::Unknown, SwState::Booting, vec![]),
        (Health::Good, SwState::Running, vec![]),
        (Health::Bad("tcp :1 refuses connections".into()), SwState::Running, vec![Reason::AppUnhealthy]),
    ] {
        world.observed.apps.get_mut(&AppId(uuid(6, 1))).unwrap().health = Some(health);
        let plan = plan(&config, &world.observed, &world.memory, &world.desired);
        world.last = Some(plan);
        assert_eq!((world.state(1), world.reasons(1)), (state, reasons));
    }
}
