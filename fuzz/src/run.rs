// SPDX-License-Identifier: Apache-2.0
//! What run and its shims read of apps: user data, account files of images, console output.

use model::time::MonoMs;
use node_run::output::{Line, Output, Stream};
use node_run::userdata;

use super::Numbers;

pub(crate) fn user_data(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(given) = userdata::parse(text) {
        for entry in &given.env {
            assert!(entry.contains('=') && !entry.contains('\0'), "{entry:?}");
        }
        for file in &given.files {
            assert!(file.path.starts_with('/') && !file.path.contains('\0'), "{:?}", file.path);
        }
    }
}

/// User, passwd and group, cut at zero bytes.
pub(crate) fn user(data: &[u8]) {
    let texts: Vec<String> =
        super::parts(data).take(3).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    if let [user, passwd, group] = &texts[..] {
        node_run::untrusted::user(user, passwd, group, 65_536);
    }
    node_run::untrusted::step(data);
}

/// Pieces of output at any time; lines stay within their limit and end.
pub(crate) fn console(data: &[u8]) {
    let mut numbers = Numbers(data);
    let mut output = Output::new(MonoMs(0));
    let mut now = 0;
    while let Some(choice) = numbers.next() {
        now += u64::from(choice >> 2);
        let stream = if choice & 1 == 0 { Stream::Stdout } else { Stream::Stderr };
        let length = usize::from(numbers.byte());
        output.push(MonoMs(now), stream, numbers.take(length));
        if choice & 2 == 0 {
            take(&mut output);
        }
    }
    output.finish(Stream::Stdout);
    output.finish(Stream::Stderr);
    for _ in 0..data.len() + 4 {
        if output.next().is_none() {
            return;
        }
        take(&mut output);
    }
    assert!(output.next().is_none(), "lines without end");
}

fn take(output: &mut Output) {
    if let Some(line) = output.next() {
        if let Line::Text { text, .. } = line {
            assert!(text.len() <= ipc::limits::MAX_LOG_LINE_BYTES);
        }
        output.taken();
    }
}
