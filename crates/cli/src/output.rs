// SPDX-License-Identifier: Apache-2.0
//! Data on stdout: tables, JSON, YAML, names.

use std::io::Write as _;

use serde_json::Value;

/// Longer values are cut in texts for people.
const MAX_VALUE_CHARS: usize = 60;
const CUT_CHARS: usize = 24;

/// Text as it is, on its way at once.
pub(crate) fn put(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

pub(crate) fn print_yaml(value: &Value) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(value)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Columns as wide as their widest cell, two spaces between.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths = widths(head, rows);
    let mut out = line(head.iter().copied(), &widths);
    for row in rows {
        out.push_str(&line(row.iter().map(String::as_str), &widths));
    }
    out
}

/// Widths of columns.
pub(crate) fn widths(head: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

/// One line of a table; a cell that is wider than its column moves the rest.
pub(crate) fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut out = String::new();
    for (cell, width) in cells.zip(widths) {
        out.push_str(cell);
        out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
    }
    format!("{}\n", out.trim_end())
}

/// A value in one line that fits.
pub(crate) fn shorten(text: &str) -> String {
    let text = text.replace('\n', "⏎");
    let count = text.chars().count();
    if count <= MAX_VALUE_CHARS {
        return text;
    }
    let head: String = text.chars().take(CUT_CHARS).collect();
    format!("{head}… ({count} characters)")
}

/// Bytes in a unit that gives one to four digits.
pub(crate) fn size(bytes: u64) -> String {
    let mut rest = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if rest < 1024.0 {
            let digits = usize::from(unit != "B" && rest < 10.0);
            return format!("{rest:.digits$} {unit}");
        }
        rest /= 1024.0;
    }
    format!("{rest:.0} PiB")
}

/// Text at a path of keys; empty when it is not there.
pub(crate) fn cell(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => {
            let texts =
                items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
            texts.collect::<Vec<_>>().join(",")
        }
        Some(Value::Object(map)) => {
            let pair =
                |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
            map.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_few_digits() {
        let all = [0, 1023, 1024, 10_240, 268_435_456, 5 << 40].map(size);
        assert_eq!(all, ["0 B", "1023 B", "1.0 KiB", "10 KiB", "256 MiB", "5.0 TiB"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "long text".into()], vec!["bcd".into(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X    Y\na    long text\nbcd\n");
    }
}
