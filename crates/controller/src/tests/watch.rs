// SPDX-License-Identifier: Apache-2.0
//! Watches of objects and events.

use axum::body::BodyDataStream;
use eve_api::wire::info::z_info_msg::InfoContent;
use eve_api::wire::info::{ZInfoApp, ZInfoMsg, ZSwState};
use futures_util::StreamExt as _;

use super::*;

/// Longer than a status takes to be noticed; the end of a wait for what should not come.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Watch {
    body: BodyDataStream,
    text: String,
}

impl Watch {
    pub(super) async fn open(controller: &Arc<Controller>, path: &str) -> Result<Watch, Reply> {
        Watch::open_as(controller, path, &controller.admin_token).await
    }

    pub(super) async fn open_as(
        controller: &Arc<Controller>,
        path: &str,
        token: &str,
    ) -> Result<Watch, Reply> {
        let request = Request::builder()
            .uri(format!("{}/projects/default/{path}", operator_api::BASE))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        let response = operator_api::router(controller.clone()).oneshot(request).await.unwrap();
        if response.status() == StatusCode::OK {
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/jsonl");
            return Ok(Watch { body: response.into_body().into_data_stream(), text: String::new() });
        }
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Err(Reply { status: parts.status, headers: parts.headers, body })
    }

    pub(super) async fn line(&mut self) -> Value {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let value = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return value;
            }
            let more = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("a line in time");
            self.text.push_str(std::str::from_utf8(&more.expect("no end").unwrap()).unwrap());
        }
    }

    /// Type and name of the next line.
    async fn next(&mut self) -> (String, String) {
        let line = self.line().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&line["type"]), text(&line["object"]["metadata"]["name"]))
    }
}

fn told(kind: &str, name: &str) -> (String, String) {
    (kind.into(), name.into())
}

fn network(name: &str, labels: Value) -> Value {
    let mut out = object("Network", name, json!({ "subnet": "10.1.0.0/24" }));
    out["metadata"]["labels"] = labels;
    out
}

#[tokio::test]
async fn a_watch_tells_what_is_there_then_changes_and_is_resumed_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    apply(&controller, json!([network("a", json!({})), network("b", json!({}))])).await;
    let mut watch = Watch::open(&controller, "networks?watch=true").await.ok().unwrap();
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("ADDED", "b"));
    let here = watch.line().await;
    assert_eq!((&here["type"], &here["object"]["kind"]), (&json!("BOOKMARK"), &json!("Network")));
    apply(&controller, json!([network("c", json!({})), network("a", json!({"x": "1"}))])).await;
    assert_eq!(watch.next().await, told("ADDED", "c"));
    assert_eq!(watch.next().await, told("MODIFIED", "a"));
    drop(watch);
    api(&controller, Method::DELETE, "networks/b", Value::Null, None).await;
    let path = format!("networks?watch=true&resourceVersion={}", here["resourceVersion"].as_str().unwrap());
    let mut watch = Watch::open(&controller, &path).await.ok().unwrap();
    assert_eq!(watch.next().await, told("ADDED", "c"));
    assert_eq!(watch.next().await, told("MODIFIED", "a"));
    assert_eq!(watch.next().await, told("DELETED", "b"));
    let list = api(&controller, Method::GET, "networks", Value::Null, None).await.json();
    let path =
        format!("networks?watch=1&resourceVersion={}", list["metadata"]["resourceVersion"].as_str().unwrap());
    let bad = Watch::open(&controller, &path).await;
    assert!(bad.is_err(), "only true and false are known");
}

