// SPDX-License-Identifier: Apache-2.0
//! Pax extended headers: `<length> <key>=<value>\n`, repeated.

use super::{MAX_SEGMENTS, MAX_XATTRS, TarError};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extended headers said, for one entry or for all that follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
}

/// The three pax sparse formats in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths by turns (formats 0.0 and 0.1).
    pub(super) numbers: Vec<u64>,
    /// Format 1.0.
    pub(super) map_is_in_content: bool,
}

impl Pax {
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        const BROKEN: TarError = TarError::Field("pax header");
        // Readers tolerate zero bytes behind the last record.
        while let Some(first) = bytes.first() {
            if *first == 0 {
                break;
            }
            let blank = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(BROKEN)?;
            let len = usize::try_from(decimal(&bytes[..blank]).ok_or(BROKEN)?).map_err(|_| BROKEN)?;
            let record = bytes.get(blank + 1..len).ok_or(BROKEN)?;
            let record = record.strip_suffix(b"\n").ok_or(BROKEN)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BROKEN)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let number = |what| decimal(value).ok_or(TarError::Field(what));
        // An empty value takes an earlier one back.
        let text = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = Some(number("pax size")?),
            b"uid" => self.uid = Some(number("pax user id")?),
            b"gid" => self.gid = Some(number("pax group id")?),
            b"mtime" => self.mtime = Some(time(value).ok_or(TarError::Field("pax time"))?),
            b"GNU.sparse.name" => self.path = text(),
            b"GNU.sparse.major" => self.sparse().map_is_in_content = value == b"1",
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse().real_size = Some(number("sparse size")?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_length = key == b"GNU.sparse.numbytes";
                let value = number("sparse map")?;
                let numbers = &mut self.sparse().numbers;
                if (numbers.len() % 2 == 1) != is_length || numbers.len() >= 2 * MAX_SEGMENTS {
                    return Err(TarError::Sparse);
                }
                numbers.push(value);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(decimal).collect();
                self.sparse().numbers = match numbers {
                    Some(numbers) => numbers,
                    None if value.is_empty() => Vec::new(),
                    None => return Err(TarError::Sparse),
                };
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.set_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        self.xattrs.retain(|(known, _)| known != name);
        if self.xattrs.len() >= MAX_XATTRS {
            return Err(TarError::TooLarge {
                what: "number of extended attributes",
                limit: MAX_XATTRS as u64,
            });
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn sparse(&mut self) -> &mut PaxSparse {
        self.sparse.get_or_insert_default()
    }

    /// This entry's own words first, then the global ones.
    pub(super) fn over(self, global: &Pax) -> Pax {
        Pax {
            path: self.path.or_else(|| global.path.clone()),
            link: self.link.or_else(|| global.link.clone()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            xattrs: if self.xattrs.is_empty() { global.xattrs.clone() } else { self.xattrs },
            sparse: self.sparse,
        }
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(text).ok()?.parse().ok()
}

/// `-12.5` is half a second after -13.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        let mut digits = [b'0'; 9];
        let len = fraction.len().min(9);
        digits[..len].copy_from_slice(&fraction[..len]);
        nanos = u32::try_from(decimal(&digits)?).ok()?;
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Pax, TarError> {
        let mut pax = Pax::default();
        pax.read(bytes).map(|()| pax)
    }

    #[test]
    fn records_are_read_by_their_length_so_values_may_hold_line_ends() {
        let pax =
            read(b"12 path=a\nb\n30 mtime=1350244992.023960108\n29 SCHILY.xattr.user.x=a=b\0c\n").unwrap();
        assert_eq!(pax.path.unwrap(), b"a\nb");
        assert_eq!(pax.mtime, Some((1_350_244_992, 23_960_108)));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"a=b\0c".to_vec())]);
    }

    #[test]
    fn broken_records_are_refused() {
        for bytes in [
            &b"12 path=a\n"[..],
            b"x path=a\n",
            b"9 patha\n\n",
            b"0 \n",
            b"99999999999999999999 a=b\n",
            b"5 a=b",
        ] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(time(b"-12.5"), Some((-13, 500_000_000)));
        assert_eq!(time(b"-12"), Some((-12, 0)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"1.x"), None);
    }
}
