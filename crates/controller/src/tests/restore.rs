// SPDX-License-Identifier: Apache-2.0
//! Backups through the API, and devices that come back to a restored controller.

use eve_api::wire::config::EdgeDevConfig;
use eve_api::wire::info::z_info_msg::InfoContent;
use eve_api::wire::info::{ZInfoMsg, ZInfoTypes, ZInfoVolume};
use eve_api::wire::metrics::z_metric_msg::MetricContent;
use eve_api::wire::metrics::{DeviceMetric, ZMetricMsg};

use super::*;
use crate::backup::{Existing, restore, verify};

fn restarts(config: &EdgeDevConfig) -> u32 {
    config.apps[0].restart.as_ref().map_or(0, |restart| restart.counter)
}

fn timestamp_ms(config: &EdgeDevConfig) -> i64 {
    config.config_timestamp.map_or(0, |at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000)
}

/// A backup taken while a node with an app is there, and the config the node had then.
async fn backed_up(dir: &Path) -> (Arc<Controller>, Node, std::path::PathBuf, ConfigResponse) {
    let (controller, node) = with_node(&dir.join("old")).await;
    apply(&controller, hello("hello:1")).await;
    let then = node.config("").await;
    let reply = api(&controller, Method::GET, "backup", Value::Null, None).await;
    assert_eq!(
        (reply.status, &reply.headers[header::CONTENT_TYPE].to_str().unwrap()),
        (StatusCode::OK, &"application/x-tar")
    );
    let file = dir.join("backup.tar");
    std::fs::write(&file, &reply.body).unwrap();
    verify(&file).unwrap();
    (controller, node, file, then)
}

fn come_back(dir: &Path, file: &Path, node: Node) -> Node {
    restore(file, &dir.join("new"), Existing::Refuse).unwrap();
    Node { controller: open(&dir.join("new"), HOLD), ..node }
}

#[tokio::test]
async fn a_device_with_a_newer_config_than_the_backup_is_not_moved_back() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node, file, then) = backed_up(dir.path()).await;
    for counter in 1..=2 {
        let mut objects = hello("hello:1");
        objects[2]["spec"]["restartCounter"] = json!(counter);
        apply(&controller, objects).await;
    }
    let newer = node.config(&then.config_hash).await;
    let before = newer.config.unwrap();
    assert_eq!(restarts(&before), 2);
    drop(controller);
    let node = come_back(dir.path(), &file, node);
    let after = node.config(&newer.config_hash).await.config.unwrap();
    assert!(restarts(&after) > restarts(&before), "{}", restarts(&after));
    assert!(timestamp_ms(&after) > timestamp_ms(&before));
    assert!(after.controller_epoch > before.controller_epoch, "everything is to be said again");
    let held = node.config("").await;
    assert_eq!(held.config.unwrap(), after, "the doubt is over after the first poll");
}

#[tokio::test]
async fn a_device_that_has_the_config_of_the_backup_restarts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node, file, then) = backed_up(dir.path()).await;
    drop(controller);
    let node = come_back(dir.path(), &file, node);
    let after = node.config(&then.config_hash).await.config.unwrap();
    let before = then.config.unwrap();
    assert_eq!(after.apps, before.apps);
    assert!(after.controller_epoch > before.controller_epoch);
    assert!(timestamp_ms(&after) > timestamp_ms(&before));
}

#[tokio::test]
async fn a_device_that_is_ahead_in_time_gets_a_later_config() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let known = node.config("").await.config_hash;
    let ahead_s = crate::state::now_ms() / 1000 + 86_400;
    let processed = prost_timestamp(ahead_s);
    let metrics = ZMetricMsg {
        dev_id: node.id.clone(),
        metric_content: Some(MetricContent::Dm(DeviceMetric {
            last_processed_config: Some(processed),
            ..DeviceMetric::default()
        })),
        ..ZMetricMsg::default()
    };
    let path = format!("id/{}/metrics", node.id);
    let (later, reply) = tokio::join!(node.config(&known), node.post(&path, metrics.encode_to_vec()));
    assert_eq!(reply.status, StatusCode::CREATED);
    assert!(timestamp_ms(&later.config.unwrap()) > ahead_s * 1000);
    drop(controller);
}

fn prost_timestamp(seconds: i64) -> eve_api::wire::Timestamp {
    eve_api::wire::Timestamp { seconds, nanos: 0 }
}

fn with_volumes(purges: u32) -> Value {
    let mut objects = hello("hello:1");
    objects[2]["spec"]["volumes"] =
        json!([{ "volume": "data", "mountPath": "/data" }, { "mountPath": "/own", "blank": "1Gi" }]);
    objects[2]["spec"]["purgeCounter"] = json!(purges);
    let volume = object("Volume", "data", json!({ "size": "1Gi", "purgeCounter": purges }));
    objects.as_array_mut().unwrap().insert(0, volume);
    objects
}

/// Generation of each volume by its id.
fn generations(config: &EdgeDevConfig) -> std::collections::BTreeMap<String, i64> {
    config.volumes.iter().map(|volume| (volume.uuid.clone(), volume.generation_count)).collect()
}

#[tokio::test]
async fn volumes_that_were_purged_after_the_backup_get_generations_the_device_has_not_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(&dir.path().join("old")).await;
    apply(&controller, with_volumes(0)).await;
    let then = node.config("").await;
    let reply = api(&controller, Method::GET, "backup", Value::Null, None).await;
    let file = dir.path().join("backup.tar");
    std::fs::write(&file, &reply.body).unwrap();
    for purges in 1..=3 {
        apply(&controller, with_volumes(purges)).await;
    }
    let newer = node.config(&then.config_hash).await;
    let had = generations(newer.config.as_ref().unwrap());
    assert_eq!(
        had.values().copied().collect::<Vec<_>>(),
        [3, 3, 3],
        "the root, the app's own, the named one"
    );
    drop(controller);
    let node = come_back(dir.path(), &file, node);
    // What it has it tells before it asks: a node's queue outlives its controller.
    for (uuid, generation) in &had {
        let volume =
            ZInfoVolume { uuid: uuid.clone(), generation_count: *generation, ..ZInfoVolume::default() };
        let message = ZInfoMsg {
            ztype: ZInfoTypes::ZiVolume.into(),
            dev_id: node.id.clone(),
            info_content: Some(InfoContent::Vinfo(volume)),
            ..ZInfoMsg::default()
        };
        let path = format!("id/{}/info", node.id);
        assert_eq!(node.post(&path, message.encode_to_vec()).await.status, StatusCode::CREATED);
    }
    let after = generations(&node.config(&newer.config_hash).await.config.unwrap());
    assert_eq!(after.keys().collect::<Vec<_>>(), had.keys().collect::<Vec<_>>());
    assert!(after.iter().all(|(uuid, generation)| *generation > had[uuid]), "{had:?}, then {after:?}");
}
