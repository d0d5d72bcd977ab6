// SPDX-License-Identifier: Apache-2.0
//! Reading tar archives as a stream: ustar, GNU (long names, sparse files, base-256 numbers) and pax (paths, times,
//! owners, extended attributes, the three sparse formats).
//!
//! ```text
//! next_entry() ─▶ Entry ─▶ read content until empty ─▶ next_entry() … ─▶ None ─▶ drain()
//! ```
//!
//! Content that was not read is skipped by `next_entry`. Every list and text has a limit, so a small archive cannot fill the
//! memory; what the archive says of paths is passed on as it stands and judged by [`crate::unpack`].

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead};

use header::{BLOCK, Header};
use pax::Pax;
pub use sparse::Segment;

/// Longest path or link target (PATH_MAX of Linux).
pub const MAX_PATH_BYTES: usize = 4096;
/// Largest pax header or long name: room for extended attributes, of which Linux takes 64 KiB each.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Extended attributes of one file at most.
pub const MAX_XATTRS: usize = 128;
/// Pieces of one sparse file at most.
pub const MAX_SEGMENTS: usize = 1 << 20;
/// Extension headers in front of one entry at most; writers use four.
const MAX_EXTENSIONS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("archive cannot be read")]
    Read(#[from] io::Error),
    #[error("archive ends inside an entry")]
    Truncated,
    #[error("archive has a header with a wrong checksum")]
    Checksum,
    #[error("archive has an unreadable {0}")]
    Field(&'static str),
    #[error("archive has a {what} larger than {limit}")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("archive has a sparse file whose pieces do not fit it")]
    Sparse,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    CharDevice,
    BlockDevice,
    /// A type this reader does not know: its content is skipped.
    Other(u8),
}

/// One entry. Its content is read from the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, with set-uid, set-gid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of the file once it is unpacked.
    pub size: u64,
    /// Of a sparse file: where the content's bytes belong, in rising order; the rest are holes.
    pub sparse: Option<Vec<Segment>>,
}

/// An archive being read.
#[derive(Debug)]
pub struct Archive<R> {
    inner: R,
    /// Content bytes of the present entry not yet read.
    content: u64,
    /// Zero bytes behind the content.
    padding: u64,
    global: Pax,
    at_end: bool,
}

impl<R: BufRead> Archive<R> {
    pub fn new(inner: R) -> Archive<R> {
        Archive { inner, content: 0, padding: 0, global: Pax::default(), at_end: false }
    }

