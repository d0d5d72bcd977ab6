// SPDX-License-Identifier: Apache-2.0
//! What a plan promises is what is published, also when the controller restarts in between.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use model::secret::{CipherBlock, CipherContext};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::compute::{Clear, Computed, Inputs, Seal, Site, compute};
use crate::intent::{Intent, Object};
use crate::ledger::Ledger;
use crate::resource::*;
use crate::validate::problems;

struct Plain;

impl Seal for Plain {
    fn context(&self) -> CipherContext {
        CipherContext { id: "c".into(), device_cert_hash: vec![1; 16], controller_cert_hash: vec![2; 16] }
    }
    fn seal(&self, object: Uuid, clear: &Clear) -> Option<CipherBlock> {
        Some(CipherBlock {
            context_id: "c".into(),
            initial_value: object.as_bytes().to_vec(),
            cipher_data: clear.user_data.bytes().chain(clear.password.bytes()).collect(),
            clear_text_sha256: vec![0; 32],
        })
    }
}

fn object<S>(kind: u8, name: &str, generation: u64, spec: S) -> Object<S> {
    let uid = Uuid::new_v5(&Uuid::from_u128(kind.into()), name.as_bytes());
    let labels = BTreeMap::from([("site".into(), if name.ends_with('1') { "a" } else { "b" }.into())]);
    Object { name: name.into(), uid, labels, generation, spec }
}

/// A few choices for everything that may change about an app.
#[derive(Clone, Debug)]
struct Choice {
    exists: bool,
    image: u8,
    memory: u8,
    secret: u8,
    host_port: u16,
    select: Option<bool>,
    named: Vec<u8>,
    restart: u32,
    purge: u32,
}

fn choice() -> impl Strategy<Value = Choice> {
    (
        any::<bool>(),
        0..3u8,
        0..2u8,
        0..3u8,
        8000..8003u16,
        proptest::option::of(any::<bool>()),
        proptest::collection::vec(0..3u8, 0..3),
        0..2u32,
        0..2u32,
    )
        .prop_map(|(exists, image, memory, secret, host_port, select, named, restart, purge)| Choice {
            exists,
            image,
            memory,
            secret,
            host_port,
            select,
            named,
            restart,
            purge,
        })
}

fn intent(choices: &[Choice], network: u8) -> Intent {
    let mut out = Intent::default();
    for name in ["d0", "d1", "d2"] {
        out.devices.insert(name.into(), object(0, name, 1, DeviceSpec::default()));
    }
    let data = BTreeMap::from([("greeting".into(), String::from("hello"))]);
    out.secrets.insert("s".into(), object(1, "s", 1, SecretSpec { data }));
    let spec = NetworkSpec { subnet: Some(alloc::format!("10.{network}.0.0/24")), ..NetworkSpec::default() };
    out.networks.insert("n".into(), object(2, "n", 1, spec));
    for (index, choice) in choices.iter().enumerate().filter(|(_, choice)| choice.exists) {
        let name = alloc::format!("app{index}");
        let spec = AppSpec {
            image: alloc::format!("web:{}", choice.image),
            registry: BUILTIN_REGISTRY.into(),
            devices: choice.named.iter().map(|d| alloc::format!("d{d}")).collect(),
            selector: choice
                .select
                .map(|a| BTreeMap::from([("site".into(), if a { "a" } else { "b" }.into())])),
            networks: vec![AttachmentSpec { network: "n".into(), address: None, mac: None, acl: None }],
            ports: vec![alloc::format!("{}:80", choice.host_port + index as u16 * 10)],
            acl: None,
            env: BTreeMap::new(),
            secret_env: (0..choice.secret)
                .map(|i| (alloc::format!("KEY{i}"), SecretRef { name: "s".into(), key: "greeting".into() }))
                .collect(),
            user_data: None,
            resources: ResourcesSpec {
                memory: alloc::format!("{}Mi", 64 << choice.memory),
                ..ResourcesSpec::default()
            },
            isolation: Isolation::Container,
            activate: true,
            restart_counter: choice.restart,
            purge_counter: choice.purge,
            volumes: Vec::new(),
            probe: None,
            start_delay_seconds: 0,
        };
        out.apps.insert(name.clone(), object(3, &name, 1, spec));
    }
    out
}

