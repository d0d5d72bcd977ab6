// SPDX-License-Identifier: Apache-2.0
//! Requests that no good client sends, to every operation that the operator API describes, made from its own schemas, and
//! to every row of the device API's table: whatever comes, the answer is no failure of this side, and an error of the
//! operator API says in one form what to do next. What strangers send over sockets stands in `tests/bad_input`.

use super::*;
use controller_core::resource::Kind;
use eve_api::paths::Endpoint;

/// Text of the module that names the routes.
const ROUTES: &str = include_str!("../operator_api/mod.rs");
/// Not of the API: for probes of load balancers, and the description itself.
const NOT_DESCRIBED: [&str; 2] = ["/healthz", "/openapi.json"];

fn described() -> Value {
    operator_api::openapi_document()
}

#[test]
fn every_route_is_described() {
    let described = described();
    let paths = described["paths"].as_object().unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for route in ROUTES.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        seen += 1;
        let plurals = Kind::ALL.map(|kind| route.replace("{plural}", kind.plural()));
        for route in plurals {
            let project = format!("{}/projects/{{project}}{route}", operator_api::BASE);
            let is_known = [&route, &project].iter().any(|path| paths.contains_key(*path));
            if !is_known && !NOT_DESCRIBED.contains(&&*route) && !wrong.contains(&route) {
                wrong.push(route);
            }
        }
    }
    assert!(seen > 15, "{seen} routes were found in the source");
    assert!(wrong.is_empty(), "not described: {wrong:?}");
}

/// Values that are seldom what a field wants.
fn odd_values() -> Vec<Value> {
    let mut nested = json!({});
    for _ in 0..60 {
        nested = json!({ "a": [nested] });
    }
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\r\n'\"; drop table intent; --"),
        json!("../../../etc/passwd"),
        json!("ü".repeat(5_000)),
        json!([]),
        json!([null, {}, "x"]),
        json!({ "": null }),
        nested,
    ]
}

/// Bodies for an operation that takes objects: each field of each kind with each odd value.
fn odd_changes(described: &Value) -> Vec<Value> {
    let values = odd_values();
    let mut out = Vec::new();
    for value in &values {
        out.push(value.clone());
        for field in ["objects", "delete", "plan", "unknown"] {
            out.push(json!({ field: value }));
            out.push(json!({ field: [value] }));
        }
        for field in ["apiVersion", "kind", "metadata", "spec", "status"] {
            let mut change = json!({ "objects": [object("App", "odd", json!({ "image": "a:1" }))] });
            change["objects"][0][field] = value.clone();
            out.push(change);
        }
    }
    for kind in Kind::ALL {
        let schema = &described["components"]["schemas"][format!("{}Spec", kind.name())];
        let fields = schema["properties"].as_object().unwrap();
        for (field, value) in fields.keys().flat_map(|field| values.iter().map(move |value| (field, value))) {
            out.push(json!({ "objects": [object(kind.name(), "odd", json!({ field: value }))] }));
        }
    }
    out
}

async fn ask(controller: &Arc<Controller>, method: &str, path: &str, token: &str, body: Vec<u8>) -> Reply {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, token)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .unwrap();
    let response = operator_api::router(controller.clone()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Reply { status: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
}

/// What is wrong with an answer to whatever was sent.
fn judged(reply: &Reply) -> Option<String> {
    let status = reply.status;
    if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        return Some(format!("{status}: {}", String::from_utf8_lossy(&reply.body)));
    }
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let kind = reply.headers.get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != "application/problem+json") {
        return Some(format!("{status} is {kind:?}: {}", String::from_utf8_lossy(&reply.body)));
    }
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    let has_step = problem["nextStep"].as_str().is_some_and(|step| !step.is_empty());
    (!has_step || problem["status"] != status.as_u16()).then(|| format!("{status}: {problem}"))
}