    /// The next entry, after skipping what is left of the present one; `None` at the archive's end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut local = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        for _ in 0..MAX_EXTENSIONS {
            self.skip_content()?;
            let Some(header) = self.next_header()? else { return Ok(None) };
            match header.kind() {
                b'x' => local.read(&self.extension(&header)?)?,
                b'g' => {
                    let bytes = self.extension(&header)?;
                    self.global.read(&bytes)?;
                }
                b'L' => long_path = Some(self.long_name(&header)?),
                b'K' => long_link = Some(self.long_name(&header)?),
                _ => {
                    let pax = local.over(&self.global);
                    return self.entry(&header, pax, long_path, long_link).map(Some);
                }
            }
        }
        Err(TarError::TooLarge { what: "number of extension headers", limit: MAX_EXTENSIONS as u64 })
    }

    /// Some of the entry's content; empty when all of it has been consumed.
    pub fn content(&mut self) -> Result<&[u8], TarError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let buffer = self.inner.fill_buf()?;
        if buffer.is_empty() {
            return Err(TarError::Truncated);
        }
        let len = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        Ok(&buffer[..len])
    }

    /// Marks bytes of [`Archive::content`] as done.
    pub fn consume(&mut self, len: usize) {
        let len = usize::try_from(self.content).unwrap_or(usize::MAX).min(len);
        self.content -= len as u64;
        self.inner.consume(len);
    }

    /// Bytes of content the archive holds for the present entry and that were not consumed yet.
    pub fn content_left(&self) -> u64 {
        self.content
    }

    /// Reads what follows the archive's end mark, so that whoever sums up the stream sees all of it.
    pub fn drain(mut self) -> Result<(), TarError> {
        loop {
            let len = self.inner.fill_buf()?.len();
            if len == 0 {
                return Ok(());
            }
            self.inner.consume(len);
        }
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        let mut left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        while left > 0 {
            let buffer = self.inner.fill_buf()?;
            if buffer.is_empty() {
                return Err(TarError::Truncated);
            }
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            self.inner.consume(len);
            left -= len as u64;
        }
        Ok(())
    }

    /// A header block; `None` at a zero block or the end of the stream.
    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.at_end {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => {
                    self.at_end = true;
                    return Ok(None);
                }
                Ok(0) => return Err(TarError::Truncated),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            self.at_end = true;
            return Ok(None);
        }
        Header::check(block).map(Some)
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size()?;
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::TooLarge { what: "extension header", limit: MAX_EXTENSION_BYTES });
        }
        self.open_content(size);
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let mut bytes = self.extension(header)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }

    fn open_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn read_exact(&mut self, mut bytes: &mut [u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let content = self.content()?;
            if content.is_empty() {
                return Err(TarError::Truncated);
            }
            let len = content.len().min(bytes.len());
            bytes[..len].copy_from_slice(&content[..len]);
            self.consume(len);
            bytes = &mut bytes[len..];
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let path = pax.path.or(long_path).unwrap_or_else(|| header.path());
        let link = pax.link.or(long_link).unwrap_or_else(|| header.link());
        for (what, text) in [("path", &path), ("link target", &link)] {
            if text.len() > MAX_PATH_BYTES {
                return Err(TarError::TooLarge { what, limit: MAX_PATH_BYTES as u64 });
            }
            if text.contains(&0) {
                return Err(TarError::Field(what));
            }
        }
        let kind = match header.kind() {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        // Only these carry content; some writers give a link the size of its target.
        let stored = match kind {
            Kind::File | Kind::Other(_) => pax.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        if stored > i64::MAX as u64 - BLOCK as u64 {
            return Err(TarError::Field("size"));
        }
        let mut entry = Entry {
            path,
            link,
            kind,
            mode: header.mode()? & 0o7777,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime()?, 0),
            },
            xattrs: pax.xattrs,
            size: stored,
            sparse: None,
        };
        if header.kind() == b'S' {
            // The rest of the map stands between header and content.
            let (segments, real_size) = self.old_gnu_map(header)?;
            (entry.sparse, entry.size) = (Some(segments), real_size);
        }
        self.open_content(stored);
        if let (Kind::File, Some(sparse)) = (kind, pax.sparse) {
            if sparse.map_is_in_content {
                entry.sparse = Some(self.map_in_content()?);
            } else {
                entry.sparse = Some(sparse::pairs(&sparse.numbers)?);
            }
            entry.size = sparse.real_size.ok_or(TarError::Sparse)?;
        }
        if let Some(segments) = &entry.sparse {
            sparse::check(segments, entry.size, self.content)?;
        }
        Ok(entry)
    }

    /// GNU's first sparse format: four pieces in the header, more in blocks between header and content.
    fn old_gnu_map(&mut self, header: &Header) -> Result<(Vec<Segment>, u64), TarError> {
        let mut segments = Vec::new();
        let mut goes_on = header.old_sparse(&mut segments)?;
        while goes_on {
            let mut block = [0; BLOCK];
            self.inner.read_exact(&mut block).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => TarError::Truncated,
                _ => TarError::Read(error),
            })?;
            goes_on = header::old_sparse_block(&block, &mut segments)?;
            if segments.len() > MAX_SEGMENTS {
                return Err(TarError::TooLarge { what: "sparse map", limit: MAX_SEGMENTS as u64 });
            }
        }
        Ok((segments, header.old_sparse_size()?))
    }

    /// Pax sparse format 1.0: decimal numbers, a line each, before the content, filled up to a block.
    fn map_in_content(&mut self) -> Result<Vec<Segment>, TarError> {
        let mut numbers = sparse::Lines::default();
        let mut block = [0; BLOCK];
        while !numbers.is_complete() {
            self.read_exact(&mut block).map_err(|_| TarError::Sparse)?;
            numbers.feed(&block)?;
        }
        sparse::pairs(numbers.pairs())
    }
}

#[cfg(test)]
mod tests;
