// SPDX-License-Identifier: Apache-2.0
//! `/config`: the device's config, or 304. A 304 is held until there is something new to say.

use std::sync::Arc;
use std::time::Duration;

use controller_core::resource::Attestation;
use eve_api::Message as _;
use eve_api::wire::config::ConfigRequest;
use hyper::StatusCode;
use hyper::header::HeaderMap;

use super::{Answer, Outcome, malformed};
use crate::node::{ConfigState, Node};
use crate::state::{Controller, now_ms, text_hash};

/// Changes that follow each other closely go out together.
const SETTLE: Duration = Duration::from_millis(20);

pub(super) async fn config(
    controller: &Arc<Controller>,
    node: &Arc<Node>,
    headers: &HeaderMap,
    payload: &[u8],
) -> Outcome {
    let request = ConfigRequest::decode(payload).map_err(|_| malformed("not a ConfigRequest"))?;
    let token = text_hash(&request.integrity_token);
    let is_trusted =
        node.policy() == Attestation::None || node.with_record(|r| r.attest.accepts(&token, now_ms()));
    if !is_trusted {
        return Err(Answer::refuse(StatusCode::FORBIDDEN, "attest first"));
    }
    if node.is_restored() {
        controller.settle(node, &request.config_hash).await?;
    }
    let mut watch = node.config.subscribe();
    if matches!(&*watch.borrow_and_update(), ConfigState::Unknown) {
        // After a start all devices come at once: a few at a time are computed, the others wait without a thread each.
        let _turn = controller.computing.acquire().await;
        let (controller, node) = (controller.clone(), node.clone());
        tokio::task::spawn_blocking(move || controller.config_state(&node)).await??;
    }
    let hold = controller.hold.min(preferred_wait(headers).unwrap_or(Duration::MAX));
    let is_new = |state: &ConfigState| match state {
        ConfigState::Unknown => false,
        ConfigState::Published(config) => config.hash != request.config_hash,
        ConfigState::Gone => true,
    };
    let is_held = !is_new(&watch.borrow_and_update());
    if is_held {
        // Whether it changed or the time is over shows below.
        let _ = tokio::time::timeout(hold, watch.wait_for(is_new)).await;
        if is_new(&watch.borrow()) {
            tokio::time::sleep(SETTLE).await;
        }
        controller.seen(node);
    }
    let state = watch.borrow().clone();
    match state {
        ConfigState::Published(config) if config.hash == request.config_hash => {
            Ok(Answer::done(StatusCode::NOT_MODIFIED))
        }
        ConfigState::Published(config) => Ok(Answer::envelope(StatusCode::OK, config.body.clone())),
        ConfigState::Gone => Err(Answer::refuse(StatusCode::NOT_FOUND, "the device was deleted")),
        ConfigState::Unknown => Err(Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "try again later")),
    }
}

/// `Prefer: wait=N` (RFC 7240), in seconds.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(',')).map(str::trim);
    let seconds = preferences.find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').parse().ok())?
    });
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        let wait = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", value.parse().unwrap());
            preferred_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("wait=35"), Some(35));
        assert_eq!(wait("respond-async, Wait = \"7\"; foo"), Some(7));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("respond-async"), None);
    }
}
