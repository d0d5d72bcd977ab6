// SPDX-License-Identifier: Apache-2.0
//! The log files a node uploads: gzip of one JSON log entry per line.
//!
//! The gzip header carries what the body does not: for device logs the comment is JSON of device,
//! partition and version ([`DeviceComment`]); for app logs the name is the app's name; the time is
//! when the file was begun. Header texts are Latin-1.
//! Two JSON dialects exist and both are read: Go's (`msgid` a number, `timestamp` an object of
//! `seconds` and `nanos`), which is also what we write, and protobuf's (`msgid` a string,
//! `timestamp` in RFC 3339). Reading is bounded in bytes and lines. Opens no files.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// A file is refused that unpacks to more: EVE closes files at 400 kB.
pub const MAX_UNPACKED_BYTES: u64 = 8 * 1024 * 1024;
/// Most entries in one file: an entry is hardly shorter than 40 bytes.
pub const MAX_ENTRIES: usize = 200_000;
/// A packed file should stay below; EVE's hard limit is 65,536.
pub const PACKED_BYTES: usize = 50_000;

/// One line of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogEntry {
    /// `trace` … `panic`, as logrus names them, or a syslog word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub severity: String,
    /// Process or container that wrote it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Instance of the source, usually a process id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub iid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    /// Rises by one per source.
    #[serde(skip_serializing_if = "is_zero", deserialize_with = "number_or_text")]
    pub msgid: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub function: String,
}

/// Seconds and nanoseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Timestamp {
    pub seconds: i64,
    #[serde(skip_serializing_if = "is_zero_i32")]
    pub nanos: i32,
}

/// Comment of a device log file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceComment {
    #[serde(rename = "devID")]
    pub device: String,
    /// Partition that runs.
    pub image: String,
    #[serde(rename = "eveVersion")]
    pub version: String,
}

/// Header of a log file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogHeader {
    /// Of device logs.
    pub comment: Option<DeviceComment>,
    /// Of app logs: the app's name.
    pub name: Option<String>,
    /// Seconds since 1970; 0 if not given.
    pub created_s: u32,
}

/// A file that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFile {
    pub header: LogHeader,
    pub entries: Vec<LogEntry>,
}

/// Why a log file is refused.
#[derive(Debug, thiserror::Error)]
pub enum NewlogsError {
    #[error("not a whole gzip file")]
    Gzip(#[source] io::Error),
    #[error("bytes behind the end of the gzip file")]
    Trailing,
    #[error("unpacks to more than {MAX_UNPACKED_BYTES} bytes")]
    TooLarge,
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
    #[error("line {line} is no log entry")]
    Line {
        line: usize,
        #[source]
        source: serde_json::Error,
    },
}

/// Packs entries as EVE does.
pub fn write(header: &LogHeader, entries: &[LogEntry]) -> io::Result<Vec<u8>> {
    let mut writer = LogWriter::new(header)?;
    for entry in entries {
        writer.push(entry)?;
    }
    writer.finish()
}

/// Packs entries one after the other, so that a file can be closed before it grows too large.
pub struct LogWriter {
    gzip: GzEncoder<Vec<u8>>,
    unpacked_bytes: usize,
}

impl fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("unpacked_bytes", &self.unpacked_bytes).finish_non_exhaustive()
    }
}

impl LogWriter {
    pub fn new(header: &LogHeader) -> io::Result<LogWriter> {
        let mut gzip = GzBuilder::new().mtime(header.created_s);
        if let Some(comment) = &header.comment {
            gzip = gzip.comment(latin1(&serde_json::to_string(comment)?));
        }
        if let Some(name) = &header.name {
            gzip = gzip.filename(latin1(name));
        }
        Ok(LogWriter { gzip: gzip.write(Vec::new(), Compression::default()), unpacked_bytes: 0 })
    }

    pub fn push(&mut self, entry: &LogEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.unpacked_bytes += line.len();
        self.gzip.write_all(&line)
    }

    /// Bytes of JSON so far; packed they are fewer.
    pub fn unpacked_bytes(&self) -> usize {
        self.unpacked_bytes
    }

    pub fn finish(self) -> io::Result<Vec<u8>> {
        self.gzip.finish()
    }
}

/// Reads a file; refuses bombs, damage and lines that are no entries.
pub fn read(untrusted_file: &[u8]) -> Result<LogFile, NewlogsError> {
    let mut gzip = GzDecoder::new(untrusted_file).take(MAX_UNPACKED_BYTES + 1);
    let mut text = Vec::new();
    gzip.read_to_end(&mut text).map_err(NewlogsError::Gzip)?;
    if text.len() as u64 > MAX_UNPACKED_BYTES {
        return Err(NewlogsError::TooLarge);
    }
    let gzip = gzip.into_inner();
    let header = gzip.header().map(read_header).unwrap_or_default();
    if !gzip.into_inner().is_empty() {
        return Err(NewlogsError::Trailing);
    }
    let mut entries = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if entries.len() == MAX_ENTRIES {
            return Err(NewlogsError::TooMany);
        }
        let entry = serde_json::from_slice(line);
        entries.push(entry.map_err(|source| NewlogsError::Line { line: number + 1, source })?);
    }
    Ok(LogFile { header, entries })
}

