// SPDX-License-Identifier: Apache-2.0
//! Roles, tokens, and the audit of what they did.

use super::watch::Watch;
use super::*;

struct As<'a>(&'a Arc<Controller>, String);

impl As<'_> {
    async fn ask(&self, method: Method, path: &str, body: Value) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/projects/default/{path}", operator_api::BASE))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.1))
            .extension(crate::server::Peer("192.0.2.7:4711".parse().unwrap()))
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = operator_api::router(self.0.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Reply { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }
}

async fn token<'a>(controller: &'a Arc<Controller>, name: &str, role: &str) -> As<'a> {
    let body = json!({ "name": name, "role": role });
    let reply = api(controller, Method::POST, "tokens", body, None).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.json());
    As(controller, reply.json()["token"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn each_role_may_do_its_own_and_a_refusal_says_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    apply(&controller, json!([object("JoinToken", "t", json!({ "serials": ["S1"] }))])).await;
    let (viewer, operator) =
        (token(&controller, "v", "viewer").await, token(&controller, "o", "operator").await);
    let change = json!({ "objects": [object("Network", "n", json!({ "subnet": "10.1.0.0/24" }))] });
    for (who, method, path, body, status) in [
        (&viewer, Method::GET, "networks", Value::Null, 200),
        (&viewer, Method::POST, "plan", change.clone(), 200),
        (&viewer, Method::POST, "apply", change.clone(), 403),
        (&viewer, Method::GET, "jointokens/t/bundle", Value::Null, 403),
        (&operator, Method::GET, "jointokens/t/bundle", Value::Null, 200),
        (&operator, Method::POST, "apply", change, 200),
        (&operator, Method::GET, "tokens", Value::Null, 403),
        (&operator, Method::POST, "tokens", json!({ "name": "x", "role": "admin" }), 403),
    ] {
        let reply = who.ask(method.clone(), path, body).await;
        assert_eq!(reply.status.as_u16(), status, "{method} {path}");
        assert!(status == 200 || reply.json()["nextStep"].as_str().unwrap().contains("token create"));
    }
    let entries = viewer.ask(Method::GET, "audit", Value::Null).await.json();
    let lines: Vec<String> = entries["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            let objects: Vec<_> =
                e["objects"].as_array().into_iter().flatten().map(|o| &o["object"]).collect();
            format!("{} {} {} {:?} {}", e["who"], e["role"], e["action"], objects, e["detail"])
                .replace('"', "")
        })
        .collect();
    expect_test::expect![[r#"
        [
            "admin admin apply [String(jointoken/t)] null",
            "admin admin createToken [] token v of role viewer",
            "admin admin createToken [] token o of role operator",
            "v viewer refused [] POST apply needs role operator",
            "v viewer refused [] GET jointokens/t/bundle needs role operator",
            "o operator apply [String(network/n)] null",
            "o operator refused [] GET tokens needs role admin",
            "o operator refused [] POST tokens needs role admin",
        ]
    "#]]
    .assert_debug_eq(&lines);
    let last_change = &entries["items"][5];
    assert_eq!(last_change["from"], "192.0.2.7");
    assert!(last_change["plan"].as_str().is_some_and(|hash| !hash.is_empty()));
    assert_eq!(last_change["objects"][0]["fields"][0]["path"], "spec.subnet");
}

#[tokio::test]
async fn a_token_ends_when_it_is_over_or_revoked_and_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let kept = token(&controller, "kept", "viewer").await.1;
    let body = json!({ "name": "short", "role": "viewer", "expiresInS": 0 });
    let short = api(&controller, Method::POST, "tokens", body, None).await.json();
    let short = As(&controller, short["token"].as_str().unwrap().to_owned());
    assert_eq!(short.ask(Method::GET, "apps", Value::Null).await.status, StatusCode::UNAUTHORIZED);
    let taken = json!({ "name": "kept", "role": "admin" });
    assert_eq!(api(&controller, Method::POST, "tokens", taken, None).await.status, StatusCode::CONFLICT);
    drop(controller);

    let text = std::fs::read(dir.path().join("intent.db")).unwrap();
    let wal = std::fs::read(dir.path().join("intent.db-wal")).unwrap_or_default();
    let stored = [text, wal].concat();
    assert!(!stored.windows(kept.len()).any(|window| window == kept.as_bytes()), "the secret is stored");
    let controller = open(dir.path(), HOLD);
    let kept = As(&controller, kept);
    assert_eq!(kept.ask(Method::GET, "whoami", Value::Null).await.json()["name"], "kept");
    let mut watch = Watch::open_as(&controller, "apps?watch=true", &kept.1).await.ok().unwrap();
    assert_eq!(watch.line().await["type"], "BOOKMARK");
    let revoked = api(&controller, Method::DELETE, "tokens/kept", Value::Null, None).await;
    assert_eq!(revoked.status, StatusCode::NO_CONTENT);
    assert_eq!(kept.ask(Method::GET, "whoami", Value::Null).await.status, StatusCode::UNAUTHORIZED);
    apply(&controller, hello("hello:1")).await;
    let line = watch.line().await;
    assert_eq!((&line["type"], &line["object"]["status"]), (&json!("ERROR"), &json!(401)));
}

#[tokio::test]
async fn the_audit_is_read_in_pages_and_watched() {
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    for number in 0..5 {
        let subnet = format!("10.{number}.0.0/24");
        apply(&controller, json!([object("Network", "n", json!({ "subnet": subnet }))])).await;
    }
    let first = api(&controller, Method::GET, "audit?limit=2", Value::Null, None).await.json();
    let after = first["metadata"]["resourceVersion"].as_str().unwrap();
    let rest = api(&controller, Method::GET, &format!("audit?after={after}"), Value::Null, None).await.json();
    let sequences = |page: &Value| -> Vec<u64> {
        page["items"].as_array().unwrap().iter().map(|e| e["sequence"].as_u64().unwrap()).collect()
    };
    assert_eq!((sequences(&first), sequences(&rest)), (vec![1, 2], vec![3, 4, 5]));
    let mut watch = Watch::open(&controller, "audit?watch=true&tail=1&object=network/n").await.ok().unwrap();
    assert_eq!(watch.line().await["object"]["sequence"], 5);
    apply(&controller, json!([object("Network", "other", json!({ "subnet": "10.9.0.0/24" }))])).await;
    api(&controller, Method::DELETE, "networks/n", Value::Null, None).await;
    let line = watch.line().await;
    assert_eq!(
        (&line["object"]["sequence"], &line["object"]["objects"][0]["op"]),
        (&json!(7), &json!("remove"))
    );
}

#[tokio::test]
async fn viewers_pull_and_operators_push() {
    use crate::registry::{Action, Authorize as _, Credentials, Decision};
    let dir = tempfile::tempdir().unwrap();
    let controller = open(dir.path(), HOLD);
    let users = operator_api::RegistryUsers::new(controller.clone());
    let (viewer, operator) =
        (token(&controller, "v", "viewer").await.1, token(&controller, "o", "operator").await.1);
    let basic = |password| Credentials::Basic { username: "anyone", password };
    for (credentials, action, decision) in [
        (basic(&viewer), Action::Pull, Decision::Allow),
        (basic(&viewer), Action::Push, Decision::Deny),
        (Credentials::Bearer(&operator), Action::Push, Decision::Allow),
        (basic(&controller.admin_token), Action::Push, Decision::Allow),
        (basic("wrong"), Action::Pull, Decision::Unauthenticated),
        (Credentials::Anonymous, Action::Pull, Decision::Unauthenticated),
        (
            Credentials::Basic {
                username: &controller.site.pull_user,
                password: &controller.site.pull_password,
            },
            Action::Push,
            Decision::Deny,
        ),
    ] {
        assert_eq!(users.authorize(credentials, None, action), decision, "{credentials:?} {action:?}");
    }
}
