// SPDX-License-Identifier: Apache-2.0
//! Who may do what: tokens with a name, a role and an end.
//!
//! | role | may |
//! |---|---|
//! | viewer | read objects, reports, events, the audit; plan; pull images |
//! | operator | and change objects, read onboarding bundles, push images |
//! | admin | and make and revoke tokens, take backups |
//!
//! A token is a random secret that is shown once. Only its SHA-256 is stored: the secret has 256 random bits, so nothing
//! slower is needed. The one exception is the token in the file `admin-token` of the data directory: who can read that
//! directory has the keys anyway. It has the name `admin`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use controller_core::resource::DEFAULT_PROJECT;
use controller_core::validate::is_name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::{Action, Entry};
use crate::files::random_hex;
use crate::node::lock;
use crate::state::{Controller, StateError, now_ms, to_bytes};
use crate::store::{Store, Txn};

/// Version of the stored form.
const FORMAT: u32 = 1;
/// Tokens at once: people, machines and scrapers of one installation.
const MAX_TOKENS: usize = 1000;
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Begin of every secret: scanners for leaked secrets look for such.
const SECRET_PREFIX: &str = "selvedge_";
/// Name of the token in the data directory.
const LOCAL_ADMIN: &str = "admin";

/// What a token allows; each allows what those before it do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    Viewer,
    Operator,
    Admin,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub name: Arc<str>,
    pub role: Role,
    pub from: Option<IpAddr>,
    hash: [u8; 32],
}

impl Caller {
    /// Whoever works on the data directory itself.
    pub(crate) fn local() -> Caller {
        Caller { name: LOCAL_ADMIN.into(), role: Role::Admin, from: None, hash: [0; 32] }
    }

    #[cfg(test)]
    pub(crate) fn new(name: &str, role: Role) -> Caller {
        Caller { name: name.into(), role, from: None, hash: [0; 32] }
    }
}

/// What is stored of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub format: u32,
    pub name: String,
    pub role: Role,
    /// SHA-256 of the secret in hex.
    hash: String,
    pub created_ms: i64,
    pub created_by: String,
    #[serde(default)]
    pub expires_ms: Option<i64>,
}

/// What a new token is to be.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// Lower-case letters, digits, `-` and `.`, at most 63 characters.
    pub name: String,
    pub role: Role,
    /// Seconds until it ends; left out: never.
    #[serde(default)]
    pub expires_in_s: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("'{0}' cannot be the name of a token: 1 to 63 lower-case letters, digits, - and .")]
    Name(String),
    #[error("token {0} exists already")]
    Taken(String),
    #[error("token {0} does not exist")]
    Unknown(String),
    #[error("there are {MAX_TOKENS} tokens already")]
    TooMany,
    #[error("a token cannot live that long")]
    Expiry,
    #[error(transparent)]
    State(#[from] StateError),
}

/// All tokens, by the hash of their secret.
#[derive(Debug)]
pub struct Tokens {
    all: RwLock<HashMap<[u8; 32], Arc<Token>>>,
    /// Held while tokens change: those who only look do not wait for the disk.
    changing: Mutex<()>,
    local_admin: [u8; 32],
}

fn hash(secret: &str) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref());
    out
}

fn token_key(name: &str) -> String {
    format!("{DEFAULT_PROJECT}/token/{name}")
}

impl Tokens {
    pub(crate) fn open(store: &dyn Store, local_admin: &str) -> Result<Tokens, StateError> {
        let mut all = HashMap::new();
        for (key, entry) in store.range(&token_key(""))? {
            let bad = || StateError::Entry(key.clone());
            let token: Token = serde_json::from_slice(&entry.value).map_err(|_| bad())?;
            let mut hash = [0; 32];
            hex::decode_to_slice(&token.hash, &mut hash).map_err(|_| bad())?;
            all.insert(hash, Arc::new(token));
        }
        Ok(Tokens { all: RwLock::new(all), changing: Mutex::default(), local_admin: hash(local_admin) })
    }

    /// Who has this secret. Looking a hash up tells nothing of the secret by the time it takes.
    pub(crate) fn caller(&self, secret: &str, from: Option<IpAddr>) -> Option<Caller> {
        let hash = hash(secret);
        let (name, role) = self.known(&hash)?;
        Some(Caller { name, role, from, hash })
    }

    /// The token of somebody who came earlier still holds.
    pub(crate) fn is_current(&self, caller: &Caller) -> bool {
        self.known(&caller.hash).is_some_and(|(_, role)| role == caller.role)
    }

    fn known(&self, hash: &[u8; 32]) -> Option<(Arc<str>, Role)> {
        if *hash == self.local_admin {
            return Some((LOCAL_ADMIN.into(), Role::Admin));
        }
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let token = all.get(hash)?;
        let is_over = token.expires_ms.is_some_and(|end_ms| end_ms <= now_ms());
        (!is_over).then(|| (token.name.as_str().into(), token.role))
    }

    /// All tokens by name, also those that are over.
    pub(crate) fn list(&self) -> Vec<Arc<Token>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut out: Vec<Arc<Token>> = all.values().cloned().collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }
}

impl Controller {
    /// Makes a token; the secret is given out this once. Blocks.
    pub fn create_token(
        &self,
        caller: &Caller,
        request: &TokenRequest,
    ) -> Result<(Arc<Token>, String), AccessError> {
        if !is_name(&request.name) {
            return Err(AccessError::Name(request.name.clone()));
        }
        let _changing = lock(&self.tokens.changing);
        let all = self.tokens.list();
        if request.name == LOCAL_ADMIN || all.iter().any(|token| token.name == request.name) {
            return Err(AccessError::Taken(request.name.clone()));
        }
        if all.len() >= MAX_TOKENS {
            return Err(AccessError::TooMany);
        }
        let now = now_ms();
        let end = |seconds: u64| {
            let end_ms = i64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(now)?;
            jiff::Timestamp::from_millisecond(end_ms).is_ok().then_some(end_ms)
        };
        let expires_ms =
            request.expires_in_s.map(|seconds| end(seconds).ok_or(AccessError::Expiry)).transpose()?;
        let secret = format!("{SECRET_PREFIX}{}", random_hex(SECRET_BYTES));
        let hash = hash(&secret);
        let token = Token {
            format: FORMAT,
            name: request.name.clone(),
            role: request.role,
            hash: hex::encode(hash),
            created_ms: now,
            created_by: caller.name.to_string(),
            expires_ms,
        };
        let txn = Txn {
            compares: vec![(token_key(&token.name), 0)],
            puts: vec![(token_key(&token.name), to_bytes(&token))],
            ..Txn::default()
        };
        let detail = format!("token {} of role {}", token.name, token.role.name());
        self.audit.commit(txn, Entry::new(caller, Action::CreateToken, detail))?;
        let token = Arc::new(token);
        self.tokens.all.write().unwrap_or_else(PoisonError::into_inner).insert(hash, token.clone());
        Ok((token, secret))
    }

    /// Takes a token away; whoever uses it is refused from now on. Blocks.
    pub fn revoke_token(&self, caller: &Caller, name: &str) -> Result<(), AccessError> {
        let _changing = lock(&self.tokens.changing);
        if !self.tokens.list().iter().any(|token| token.name == name) {
            return Err(AccessError::Unknown(name.into()));
        }
        let txn = Txn { deletes: vec![token_key(name)], ..Txn::default() };
        self.audit.commit(txn, Entry::new(caller, Action::RevokeToken, format!("token {name}")))?;
        let mut all = self.tokens.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, token| token.name != name);
        Ok(())
    }
}
