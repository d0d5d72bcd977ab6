// SPDX-License-Identifier: Apache-2.0
//! `/metrics` for Prometheus: with a token on the common port, or open on an address of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::{Answered, Api, Problem, guard};
use crate::state::Controller;
use crate::telemetry::{CONTENT_TYPE, gather, render};

/// With a token of any role; Prometheus sends it as bearer, or as password.
pub(super) async fn guarded(State(api): State<Api>, request: Request) -> Answered {
    guard::caller(&api, &request)?;
    figures(api).await
}

async fn open(State(api): State<Api>) -> Answered {
    figures(api).await
}

async fn figures(api: Api) -> Answered {
    // Two scrapers at once do not cost twice at once.
    let _turn = api.gathering.acquire().await;
    let gathering = api.clone();
    let text = tokio::task::spawn_blocking(move || render(&gather(&gathering)));
    let text = text.await.map_err(|_| Problem::internal())?;
    let mut response: Response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    Ok(response)
}

/// Serves `/metrics` alone, over plain HTTP and without a token, until the task is dropped.
pub(crate) async fn serve_open(address: SocketAddr, controller: Arc<Controller>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let router = Router::new().route("/metrics", get(open)).with_state(controller);
    loop {
        let (stream, _) = listener.accept().await?;
        let router = router.clone();
        tokio::spawn(async move {
            let service = hyper_util::service::TowerToHyperService::new(router);
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(hyper_util::rt::TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            // A scraper that goes away is no error.
            let _ = tokio::time::timeout(LIFE, connection).await;
        });
    }
}

/// Time for the head of a request.
const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest life of a connection; scrapers open another.
const LIFE: std::time::Duration = std::time::Duration::from_secs(600);