fn read_header(header: &flate2::GzHeader) -> LogHeader {
    let comment = header.comment().map(from_latin1);
    LogHeader {
        comment: comment.and_then(|text| serde_json::from_str(&text).ok()),
        name: header.filename().map(from_latin1),
        created_s: header.mtime(),
    }
}

/// Latin-1 without zero bytes; what it lacks becomes `?`.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok().filter(|b| *b != 0).unwrap_or(b'?')).collect()
}

fn from_latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_zero_i32(number: &i32) -> bool {
    *number == 0
}

/// Go writes `null` for an empty map.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn number_or_text<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number, or a text of one")
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            text.parse().map_err(E::custom)
        }
    }
    from.deserialize_any(Number)
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of seconds and nanos, or a time in RFC 3339")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                parse_rfc3339(text).ok_or_else(|| E::custom("not a time in RFC 3339"))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Timestamp, A::Error> {
                let mut out = Timestamp::default();
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "seconds" => out.seconds = map.next_value()?,
                        "nanos" => out.nanos = map.next_value()?,
                        _ => {
                            map.next_value::<de::IgnoredAny>()?;
                        }
                    }
                }
                Ok(out)
            }
        }
        from.deserialize_any(Either)
    }
}

/// `2026-01-02T03:04:05.678Z`, with an offset instead of `Z` if need be.
fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| digits.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')))
    };
    let is = |at: usize, set: &[u8]| bytes.get(at).is_some_and(|byte| set.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if is(at, b".") {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=9).contains(&digits) {
            return None;
        }
        let fraction = number(at + 1, at + 1 + digits)?;
        nanos = fraction * 10_i64.pow(9 - digits as u32);
        at += 1 + digits;
    }
    let offset_s = match bytes.get(at)? {
        b'Z' | b'z' if bytes.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == at + 6 && is(at + 3, b":") => {
            let seconds = number(at + 1, at + 3)? * 3600 + number(at + 4, at + 6)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    Some(Timestamp { seconds, nanos: i32::try_from(nanos).ok()? })
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that a leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> LogEntry {
        LogEntry {
            severity: "info".into(),
            source: "agent".into(),
            iid: "17".into(),
            content: "started ü\n\"x\"".into(),
            msgid: 9,
            tags: BTreeMap::from([("a".into(), "b".into())]),
            timestamp: Some(Timestamp { seconds: 1_700_000_000, nanos: 5 }),
            ..LogEntry::default()
        }
    }

    #[test]
    fn lines_are_in_the_dialect_of_go() {
        expect_test::expect![[r#"{"severity":"info","source":"agent","iid":"17","content":"started ü\n\"x\"","msgid":9,"tags":{"a":"b"},"timestamp":{"seconds":1700000000,"nanos":5}}"#]]
            .assert_eq(&serde_json::to_string(&entry()).unwrap());
    }

    #[test]
    fn a_file_reads_back_with_its_header() {
        let comment = DeviceComment { device: "U".into(), image: "IMGA".into(), version: "1".into() };
        let header =
            LogHeader { comment: Some(comment), name: Some("caf\u{e9}".into()), created_s: 1_700_000_000 };
        let file = write(&header, &[entry(), LogEntry::default()]).unwrap();
        assert_eq!(read(&file).unwrap(), LogFile { header, entries: vec![entry(), LogEntry::default()] });
    }

    #[test]
    fn both_json_dialects_mean_the_same() {
        let go =
            r#"{"content":"x","msgid":7,"tags":null,"timestamp":{"seconds":1767323045,"nanos":678000000}}"#;
        let protobuf = r#"{"content":"x","msgid":"7","timestamp":"2026-01-02T03:04:05.678Z","other":[1]}"#;
        let read = |text: &str| serde_json::from_str::<LogEntry>(text).unwrap();
        assert_eq!(read(go), read(protobuf));
        assert_eq!(read(go).msgid, 7);
    }

    #[test]
    fn times_are_read_across_leap_years_and_offsets() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2024-12-31T23:59:59Z", 1_735_689_599),
            ("2024-12-31T23:59:59+02:00", 1_735_682_399),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse_rfc3339(text), Some(Timestamp { seconds, nanos: 0 }), "{text}");
        }
        for bad in [
            "",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z",
            "é024-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn damage_and_bombs_are_refused() {
        let good = write(&LogHeader::default(), &[entry()]).unwrap();
        assert!(matches!(read(b"no gzip"), Err(NewlogsError::Gzip(_))));
        assert!(matches!(read(&good[..good.len() - 9]), Err(NewlogsError::Gzip(_))));
        let mut flipped = good.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        assert!(matches!(read(&flipped), Err(NewlogsError::Gzip(_))));
        assert!(matches!(read(&[good, b"x".to_vec()].concat()), Err(NewlogsError::Trailing)));

        let pack = |text: &[u8]| {
            let mut gzip = GzBuilder::new().write(Vec::new(), Compression::fast());
            gzip.write_all(text).unwrap();
            gzip.finish().unwrap()
        };
        assert!(matches!(read(&pack(&vec![0; 32 << 20])), Err(NewlogsError::TooLarge)));
        assert!(matches!(read(&pack(&b"{}\n".repeat(MAX_ENTRIES + 1))), Err(NewlogsError::TooMany)));
        assert!(matches!(read(&pack(b"{}\n[1]\n")), Err(NewlogsError::Line { line: 2, .. })));
        assert_eq!(read(&pack(b"")).unwrap(), LogFile::default());
    }
}
