// SPDX-License-Identifier: Apache-2.0
//! The built-in registry under any requests: names, manifests, uploads.

use std::cell::RefCell;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use controller::registry::{AllowAll, Limits, Registry, router};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

/// Requests one registry serves before a fresh one takes its place: what is stored stays within bounds.
const REQUESTS: usize = 500;
/// Requests of one input.
const REQUESTS_MAX: usize = 8;

struct Standing {
    router: Router,
    runtime: tokio::runtime::Runtime,
    left: usize,
    _place: tempfile::TempDir,
}

impl Standing {
    fn new() -> Standing {
        let place = super::place();
        let limits = Limits { free_bytes: 0, ..Limits::default() };
        let registry = Registry::open(place.path()).expect("an empty directory is a registry");
        let registry = registry.with_authorize(Arc::new(AllowAll)).with_limits(limits);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Standing {
            router: router(Arc::new(registry)),
            runtime: runtime.expect("a runtime can be made"),
            left: REQUESTS,
            _place: place,
        }
    }
}

thread_local! {
    static STANDING: RefCell<Option<Standing>> = const { RefCell::new(None) };
}

/// Requests cut at zero bytes: a line of method and path, lines of headers, an empty line, the body. None is our fault.
pub(crate) fn requests(data: &[u8]) {
    STANDING.with_borrow_mut(|standing| {
        if standing.as_ref().is_none_or(|standing| standing.left == 0) {
            *standing = Some(Standing::new());
        }
        let Some(standing) = standing else { return };
        for request in super::parts(data).take(REQUESTS_MAX).filter_map(request) {
            let path = request.uri().clone();
            let answer = standing.runtime.block_on(async {
                let answer = standing.router.clone().oneshot(request).await.expect("a router does not fail");
                let status = answer.status();
                answer.into_body().collect().await.expect("an answer ends");
                status
            });
            assert!(!answer.is_server_error() || answer.as_u16() == 503, "{answer} to {path}");
            standing.left = standing.left.saturating_sub(1);
        }
    });
}

fn request(data: &[u8]) -> Option<Request<Body>> {
    let end = data.windows(2).position(|window| window == b"\n\n").unwrap_or(data.len());
    let (head, body) = data.split_at(end);
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).ok()?).uri(path);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    request.body(Body::from(body.strip_prefix(b"\n\n").unwrap_or_default().to_vec())).ok()
}
