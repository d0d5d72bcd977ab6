// SPDX-License-Identifier: Apache-2.0
//! `backup`: one file with everything, taken while all runs.

use std::io::{self, Write};

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse as _;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{Answered, Api, Problem, blocking};
use crate::access::Caller;
use crate::audit::{Action, Entry};
use crate::backup::{Images, write};
use crate::state::now_ms;
use crate::store::Txn;

/// Bytes handed on at once, and how many such wait for a client that reads slowly.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNKS: usize = 8;
/// Seconds after which somebody who was refused may try again.
const RETRY_S: u64 = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct BackupQuery {
    /// With the images of the registry.
    images: bool,
}

/// Hands on what is written, in chunks.
struct Chunks {
    buffer: Vec<u8>,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl Chunks {
    fn send(&mut self) -> io::Result<()> {
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES)));
        self.out.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..count]);
        if self.buffer.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

pub(super) async fn backup(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<BackupQuery>,
) -> Answered {
    let slot = api.backups.clone().try_acquire_owned().map_err(|_| {
        let detail = "another backup is being taken";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", detail)
            .next("try again later")
            .retry_after(RETRY_S)
    })?;
    let images = if query.images { Images::Included } else { Images::LeftOut };
    let detail = if query.images { "with images" } else { "without images" };
    blocking(&api, move |c| {
        c.audit.commit(Txn::default(), Entry::new(&caller, Action::Backup, detail)).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot enter a backup into the audit");
            Problem::internal()
        })
    })
    .await?;
    let (out, chunks) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let sink = Chunks { buffer: Vec::with_capacity(CHUNK_BYTES), out: out.clone() };
        if let Err(error) = write(&api.data, &**api.store(), now_ms(), images, sink) {
            tracing::error!(error = &error as &dyn std::error::Error, "a backup failed");
            // The connection breaks off, so that nobody takes half a file for a backup.
            let _ = out.blocking_send(Err(io::Error::other("the backup failed")));
        }
        drop(slot);
    });
    let body =
        stream::unfold(chunks, |mut chunks| async move { chunks.recv().await.map(|chunk| (chunk, chunks)) });
    let mut response = Body::from_stream(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}
