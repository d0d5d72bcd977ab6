// SPDX-License-Identifier: Apache-2.0
//! More reports than can be written: devices are told to come again, and lose nothing.

use super::*;
use eve_api::wire::info::{ZInfoDevice, ZInfoMsg, ZInfoTypes, z_info_msg::InfoContent};

/// Close to the largest that is taken.
const LARGE: usize = 700 << 10;
/// More than the queue holds.
const MANY: usize = 110;

fn large_info(node: &Node, number: usize) -> Vec<u8> {
    let device =
        ZInfoDevice { host_name: format!("{number}{}", "x".repeat(LARGE)), ..ZInfoDevice::default() };
    let message = ZInfoMsg {
        ztype: ZInfoTypes::ZiDevice.into(),
        dev_id: node.id.clone(),
        info_content: Some(InfoContent::Dinfo(device)),
        ..ZInfoMsg::default()
    };
    message.encode_to_vec()
}

#[tokio::test]
async fn a_full_queue_sends_devices_away_for_a_while_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let disk = controller.observed.hold();
    let path = format!("id/{}/info", node.id);
    let mut posts = tokio::task::JoinSet::new();
    let node = Arc::new(node);
    for number in 0..MANY {
        let (node, path) = (node.clone(), path.clone());
        posts.spawn(async move { node.post(&path, large_info(&node, number)).await });
    }
    // Those that found no room are answered at once, the others wait for the disk.
    let refused = tokio::time::timeout(Duration::from_secs(60), posts.join_next()).await;
    let refused = refused.expect("somebody is sent away").unwrap().unwrap();
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers[header::RETRY_AFTER], "5");
    // Who only asks is served meanwhile.
    assert_eq!(node.config("").await.config.unwrap().apps.len(), 0);
    drop(disk);
    let (mut taken, mut away) = (0, 1);
    while let Some(reply) = posts.join_next().await {
        match reply.unwrap().status {
            StatusCode::CREATED => taken += 1,
            StatusCode::SERVICE_UNAVAILABLE => away += 1,
            other => panic!("{other}"),
        }
    }
    assert!(taken > 0 && taken + away == MANY, "{taken} taken, {away} sent away");
    let reply = node.post(&path, large_info(&node, MANY)).await;
    assert_eq!(reply.status, StatusCode::CREATED, "there is room again");
    let newest = api(&controller, Method::GET, "devices/s1/info", Value::Null, None).await;
    assert!(String::from_utf8_lossy(&newest.body).contains(&format!("{MANY}xxx")));
}
