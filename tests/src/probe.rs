// SPDX-License-Identifier: Apache-2.0
//! Watches an app the way its users do, while a test does something to its surroundings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use crate::http;

/// Asks an app every 100 ms, each time over a new connection, and counts what failed.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, Vec<Duration>)>,
}

impl Probe {
    pub fn start(address: SocketAddr) -> Probe {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut asked, mut failed, start) = (0, Vec::new(), Instant::now());
            while !seen.load(Ordering::Relaxed) {
                let due = start + Duration::from_millis(100) * asked;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if http::get(address, "/", Duration::from_secs(2)).is_none() {
                    failed.push(start.elapsed());
                }
                asked += 1;
            }
            (asked, failed)
        });
        Probe { stop, thread }
    }

    /// An error when one was not answered; else how often it asked.
    pub fn end(self) -> anyhow::Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let (asked, failed) = self.thread.join().map_err(|_| anyhow!("the probe broke"))?;
        if !failed.is_empty() {
            bail!("{} of {asked} probes failed, at {failed:?}", failed.len());
        }
        Ok(asked)
    }
}
