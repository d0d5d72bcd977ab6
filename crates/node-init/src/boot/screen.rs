// SPDX-License-Identifier: Apache-2.0
//! What a box shows to somebody who stands in front of it: a screen of facts and no login. The serial console gets the same
//! lines when they change.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;

use super::ioctl;

const SCREEN: &str = "/dev/tty1";
/// To the left upper corner, and nothing behind it.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Letters of a line.
const WIDTH: usize = 78;
/// Addresses that find room.
const ADDRESSES_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Screen {
    /// Nothing: the box has none.
    file: Option<File>,
    head: Vec<String>,
    shown: Vec<String>,
}

/// Which of the services are well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) ready: usize,
    pub(crate) all: usize,
}

impl Screen {
    /// `server` is the controller as CONFIG names it.
    pub(super) fn open(version: &str, server: &str) -> Screen {
        let server = if server.is_empty() { "none: CONFIG names no server" } else { server };
        let head = vec![cut(&format!("Selvedge {version}")), cut(&format!("controller   {server}"))];
        Screen { file: File::options().write(true).open(SCREEN).ok(), head, shown: Vec::new() }
    }

    pub(super) fn show(&mut self, health: Health) {
        let lines = lines(health, &addresses());
        if lines == self.shown {
            return;
        }
        if let Some(file) = &mut self.file {
            let all: Vec<&str> = self.head.iter().chain(&lines).map(String::as_str).collect();
            // A screen that is gone is nobody's loss.
            let _ = file.write_all(format!("{CLEAR}{}\r\n", all.join("\r\n")).as_bytes());
        }
        for line in lines.iter().filter(|line| !self.shown.contains(line)) {
            eprintln!("selvedge: {line}");
        }
        self.shown = lines;
    }
}

fn lines(health: Health, addresses: &[(String, Ipv4Addr)]) -> Vec<String> {
    let mut lines: Vec<String> =
        addresses.iter().map(|(name, address)| cut(&format!("{name:<12} {address}"))).collect();
    if lines.is_empty() {
        lines.push("no address yet".to_owned());
    }
    lines.push(format!("services     {} of {} ready", health.ready, health.all));
    lines
}

/// Of the ports of the box: links of ours and the loopback are nothing to somebody in front of it.
fn addresses() -> Vec<(String, Ipv4Addr)> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    // a port has a device behind it
    let ports = entries.filter(|entry| entry.path().join("device").exists());
    let mut names: Vec<String> = ports.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let found = names.into_iter().filter_map(|name| Some((name.clone(), ioctl::address(&name)?)));
    found.take(ADDRESSES_MAX).collect()
}

/// One line of printable letters.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_says_addresses_and_health() {
        let health = Health { ready: 8, all: 9 };
        assert_eq!(lines(health, &[]), ["no address yet", "services     8 of 9 ready"]);
        let addresses = [("eth0".to_owned(), Ipv4Addr::new(10, 0, 2, 15))];
        assert_eq!(lines(health, &addresses)[0], "eth0         10.0.2.15");
    }

    #[test]
    fn what_config_says_cannot_move_the_cursor() {
        assert_eq!(cut("a\x1b[2Jb\n"), "a[2Jb");
        assert_eq!(cut(&"x".repeat(200)).len(), WIDTH);
    }
}
