// SPDX-License-Identifier: Apache-2.0
//! What a device makes of a config, object by object, and what a controller says of the same config before it is sent.
#![allow(clippy::unwrap_used)]

use eve_api::wire::common::CipherBlock;
use eve_api::wire::config::*;
use eve_api::{Message as _, parse, problems};
use expect_test::{Expect, expect};
use model::config::{DeviceConfig, NetworkInstanceKind, PortAddressing};
use model::report::Info;

/// A config as a foreign controller might write it: one container app behind a port map.
fn good() -> EdgeDevConfig {
    let pool = prost_reflect::DescriptorPool::decode(eve_api::DESCRIPTORS).unwrap();
    let kind = pool.get_message_by_name("org.lfedge.eve.config.EdgeDevConfig").unwrap();
    let mut json = serde_json::Deserializer::from_str(include_str!("container.json"));
    let message = prost_reflect::DynamicMessage::deserialize(kind, &mut json).unwrap();
    EdgeDevConfig::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn read(change: impl FnOnce(&mut EdgeDevConfig)) -> DeviceConfig {
    let mut wire = good();
    change(&mut wire);
    parse::device_config(&wire).unwrap()
}

/// Faults of the config read by a device, then the problems a controller sees.
fn check(change: impl FnOnce(&mut EdgeDevConfig), expected: Expect) {
    let mut wire = good();
    change(&mut wire);
    let config = parse::device_config(&wire).unwrap();
    let faults = config.faults.iter().map(|f| format!("{:?}\n  {}\n", f.object, f.fault));
    let problems = problems::problems(&wire).into_iter().map(|problem| format!("! {problem}\n"));
    expected.assert_eq(&faults.chain(problems).collect::<String>());
}

fn app(config: &mut EdgeDevConfig) -> &mut AppInstanceConfig {
    &mut config.apps[0]
}

#[test]
fn a_foreign_config_is_read_whole() {
    let config = read(|_| ());
    assert_eq!(config.faults, []);
    assert_eq!(problems::problems(&good()), Vec::<String>::new());
    expect![[r#"
        AppInstance {
            id: AppId(60000000-0000-4000-8000-000000000001),
            version: "1",
            name: "web",
            is_active: true,
            resources: Resources {
                memory_bytes: 134217728,
                vcpus: 1,
                mode: NoHyper,
            },
            volumes: [
                VolumeRef {
                    key: VolumeKey {
                        id: VolumeId(50000000-0000-4000-8000-000000000001),
                        generation: 0,
                    },
                    mount_dir: "",
                },
            ],
            interfaces: [
                AppInterface {
                    name: "eth0",
                    network: NetworkInstanceId(20000000-0000-4000-8000-000000000001),
                    mac: None,
                    address: None,
                    acl: [
                        AclRule {
                            id: 1,
                            direction: Both,
                            matches: AclMatch {
                                remote: Some(
                                    Prefix(
                                        0.0.0.0/0,
                                    ),
                                ),
                                protocol: None,
                                local_port: None,
                                remote_port: None,
                            },
                            action: Allow,
                        },
                        AclRule {
                            id: 2,
                            direction: Both,
                            matches: AclMatch {
                                remote: None,
                                protocol: Some(
                                    Tcp,
                                ),
                                local_port: Some(
                                    PortRange {
                                        first: 8080,
                                        last: 8080,
                                    },
                                ),
                                remote_port: None,
                            },
                            action: PortMap {
                                app_port: 80,
                            },
                        },
                    ],
                },
            ],
            restart_counter: 0,
            purge_counter: 0,
            user_data: None,
            profiles: [],
            start_delay_s: 0,
            adapters: [],
        }
    "#]]
    .assert_debug_eq(&config.apps[0]);
}

#[test]
fn only_a_config_without_a_device_is_refused_whole() {
    use parse::ParseError;
    assert_eq!(parse::device_config(&EdgeDevConfig::default()), Err(ParseError::NoDevice));
    let mut wire = good();
    wire.id.as_mut().unwrap().uuid = "device".into();
    assert_eq!(parse::device_config(&wire), Err(ParseError::NoDevice));
    assert_eq!(parse::config_response(b"\xff"), Err(ParseError::Malformed));
}

#[test]
fn not_modified_has_two_forms() {
    for config in [None, Some(EdgeDevConfig::default())] {
        let bytes = ConfigResponse { config, config_hash: "h".into() }.encode_to_vec();
        assert_eq!(parse::config_response(&bytes).unwrap().config, None);
    }
}

#[test]
fn unknown_fields_never_fail() {
    let mut bytes = good().encode_to_vec();
    // Field 9999 with a text, and 9998 with a number.
    bytes.extend_from_slice(b"\xfa\xf0\x04\x02hi\xf0\xf0\x04\x05");
    assert_eq!(parse::device_config_bytes(&bytes).unwrap(), read(|_| ()));
}

#[test]
fn a_missing_message_strikes_only_its_object() {
    check(
        |c| app(c).uuidandversion = None,
        expect![[r#"
            Path("apps[0].uuidandversion")
              InvalidConfig: apps[0].uuidandversion: missing
            ! app "web" without uuidandversion
            ! app "" is no lower-case UUID
        "#]],
    );
    check(
        |c| app(c).fixedresources = None,
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              InvalidConfig: apps[0].fixedresources: missing
            ! app "web" without fixedresources
        "#]],
    );
    check(
        |c| {
            c.network_instances[0].uuidandversion = None;
        },
        expect![[r#"
            Path("networkInstances[0].uuidandversion")
              InvalidConfig: networkInstances[0].uuidandversion: missing
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].interfaces: network instance 20000000-0000-4000-8000-000000000001 is not in the config
            ! network instance "local" without uuidandversion
            ! network instance "" is no lower-case UUID
            ! app "web" interface "eth0" → network instance "20000000-0000-4000-8000-000000000001" does not exist
        "#]],
    );
}

#[test]
fn a_dangling_reference_is_followed_up_to_the_app() {
    check(
        |c| c.datastores.clear(),
        expect![[r#"
            ContentTree(ContentTreeId(40000000-0000-4000-8000-000000000001))
              MissingReference: contentInfo[40000000-0000-4000-8000-000000000001].ds_ids_list: datastore 30000000-0000-4000-8000-000000000001 is not in the config
            Volume(VolumeKey { id: VolumeId(50000000-0000-4000-8000-000000000001), generation: 0 })
              MissingReference: volumes[50000000-0000-4000-8000-000000000001#0].origin.downloadContentTreeID: content tree 40000000-0000-4000-8000-000000000001 cannot be used: contentInfo[40000000-0000-4000-8000-000000000001].ds_ids_list: datastore 30000000-0000-4000-8000-000000000001 is not in the config
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].volumeRefList: volume 50000000-0000-4000-8000-000000000001#0 cannot be used: contentInfo[40000000-0000-4000-8000-000000000001].ds_ids_list: datastore 30000000-0000-4000-8000-000000000001 is not in the config
            ! content tree "web image" → datastore "30000000-0000-4000-8000-000000000001" does not exist
        "#]],
    );
    check(
        |c| app(c).volume_ref_list[0].generation_count = 2,
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].volumeRefList: volume 50000000-0000-4000-8000-000000000001#2 is not in the config
            ! app "web" → volume 50000000-0000-4000-8000-000000000001#2 does not exist
        "#]],
    );
    check(
        |c| app(c).adapters.push(Adapter { name: "gpu".into(), ..Default::default() }),
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].adapters: assignment group "gpu"
            ! app "web" → assignment group "gpu" does not exist
        "#]],
    );
    check(
        |c| c.network_instances[0].port.as_mut().unwrap().name = "eth7".into(),
        expect![[r#"
            NetworkInstance(NetworkInstanceId(20000000-0000-4000-8000-000000000001))
              MissingReference: networkInstances[20000000-0000-4000-8000-000000000001].port.name: port label "eth7"
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].interfaces: network instance 20000000-0000-4000-8000-000000000001 cannot be used: networkInstances[20000000-0000-4000-8000-000000000001].port.name: port label "eth7"
            ! network instance "local" → port label "eth7" does not exist
        "#]],
    );
    check(
        |c| c.networks.clear(),
        expect![[r#"
            Path("systemAdapterList[\"eth0\"].networkUUID")
              MissingReference: systemAdapterList["eth0"].networkUUID: network 10000000-0000-4000-8000-000000000001
            ! system adapter "eth0" → network "10000000-0000-4000-8000-000000000001" does not exist
        "#]],
    );
}

#[test]
fn a_bad_rule_refuses_its_app() {
    let with = |kind: &str, value: &str| {
        let (kind, value) = (kind.to_owned(), value.to_owned());
        move |c: &mut EdgeDevConfig| {
            app(c).interfaces[0].acls[0].matches = vec![AceMatch { r#type: kind, value }];
        }
    };
    for (kind, value) in [
        ("ip", "10.0.0.0/33"),
        ("ip", "x"),
        ("protocol", "tcpp"),
        ("lport", "0"),
        ("lport", "9-8"),
        ("fport", "70000"),
        ("host", ""),
        ("eidset", ""),
        ("", ""),
    ] {
        let config = read(with(kind, value));
        assert_eq!((config.apps.len(), config.faults.len()), (0, 1), "{kind} {value}");
        let message = &config.faults[0].fault.message;
        assert!(message.starts_with("apps[0].interfaces[0].acls[0].matches[0]."), "{message}");
    }
    for (kind, value) in [("ip", "10.0.0.1"), ("fport", "1-65535"), ("lport", "20:21"), ("protocol", "UDP")] {
        assert_eq!(read(with(kind, value)).faults, [], "{kind} {value}");
    }
    let ipv6 = read(with("ip", "::/0"));
    assert_eq!(ipv6.apps[0].interfaces[0].acl.len(), 1, "a rule on IPv6 matches nothing here");

    check(
        |c| {
            app(c).interfaces[0].acls[1].matches.pop();
        },
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              InvalidConfig: apps[0].interfaces[0].acls[1].matches: a port map needs protocol tcp or udp and one lport
        "#]],
    );
    check(
        |c| app(c).interfaces[0].acls[1].actions[0].drop = true,
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              Unsupported: apps[0].interfaces[0].acls[1].actions[0]: more than one action
        "#]],
    );
    check(
        |c| app(c).interfaces[0].access_vlan_id = 7,
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              Unsupported: apps[0].interfaces[0].access_vlan_id: VLAN of an interface
        "#]],
    );
}

#[test]
fn secrets_need_their_context_and_an_initial_value() {
    let block = |iv: usize, context: &str| CipherBlock {
        cipher_context_id: context.into(),
        initial_value: vec![1; iv],
        cipher_data: vec![2],
        clear_text_sha256: vec![3; 32],
    };
    check(
        |c| app(c).cipher_data = Some(block(15, "nope")),
        expect![[r#"
            App(AppId(60000000-0000-4000-8000-000000000001))
              InvalidConfig: apps[0].cipherData.initialValue: 15 bytes instead of 16
            ! app "web" cipherData: initialValue of 15 bytes
            ! app "web" cipherData: cipher context "nope" does not exist
        "#]],
    );
    check(
        |c| c.datastores[0].cipher_data = Some(block(16, "nope")),
        expect![[r#"
            Datastore(DatastoreId(30000000-0000-4000-8000-000000000001))
              MissingReference: datastores[0].cipherData.cipherContextId: cipher context "nope"
            ContentTree(ContentTreeId(40000000-0000-4000-8000-000000000001))
              MissingReference: contentInfo[40000000-0000-4000-8000-000000000001].ds_ids_list: datastore 30000000-0000-4000-8000-000000000001 cannot be used: datastores[0].cipherData.cipherContextId: cipher context "nope"
            Volume(VolumeKey { id: VolumeId(50000000-0000-4000-8000-000000000001), generation: 0 })
              MissingReference: volumes[50000000-0000-4000-8000-000000000001#0].origin.downloadContentTreeID: content tree 40000000-0000-4000-8000-000000000001 cannot be used: datastores[0].cipherData.cipherContextId: cipher context "nope"
            App(AppId(60000000-0000-4000-8000-000000000001))
              MissingReference: apps[60000000-0000-4000-8000-000000000001].volumeRefList: volume 50000000-0000-4000-8000-000000000001#0 cannot be used: datastores[0].cipherData.cipherContextId: cipher context "nope"
            ! datastore "30000000-0000-4000-8000-000000000001" cipherData: cipher context "nope" does not exist
        "#]],
    );
    // As EVE does: clear text beside a block that cannot be used is taken instead.
    let config = read(|c| {
        app(c).cipher_data = Some(block(16, "nope"));
        app(c).user_data = "QT0x".into();
    });
    assert_eq!(config.apps[0].user_data, Some(model::config::UserData::Clear("QT0x".into())));
}

#[test]
fn what_is_left_out_gets_its_default() {
    let config = read(|c| {
        let ip = c.network_instances[0].ip.as_mut().unwrap();
        ip.gateway.clear();
        ip.dhcp_range = None;
        c.system_adapter_list[0].uplink = false;
        c.system_adapter_list[0].cost = 9;
    });
    let NetworkInstanceKind::Local(local) = &config.network_instances[0].kind else { panic!() };
    assert_eq!(local.gateway.to_string(), "10.11.12.1");
    assert_eq!(
        (local.range.0.to_string(), local.range.1.to_string()),
        ("10.11.12.2".into(), "10.11.12.254".into())
    );
    let adapter = &config.system_adapters[0];
    assert!(adapter.is_uplink && adapter.cost == 0, "where no port is an uplink, all are");
}

#[test]
fn a_static_port_gets_the_address_of_its_adapter() {
    let with = |addr: &str| {
        let addr = addr.to_owned();
        read(move |c| {
            let ip = c.networks[0].ip.as_mut().unwrap();
            ip.dhcp = 1;
            ip.subnet = "192.0.2.0/24".into();
            ip.gateway = "192.0.2.1".into();
            c.system_adapter_list[0].addr = addr;
        })
    };
    let config = with("192.0.2.9");
    let PortAddressing::Static { subnet, .. } = &config.networks[0].addressing else { panic!() };
    assert_eq!(subnet.to_string(), "192.0.2.9/24");
    assert_eq!(with("198.51.100.1").faults.len(), 1);
}

#[test]
fn what_stands_twice_counts_once() {
    check(
        |c| c.apps.push(c.apps[0].clone()),
        expect![[r#"
            Path("apps[1]")
              InvalidConfig: apps[1]: defined twice
            ! app 60000000-0000-4000-8000-000000000001 defined 2 times
        "#]],
    );
}

#[test]
fn other_kinds_of_network_instances_are_unsupported() {
    check(
        |c| c.network_instances[0].inst_type = 4,
        expect![[r#"
            NetworkInstance(NetworkInstanceId(20000000-0000-4000-8000-000000000001))
              Unsupported: networkInstances[0].instType: network instance of type 4
            App(AppId(60000000-0000-4000-8000-000000000001))
              Unsupported: apps[60000000-0000-4000-8000-000000000001].interfaces: network instance 20000000-0000-4000-8000-000000000001 cannot be used: networkInstances[0].instType: network instance of type 4
        "#]],
    );
    for (subnet, gateway) in
        [("10.0.0.0/31", ""), ("10.0.0.0/7", ""), ("10.0.0.0", ""), ("10.0.0.0/24", "10.0.1.1")]
    {
        let config = read(|c| {
            let ip = c.network_instances[0].ip.as_mut().unwrap();
            (ip.subnet, ip.gateway) = (subnet.into(), gateway.into());
            ip.dhcp_range = None;
        });
        assert!(config.network_instances.is_empty(), "{subnet} {gateway}");
    }
}

#[test]
fn the_order_of_a_version_is_read_in_its_form_of_today_and_in_that_of_old_controllers() {
    let tree = good().content_info[0].uuid.clone();
    let volume = good().volumes[0].uuid.clone();
    let retry_update = Some(DeviceOpsCmd { counter: 3, ..Default::default() });
    let today = BaseOs {
        content_tree_uuid: tree.clone(),
        base_os_version: "2.0".into(),
        activate: true,
        retry_update,
    };
    let os = read(|c| c.baseos = Some(today)).base_os.unwrap();
    assert_eq!((os.content_tree.to_string(), &*os.version, os.retry_counter), (tree.clone(), "2.0", 3));
    let before = |id: &str, activate| BaseOsConfig {
        volume_id: id.into(),
        base_os_version: "1.5".into(),
        activate,
        ..Default::default()
    };
    // one that is not active stands in front of it; the id is that of a volume, or of the content tree itself
    for id in [&volume, &tree] {
        let os = read(|c| c.base = vec![before("x", false), before(id, true)]).base_os.unwrap();
        assert_eq!((os.content_tree.to_string(), &*os.version, os.is_active), (tree.clone(), "1.5", true));
    }
    let dangling = read(|c| c.base = vec![before("70000000-0000-4000-8000-000000000001", true)]);
    assert_eq!(dangling.base_os, None);
    assert_eq!(dangling.faults[0].object, model::config::ObjectRef::BaseOs);
    assert_eq!(read(|c| c.base = vec![before(&tree, false)]).base_os, None);
}

#[test]
fn problems_of_ports_and_secrets_beyond_the_model_are_seen() {
    check(
        |c| {
            c.device_io_list.push(c.device_io_list[0].clone());
            c.vlans.push(VlanAdapter {
                logicallabel: "v".into(),
                lower_layer_name: "x".into(),
                ..Default::default()
            });
            c.bonds.push(BondAdapter {
                logicallabel: "b".into(),
                lower_layer_names: vec!["y".into()],
                ..Default::default()
            });
            c.networks[0].wireless = Some(WirelessConfig {
                wifi_cfg: vec![WifiConfig {
                    cipher_data: Some(CipherBlock::default()),
                    ..Default::default()
                }],
                ..Default::default()
            });
            c.baseos = Some(BaseOs { content_tree_uuid: "t".into(), ..Default::default() });
            c.content_info[0].sha256 = "abc".into();
        },
        expect![[r#"
            Path("deviceIoList[1]")
              InvalidConfig: deviceIoList[1]: defined twice
            ContentTree(ContentTreeId(40000000-0000-4000-8000-000000000001))
              InvalidConfig: contentInfo[0].sha256: "abc" is no digest
            Path("vlans[0]")
              Unsupported: vlans[0]: not supported
            Path("bonds[0]")
              Unsupported: bonds[0]: not supported
            Volume(VolumeKey { id: VolumeId(50000000-0000-4000-8000-000000000001), generation: 0 })
              InvalidConfig: volumes[50000000-0000-4000-8000-000000000001#0].origin.downloadContentTreeID: content tree 40000000-0000-4000-8000-000000000001 cannot be used: contentInfo[0].sha256: "abc" is no digest
            App(AppId(60000000-0000-4000-8000-000000000001))
              InvalidConfig: apps[60000000-0000-4000-8000-000000000001].volumeRefList: volume 50000000-0000-4000-8000-000000000001#0 cannot be used: contentInfo[0].sha256: "abc" is no digest
            BaseOs
              InvalidConfig: baseos.base_os_version: missing
            ! content tree "web image": sha256 "abc" is no digest
            ! base OS → content tree "t" does not exist
            ! physical IO eth0 defined 2 times
            ! system adapter "eth0" → lower layer "eth0" matches 2 ports, not one
            ! VLAN "v" → port "x" does not exist
            ! bond "b" → port "y" does not exist
            ! network "10000000-0000-4000-8000-000000000001" wifi "": initialValue of 0 bytes
            ! network "10000000-0000-4000-8000-000000000001" wifi "": clearTextSha256 of 0 bytes
            ! network "10000000-0000-4000-8000-000000000001" wifi "": cipher context "" does not exist
        "#]],
    );
}

#[test]
fn errors_of_other_nodes_keep_their_text() {
    use eve_api::wire::info::{ErrorInfo, ZInfoApp, ZInfoMsg, z_info_msg::InfoContent};
    let message = |id: &str| {
        let app = ZInfoApp {
            app_id: id.into(),
            app_err: vec![ErrorInfo { description: "failed: no route".into(), ..Default::default() }],
            state: 8,
            ..Default::default()
        };
        ZInfoMsg { ztype: 3, info_content: Some(InfoContent::Ainfo(app)), ..Default::default() }
            .encode_to_vec()
    };
    let Info::App(app) = parse::info(&message("60000000-0000-4000-8000-000000000001")).unwrap().info else {
        panic!()
    };
    assert_eq!(app.faults[0].to_string(), "NodeReported: failed: no route");
    assert_eq!(
        parse::info(&message("text")).unwrap().info,
        Info::Other(3),
        "kept, though nobody knows whose it is"
    );
    assert!(parse::info(b"\xff").is_err());
    assert!(parse::metrics(b"\xff").is_err());
}
