// SPDX-License-Identifier: Apache-2.0
//! The 512-byte header block.

use super::sparse::Segment;
use super::{MAX_SEGMENTS, TarError};

pub(super) const BLOCK: usize = 512;

/// A header whose checksum is right.
#[derive(Debug)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn check(block: [u8; BLOCK]) -> Result<Header, TarError> {
        let said = number(&block[148..156]).map_err(|()| TarError::Checksum)?;
        let counted = |byte: fn(u8) -> i64| {
            block
                .iter()
                .enumerate()
                .map(|(at, b)| if (148..156).contains(&at) { 32 } else { byte(*b) })
                .sum::<i64>()
        };
        // Old writers summed up signed bytes.
        let unsigned = counted(i64::from);
        let signed = counted(|b| i64::from(b as i8));
        if said == unsigned || said == signed { Ok(Header(block)) } else { Err(TarError::Checksum) }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        // Only POSIX headers have a prefix; GNU keeps times at its place.
        let prefix: &[u8] = if &self.0[257..263] == b"ustar\0" { text(&self.0[345..500]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        // Some writers put the file type in front of the permission bits.
        Ok(self.field("mode", 100..108)? as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.field("user id", 108..116)
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.field("group id", 116..124)
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.field("size", 124..136)
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        number(&self.0[136..148]).map_err(|()| TarError::Field("time"))
    }

    pub(super) fn old_sparse(&self, segments: &mut Vec<Segment>) -> Result<bool, TarError> {
        old_segments(&self.0[386..482], segments)?;
        Ok(self.0[482] != 0)
    }

    pub(super) fn old_sparse_size(&self) -> Result<u64, TarError> {
        self.field("size", 483..495)
    }

    fn field(&self, what: &'static str, at: core::ops::Range<usize>) -> Result<u64, TarError> {
        let value = number(&self.0[at]).map_err(|()| TarError::Field(what))?;
        u64::try_from(value).map_err(|_| TarError::Field(what))
    }
}

/// A further block of GNU's first sparse format; says whether another follows.
pub(super) fn old_sparse_block(block: &[u8; BLOCK], segments: &mut Vec<Segment>) -> Result<bool, TarError> {
    old_segments(&block[..504], segments)?;
    Ok(block[504] != 0)
}

fn old_segments(bytes: &[u8], segments: &mut Vec<Segment>) -> Result<(), TarError> {
    let read = |bytes: &[u8]| number(bytes).ok().and_then(|n| u64::try_from(n).ok()).ok_or(TarError::Sparse);
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 || segments.len() >= MAX_SEGMENTS {
            break;
        }
        segments.push(Segment { offset: read(&pair[..12])?, len: read(&pair[12..])? });
    }
    Ok(())
}

fn text(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

/// Octal digits between blanks, or with the first bit set a big-endian two's complement number. Empty is zero.
fn number(bytes: &[u8]) -> Result<i64, ()> {
    let (Some(first), Some(rest)) = (bytes.first(), bytes.get(1..)) else { return Err(()) };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        for byte in rest {
            value = value.checked_mul(256).ok_or(())? + i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| ());
    }
    let digits = text(bytes).trim_ascii();
    let mut value: i64 = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'7' => i64::from(digit - b'0'),
            _ => return Err(()),
        };
        value = value.checked_mul(8).and_then(|v| v.checked_add(digit)).ok_or(())?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (bytes, value) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"\0\0\0", Ok(0)),
            (b"\x80\0\0\0\0\0\0\x01\0\0\0\0", Ok(1 << 32)),
            (b"\xff\xff\xff\xff", Ok(-1)),
            (b"\xc0\0\0\0", Ok(-(0x40 << 24))),
            (b"888", Err(())),
            (b"-1", Err(())),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
            (b"777777777777777777777777", Err(())),
        ] {
            assert_eq!(number(bytes), value, "{bytes:?}");
        }
    }
}
