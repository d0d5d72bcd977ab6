// SPDX-License-Identifier: Apache-2.0
//! Lets requests in: a known token, a role that allows what is asked, a project that exists. Tells who refused was.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use controller_core::resource::{DEFAULT_PROJECT, Kind};

use super::{Api, BASE, Problem};
use crate::access::{Caller, Role};
use crate::server::Peer;
use crate::state::Controller;

/// What a request to a path below the project takes at least.
fn needed(method: &Method, path: &str) -> Role {
    let mut parts = path.trim_start_matches('/').split('/');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next_back());
    match first {
        "tokens" | "backup" => Role::Admin,
        "plan" => Role::Viewer,
        // Holds the private key with which nodes onboard.
        first if first == Kind::JoinToken.plural() && last == Some("bundle") => Role::Operator,
        _ if method == Method::GET || method == Method::HEAD => Role::Viewer,
        _ => Role::Operator,
    }
}

/// The secret of a request: a bearer token, or the password of basic credentials.
fn secret(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    if let Some(token) = value.strip_prefix("Bearer ") {
        return Some(token.trim().to_owned());
    }
    let decoded =
        base64::engine::general_purpose::STANDARD.decode(value.strip_prefix("Basic ")?.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Who sent a request; the problem is the answer to somebody unknown.
pub(super) fn caller(controller: &Controller, request: &Request) -> Result<Caller, Problem> {
    let from: Option<IpAddr> = request.extensions().get::<Peer>().map(|peer| peer.0.ip().to_canonical());
    let secret = secret(request.headers());
    secret.and_then(|secret| controller.tokens.caller(&secret, from)).ok_or_else(|| {
        Problem::new(StatusCode::UNAUTHORIZED, "Unauthorized", "a token is needed that is known and not over")
            .next("give --token, or run on the controller's host with --data")
    })
}

/// Lets a request through to the operator API, with its [`Caller`] among its extensions.
pub(super) async fn guard(State(controller): State<Api>, mut request: Request, next: Next) -> Response {
    let caller = match caller(&controller, &request) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let base = format!("{BASE}/projects/");
    let below = request.uri().path().strip_prefix(&base).unwrap_or_default();
    let (project, path) = below.split_once('/').unwrap_or((below, ""));
    if project != DEFAULT_PROJECT {
        let detail = format!("project {project} does not exist");
        return Problem::new(StatusCode::NOT_FOUND, "NotFound", detail).into_response();
    }
    let role = needed(request.method(), path);
    if caller.role < role {
        let what = format!("{} {path} needs role {}", request.method(), role.name());
        return refuse(controller, caller, what, role).await;
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

async fn refuse(controller: Api, caller: Caller, what: String, role: Role) -> Response {
    let detail = format!("token {} has role {}; {what}", caller.name, caller.role.name());
    tracing::warn!(who = &*caller.name, from = ?caller.from, what, "refused");
    let entered = tokio::task::spawn_blocking(move || controller.audit.refused(&caller, &what)).await;
    if !matches!(entered, Ok(Ok(()))) {
        tracing::error!(?entered, "cannot enter a refusal into the audit");
    }
    let step = format!("ask an admin for one: selvedge token create NAME --role {}", role.name());
    Problem::new(StatusCode::FORBIDDEN, "Forbidden", detail).next(step).into_response()
}

/// Decides about users of the registry: viewers and devices may pull, operators push.
#[derive(Debug)]
pub struct RegistryUsers {
    controller: Arc<Controller>,
}

impl RegistryUsers {
    pub fn new(controller: Arc<Controller>) -> RegistryUsers {
        RegistryUsers { controller }
    }
}

impl crate::registry::Authorize for RegistryUsers {
    fn authorize(
        &self,
        credentials: crate::registry::Credentials<'_>,
        _: Option<&crate::registry::RepositoryName>,
        action: crate::registry::Action,
    ) -> crate::registry::Decision {
        use crate::registry::{Action, Credentials, Decision};
        let secret = match credentials {
            Credentials::Anonymous => return Decision::Unauthenticated,
            Credentials::Bearer(token) => token,
            Credentials::Basic { username, password } => {
                let site = &self.controller.site;
                if username == site.pull_user && super::is_same_secret(password, &site.pull_password) {
                    return match action {
                        Action::Check | Action::Pull => Decision::Allow,
                        Action::Catalog | Action::Push | Action::Delete => Decision::Deny,
                    };
                }
                password
            }
        };
        let Some(caller) = self.controller.tokens.caller(secret, None) else {
            return Decision::Unauthenticated;
        };
        let needed = match action {
            Action::Check | Action::Catalog | Action::Pull => Role::Viewer,
            Action::Push | Action::Delete => Role::Operator,
        };
        if caller.role >= needed { Decision::Allow } else { Decision::Deny }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_needed_by_what_a_request_does() {
        for (method, path, role) in [
            (Method::GET, "devices", Role::Viewer),
            (Method::GET, "apps/bundle", Role::Viewer),
            (Method::GET, "audit", Role::Viewer),
            (Method::POST, "plan", Role::Viewer),
            (Method::GET, "jointokens/t", Role::Viewer),
            (Method::GET, "jointokens/t/bundle", Role::Operator),
            (Method::GET, "//jointokens/t/bundle", Role::Operator),
            (Method::POST, "apply", Role::Operator),
            (Method::PUT, "apps/a", Role::Operator),
            (Method::DELETE, "apps/a", Role::Operator),
            (Method::PATCH, "what/ever", Role::Operator),
            (Method::GET, "tokens", Role::Admin),
            (Method::POST, "tokens", Role::Admin),
            (Method::DELETE, "tokens/x", Role::Admin),
            (Method::GET, "backup", Role::Admin),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }
}
