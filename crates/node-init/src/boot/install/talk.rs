// SPDX-License-Identifier: Apache-2.0
//! What the installer says, on the screen and on the serial console, and the one key that it waits for.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, poll};

const SCREEN: &str = "/dev/tty1";
const CONSOLE: &str = "/dev/console";

#[derive(Debug)]
pub(super) struct Talk {
    screen: Option<File>,
}

impl Talk {
    pub(super) fn open() -> Talk {
        Talk { screen: File::options().read(true).write(true).open(SCREEN).ok() }
    }

    pub(super) fn say(&mut self, what: Arguments<'_>) {
        eprintln!("selvedge: {what}");
        if let Some(screen) = &mut self.screen {
            // A screen that is gone is nobody's loss.
            let _ = screen.write_all(format!("{what}\r\n").as_bytes());
        }
    }

    /// The enter key, on the keyboard or over the serial line.
    pub(super) fn wait_for_key(&mut self) {
        let console = File::open(CONSOLE).ok();
        let mut files: Vec<&File> = console.iter().chain(&self.screen).collect();
        while !files.is_empty() {
            let mut waits: Vec<PollFd<'_>> =
                files.iter().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)).collect();
            if poll(&mut waits, None).is_err() {
                continue;
            }
            let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            let mut buffer = [0; 64];
            let mut is_pressed = false;
            let mut index = 0;
            files.retain(|file| {
                index += 1;
                if !ready.get(index - 1).is_some_and(|ready| *ready) {
                    return true;
                }
                let mut file: &File = file;
                let count = file.read(&mut buffer).unwrap_or(0);
                is_pressed |= buffer[..count].contains(&b'\n');
                count > 0
            });
            if is_pressed {
                return;
            }
        }
        // nobody can press anything: for whoever looks
        loop {
            std::thread::park();
        }
    }
}
