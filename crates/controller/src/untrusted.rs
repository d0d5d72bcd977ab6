// SPDX-License-Identifier: Apache-2.0
//! Doors to the private parsers of this crate for whoever attacks them (package `fuzz`). No product uses them.

use std::path::Path;

use controller_core::intent::Object;
use controller_core::resource::Spec;
use serde_json::Value;
use uuid::Uuid;

use crate::objects::{self, Stored};
use crate::observed::segment::{Kind, Quota, Stream};

/// A document of an operator; what was taken is stored, read back and shown.
pub fn document(untrusted: &Value) -> Option<Object<Spec>> {
    let sent = objects::parse(untrusted).ok()?;
    let uid = Uuid::new_v5(&Uuid::nil(), format!("{:?}/{}", sent.kind, sent.metadata.name).as_bytes());
    let stored = Stored::new(&sent, uid, "1970-01-01T00:00:00Z".into());
    assert!(stored.updated(&sent).is_none(), "the same document is a change");
    let bytes = serde_json::to_vec(&stored).expect("a stored object is JSON");
    let back: Stored = serde_json::from_slice(&bytes).expect("what was stored can be read");
    let _ = back.document(None);
    Some(back.object().expect("what was taken can be read again"))
}

/// Opens a damaged stream of observed state, goes on writing, and reads it: what is written after the damage is there.
pub fn segments(dir: &Path) {
    let quota = Quota { min_records: 3, min_bytes: 10, max_bytes: 100_000 };
    let mut stream = Stream::open(dir, "info", quota, |_| ()).expect("damage is no reason to refuse");
    let before = stream.read().expect("what was opened can be read").len();
    let appended = stream.append(Kind::Message, 1, b"after").is_ok();
    drop(stream);
    let stream = Stream::open(dir, "info", quota, |_| ()).expect("and opens again");
    let records = stream.read().expect("and can be read again");
    if appended {
        assert_eq!(records.len(), before + 1, "a record was lost");
        assert_eq!(records.last().map(|record| &record.bytes[..]), Some(&b"after"[..]));
    }
}