fn run(intent: &Intent, ledgers: &mut BTreeMap<String, Ledger>, now_ms: i64) -> BTreeMap<String, Computed> {
    let site = Site { advertise: "c:8443".into(), pull_password: "p".into(), ..Site::default() };
    intent
        .devices
        .keys()
        .map(|device| {
            let inputs = Inputs { intent, site: &site, device, seal: Some(&Plain) };
            let computed =
                compute(inputs, ledgers.get(device).unwrap_or(&Ledger::default()), now_ms).unwrap();
            ledgers.insert(device.clone(), computed.ledger.clone());
            (device.clone(), computed)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn apply_does_what_plan_says(
        steps in proptest::collection::vec((proptest::collection::vec(choice(), 3), 1..3u8), 2..5),
    ) {
        let mut ledgers = BTreeMap::new();
        let mut published = run(&intent(&steps[0].0, steps[0].1), &mut ledgers, 0);
        for (step, (choices, network)) in steps.iter().enumerate().skip(1) {
            let next = intent(choices, *network);
            prop_assert_eq!(problems(&next), vec![]);
            // The plan: computed on copies, at another time than the apply.
            let planned = run(&next, &mut ledgers.clone(), 17);
            let promised: Vec<_> = published
                .iter()
                .map(|(device, old)| diff(Some(&old.config), Some(&planned[device].config)))
                .collect();
            // The apply, and a restart that computes everything again from what was stored.
            run(&next, &mut ledgers, step as i64 * 1000);
            let stored = ledgers.clone();
            let again = run(&next, &mut ledgers, 9_999_999);
            prop_assert_eq!(&stored, &ledgers, "nothing changes by itself");
            let done: Vec<_> = published
                .iter()
                .map(|(device, old)| diff(Some(&old.config), Some(&again[device].config)))
                .collect();
            prop_assert_eq!(promised, done);
            for (device, old) in &published {
                let new = &again[device];
                let is_same = diff(Some(&old.config), Some(&new.config)).is_empty();
                prop_assert_eq!(is_same, old.config == new.config, "a change moves version and time, nothing else does");
                if !is_same {
                    prop_assert!(old.config.timestamp < new.config.timestamp);
                }
            }
            published = again;
        }
    }
}

#[test]
fn a_new_image_purges_and_a_new_value_restarts() {
    let base = Choice {
        exists: true,
        image: 0,
        memory: 0,
        secret: 0,
        host_port: 8000,
        select: None,
        named: vec![0],
        restart: 0,
        purge: 0,
    };
    let mut ledgers = BTreeMap::new();
    let first = run(&intent(core::slice::from_ref(&base), 1), &mut ledgers, 1);
    let lines = |old: &Computed, new: &Computed| -> Vec<String> {
        diff(Some(&old.config), Some(&new.config))
            .iter()
            .map(|c| {
                let fields: Vec<_> = c.fields.iter().map(|f| f.path.as_str()).collect();
                alloc::format!("{:?} {} {}: {}", c.op, c.kind, c.name, fields.join(" "))
            })
            .collect()
    };
    let second = run(&intent(&[Choice { image: 1, ..base.clone() }], 1), &mut ledgers, 2);
    let third = run(&intent(&[Choice { image: 1, secret: 1, ..base.clone() }], 1), &mut ledgers, 3);
    let fourth = run(&intent(&[Choice { image: 1, secret: 1, named: vec![1], ..base }], 1), &mut ledgers, 4);
    expect_test::expect![[r#"
        [
            "Change contentTree app0 image (web:1): url generation",
            "Remove volume app0 root: key.id key.generation name origin.Content max_size_bytes is_read_only",
            "Add volume app0 root: key.id key.generation name origin.Content max_size_bytes is_read_only",
            "Change app app0: version volumes.0.key.generation purge_counter",
        ]
    "#]]
    .assert_debug_eq(&lines(&first["d0"], &second["d0"]));
    expect_test::expect![[r#"
        [
            "Change app app0: version restart_counter user_data.Sealed.Object.block.context_id user_data.Sealed.Object.block.initial_value user_data.Sealed.Object.block.cipher_data user_data.Sealed.Object.block.clear_text_sha256 user_data.Sealed.Object.context.id user_data.Sealed.Object.context.device_cert_hash user_data.Sealed.Object.context.controller_cert_hash",
        ]
    "#]]
    .assert_debug_eq(&lines(&second["d0"], &third["d0"]));
    let gone: Vec<_> = lines(&third["d0"], &fourth["d0"])
        .into_iter()
        .map(|line| line.split(':').next().map(String::from).unwrap_or_default())
        .collect();
    expect_test::expect![[r#"
        [
            "Remove network n",
            "Remove datastore docker",
            "Remove contentTree app0 image (web",
            "Remove volume app0 root",
            "Remove app app0",
        ]
    "#]]
    .assert_debug_eq(&gone);
}

/// One app with a volume by name and one of its own, and its config on `d0`.
fn with_volumes(
    change: impl Fn(&mut VolumeSpec, &mut AppSpec),
    ledgers: &mut BTreeMap<String, Ledger>,
) -> DeviceConfig {
    let choice = Choice {
        exists: true,
        image: 0,
        memory: 0,
        secret: 0,
        host_port: 8000,
        select: None,
        named: vec![0],
        restart: 0,
        purge: 0,
    };
    let mut intent = intent(&[choice], 0);
    let store = DatastoreSpec { url: "https://files.example/x".into(), ..DatastoreSpec::default() };
    intent.datastores.insert("files".into(), object(4, "files", 1, store));
    let file = FileSpec {
        datastore: "files".into(),
        path: "/dir/a.bin".into(),
        sha256: "ab".repeat(32),
        name: None,
    };
    let mut volume = VolumeSpec { file: Some(file), size: Some("1Mi".into()), ..VolumeSpec::default() };
    let app = intent.apps.get_mut("app0").unwrap();
    app.spec.volumes = vec![
        AppVolumeSpec { volume: Some("model".into()), mount_path: "/m".into(), ..AppVolumeSpec::default() },
        AppVolumeSpec { blank: Some("2Mi".into()), mount_path: "/data".into(), ..AppVolumeSpec::default() },
    ];
    change(&mut volume, &mut app.spec);
    intent.volumes.insert("model".into(), object(5, "model", 1, volume));
    assert_eq!(problems(&intent), []);
    run(&intent, ledgers, 1).remove("d0").unwrap().config
}

#[test]
fn volumes_have_their_generations_and_a_swap_is_a_purge() {
    let mut ledgers = BTreeMap::new();
    let config = with_volumes(|_, _| (), &mut ledgers);
    let uses: Vec<&str> = config.apps[0].volumes.iter().map(|used| used.mount_dir.as_str()).collect();
    assert_eq!(uses, ["", "/m", "/data"]);
    let sizes: Vec<u64> =
        config.apps[0].volumes.iter().map(|used| config.volume(used.key).unwrap().max_size_bytes).collect();
    assert_eq!(sizes, [0, 1 << 20, 2 << 20]);
    let tree = config.content_trees.iter().find(|tree| tree.url == "dir/a.bin").unwrap();
    assert_eq!((tree.format, tree.digest.is_some()), (model::config::ContentFormat::Raw, true));
    let store = config.datastore(tree.datastores[0]).unwrap();
    assert_eq!((store.fqdn.as_str(), store.path.as_str()), ("https://files.example", "x"));

    /// Generations of root, named and own volume; purge and restart counters.
    fn numbers(config: &DeviceConfig) -> ([u64; 3], u32, u32) {
        let app = &config.apps[0];
        let generation = |index: usize| app.volumes[index].key.generation;
        ([generation(0), generation(1), generation(2)], app.purge_counter, app.restart_counter)
    }
    assert_eq!(numbers(&config), ([0, 0, 0], 0, 0));
    let config = with_volumes(|volume, _| volume.size = Some("3Mi".into()), &mut ledgers);
    assert_eq!(numbers(&config), ([0, 0, 0], 0, 1), "a size is set by a restart, and nothing is lost");
    let config = with_volumes(|volume, _| volume.purge_counter = 1, &mut ledgers);
    assert_eq!(numbers(&config), ([0, 1, 0], 1, 2), "the root stays");
    let config = with_volumes(
        |volume, app| {
            volume.purge_counter = 1;
            app.purge_counter = 1;
        },
        &mut ledgers,
    );
    assert_eq!(numbers(&config), ([1, 1, 1], 2, 2), "an app's purge is of what is its own");
}

#[test]
fn a_probe_is_a_property_of_its_app() {
    let probe = ProbeSpec {
        http: Some(HttpProbe { port: 80, path: Some("/ok".into()) }),
        every_seconds: Some(5),
        on_failure: OnFailure::Report,
        ..ProbeSpec::default()
    };
    let config = with_volumes(|_, app| app.probe = Some(probe.clone()), &mut BTreeMap::new());
    let item = config.items.iter().find(|item| item.key.starts_with("selvedge.probe.")).unwrap();
    assert_eq!(item.key, alloc::format!("selvedge.probe.{}", config.apps[0].id));
    assert_eq!(item.value, "http :80/ok every=5 action=report");
}