#[tokio::test]
async fn a_version_of_another_run_is_gone_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let list = api(&controller, Method::GET, "apps", Value::Null, None).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    drop(controller);
    let controller = open(dir.path(), HOLD);
    for (path, status) in [
        (format!("apps?watch=true&resourceVersion={version}"), StatusCode::GONE),
        ("apps?watch=true&resourceVersion=7".into(), StatusCode::GONE),
        ("apps?watch=true&resourceVersion=new".into(), StatusCode::BAD_REQUEST),
        ("events?watch=true&resourceVersion=99999".into(), StatusCode::GONE),
    ] {
        let refused = Watch::open(&controller, &path).await.err().unwrap();
        assert_eq!(refused.status, status, "{path}");
        assert!(refused.json()["nextStep"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn a_selector_lets_objects_come_and_go_with_their_labels() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    apply(&controller, json!([network("a", json!({"on": "yes"})), network("b", json!({}))])).await;
    let mut watch = Watch::open(&controller, "networks?watch=true&labelSelector=on=yes").await.ok().unwrap();
    assert_eq!(watch.next().await, told("ADDED", "a"));
    assert_eq!(watch.next().await, told("BOOKMARK", ""));
    apply(&controller, json!([network("b", json!({"on": "yes"}))])).await;
    assert_eq!(watch.next().await, told("MODIFIED", "b"));
    apply(&controller, json!([network("a", json!({"on": "no"}))])).await;
    assert_eq!(watch.next().await, told("DELETED", "a"));
    api(&controller, Method::DELETE, "networks/b", Value::Null, None).await;
    assert_eq!(watch.next().await, told("DELETED", "b"));
}

#[tokio::test]
async fn a_change_of_status_reaches_the_watchers_of_the_device_and_of_its_app() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, node) = with_node(dir.path()).await;
    let follower = tokio::spawn(operator_api::follow_statuses(controller.clone()));
    apply(&controller, hello("hello:1")).await;
    let config = node.config("").await.config.unwrap();
    let mut devices = Watch::open(&controller, "devices/s1?watch=true").await.ok().unwrap();
    let mut apps = Watch::open(&controller, "apps?watch=true").await.ok().unwrap();
    let first = apps.line().await;
    assert_eq!(first["object"]["status"]["devices"][0]["state"], "UNKNOWN");
    let app = ZInfoApp {
        app_id: config.apps[0].uuidandversion.clone().unwrap().uuid,
        app_version: config.apps[0].uuidandversion.clone().unwrap().version,
        state: ZSwState::Running.into(),
        ..ZInfoApp::default()
    };
    let info = ZInfoMsg {
        ztype: 3,
        dev_id: node.id.clone(),
        info_content: Some(InfoContent::Ainfo(app)),
        ..ZInfoMsg::default()
    };
    let reply = node.post(&format!("id/{}/info", node.id), info.encode_to_vec()).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let is_running = |line: &Value| line["object"]["status"]["devices"][0]["state"] == "RUNNING";
    while !is_running(&apps.line().await) {}
    while devices.line().await["object"]["status"]["apps"][0]["state"] != "RUNNING" {}
    follower.abort();
}

#[tokio::test]
async fn events_are_watched_from_a_number_on_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    apply(&controller, json!([network("a", json!({}))])).await;
    let mut watch = Watch::open(&controller, "events?watch=true").await.ok().unwrap();
    let first = watch.line().await;
    assert_eq!((&first["object"]["object"], &first["type"]), (&json!("network/a"), &json!("ADDED")));
    assert_eq!(watch.line().await["type"], "BOOKMARK");
    apply(&controller, json!([network("b", json!({}))])).await;
    assert_eq!(watch.line().await["object"]["object"], "network/b");
    drop((watch, controller));
    let controller = open(dir.path(), HOLD);
    let path = format!("events?watch=true&resourceVersion={}", first["resourceVersion"].as_str().unwrap());
    let mut watch = Watch::open(&controller, &path).await.ok().unwrap();
    let second = watch.line().await;
    assert_eq!(second["object"]["object"], "network/b");
    apply(&controller, json!([network("c", json!({}))])).await;
    let mut of_c = Watch::open(&controller, "events?watch=true&object=network/c").await.ok().unwrap();
    assert_eq!(of_c.line().await["object"]["object"], "network/c");
}