#[tokio::test]
async fn every_operation_answers_nonsense_with_a_problem_and_a_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, _node) = with_node(dir.path()).await;
    let described = described();
    let token = format!("Bearer {}", controller.admin_token);
    let noise: Vec<u8> = (0..2_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bodies: [Vec<u8>; 5] =
        [vec![], noise, b"{".to_vec(), "[".repeat(50_000).into_bytes(), b"\"\\ud800\"".to_vec()];
    let queries =
        ["", "?watch=perhaps&limit=-1&tail=x&after=99999999999999999999&resourceVersion=x&%ff=%00&&="];
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for (path, item) in described["paths"].as_object().unwrap() {
        for project in ["default", "%00%2e%2e"] {
            let path = path.replace("{project}", project).replace("{name}", "nobody");
            let methods = item.as_object().unwrap().keys().map(|method| method.to_uppercase());
            let methods =
                methods.filter(|method| method != "PARAMETERS").chain(["BREW".into(), "PATCH".into()]);
            for method in methods {
                // Who sends no body by custom sends one kind of nonsense at most.
                let bodies = if matches!(&*method, "PUT" | "POST") { &bodies[..] } else { &bodies[..2] };
                for query in queries {
                    for body in bodies {
                        for token in [&*token, "Bearer wrong"] {
                            let path = format!("{path}{query}");
                            let reply = ask(&controller, &method, &path, token, body.clone()).await;
                            asked += 1;
                            wrong.extend(judged(&reply).map(|why| format!("{method} {path}: {why}")));
                        }
                    }
                }
            }
        }
    }
    assert!(asked > 1_000, "{asked}");
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
}

#[tokio::test]
async fn every_field_of_every_kind_takes_or_refuses_any_value() {
    let dir = tempfile::tempdir().unwrap();
    let (controller, _node) = with_node(dir.path()).await;
    let described = described();
    let token = format!("Bearer {}", controller.admin_token);
    let plan = format!("{}/projects/default/plan", operator_api::BASE);
    let changes = odd_changes(&described);
    assert!(changes.len() > 500, "{}", changes.len());
    let mut wrong = Vec::new();
    for change in &changes {
        let reply = ask(&controller, "POST", &plan, &token, change.to_string().into_bytes()).await;
        let text: String = change.to_string().chars().take(200).collect();
        wrong.extend(judged(&reply).map(|why| format!("{text}: {why}")));
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    let put = format!("{}/projects/default/apps/odd", operator_api::BASE);
    for value in odd_values() {
        let reply = ask(&controller, "PUT", &put, &token, value.to_string().into_bytes()).await;
        assert!(reply.status.is_client_error(), "{value}: {}", reply.status);
        assert_eq!(judged(&reply), None, "{value}");
    }
    let large = vec![b' '; 64 << 20];
    let reply = ask(&controller, "POST", &plan, &token, large).await;
    assert_eq!((reply.status, judged(&reply)), (StatusCode::PAYLOAD_TOO_LARGE, None));
}

#[tokio::test]
async fn every_call_of_the_device_api_refuses_nonsense_signed_or_not() {
    const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
    let dir = tempfile::tempdir().unwrap();
    let (_controller, node) = with_node(dir.path()).await;
    let noise: Vec<u8> = (0..4_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // A field of length 2^60, nesting without end, a gzip that breaks off, JSON where there is none to be.
    let nested: Vec<u8> = (0..3_000_u32).flat_map(|_| [0x0a, 0xff, 0x7f]).collect();
    let long = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let payloads = [vec![], noise, nested, long, vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1], b"{}".to_vec()];
    let mut asked = 0;
    for device in [&*node.id, NOBODY, "..", "%00"] {
        for endpoint in Endpoint::all(device, NOBODY) {
            let path = endpoint.to_string();
            let path = path.strip_prefix(DEVICE_API).unwrap().trim_start_matches('/');
            for payload in &payloads {
                for reply in [node.send(path, payload.clone()).await, node.post(path, payload.clone()).await]
                {
                    asked += 1;
                    let status = reply.status;
                    let is_own_fault = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
                    assert!(!is_own_fault, "{path} {payload:.20?}: {status}");
                    let is_signed_well = device == node.id && status.is_success();
                    let is_open = matches!(endpoint, Endpoint::Uuid | Endpoint::AppNewlogs { .. });
                    let is_refused = status.is_client_error();
                    assert!(is_refused || is_signed_well || is_open, "{path} {payload:.20?}: {status}");
                }
            }
        }
    }
    assert!(asked > 600, "{asked}");
    assert_eq!(node.poll("").await.status, StatusCode::OK, "the one that behaves is served");
}
