// SPDX-License-Identifier: Apache-2.0
//! Private files that are whole or not there ([`service::durable`]), read into memory that is wiped.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use service::durable::replace as write;
use zeroize::Zeroizing;

/// Largest file read: PEM texts and certificate sets are far smaller.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The content of `dir/name`; `None` when there is no such file.
pub fn read(dir: &Path, name: &str) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let file = match File::open(dir.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Zeroizing::new(Vec::new());
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("file larger than allowed"));
    }
    Ok(Some(content))
}
