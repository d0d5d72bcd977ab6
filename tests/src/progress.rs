// SPDX-License-Identifier: Apache-2.0
//! What long work says while it goes on: one line per step, on standard error, with the time since the start.

use std::fmt::Display;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::bail;

static START: OnceLock<Instant> = OnceLock::new();

/// Seconds since the first step.
pub fn elapsed_s() -> f64 {
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Announces a step.
pub fn step(text: impl Display) {
    eprintln!("[{:6.1} s] {text}", elapsed_s());
}

/// Variable that says how much slower than hardware the machine is, e.g. when it is emulated.
pub const SLOWNESS: &str = "SELVEDGE_SLOWNESS";

/// [`SLOWNESS`], at least 1. All waiting is that much longer.
pub fn slowness() -> u32 {
    let factor = std::env::var(SLOWNESS).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    std::cmp::max(factor, 1)
}

/// Asks `ready` every 50 ms until it gives something; the error says what was waited for.
pub fn wait_for<T>(what: &str, timeout: Duration, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let timeout = timeout * slowness();
    let end = Instant::now() + timeout;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {} s", timeout.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
