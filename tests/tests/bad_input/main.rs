// SPDX-License-Identifier: Apache-2.0
//! Everything that comes in wrong: each row of these tables is one mistake of an operator, of a registry, of an app or
//! of a stranger. What is wrong is told within seconds where the operator looks, with the next step, and one app that
//! is watched all the time notices nothing.
#![allow(clippy::unwrap_used)]

mod apps;
mod certificates;
mod disk;
mod documents;
mod images;
mod requests;

use std::time::{Duration, Instant};

use tests::lab::Lab;
use tests::operator::wait_described;
use tests::progress::{slowness, step};

/// From the order to its reason in `selvedge describe`.
const TOLD: Duration = Duration::from_secs(10);

/// A row: what describes, and all texts it must hold.
type Row<'a> = (&'a str, &'a [&'a str]);

/// Waits for all rows, counted from `start`; their causes ran at the same time.
fn wait_told(lab: &Lab, start: Instant, rows: &[Row<'_>]) {
    for (app, wanted) in rows {
        for text in *wanted {
            // waiting is longer by the slowness of the machine, and so is what has passed
            let left = TOLD.saturating_sub(start.elapsed() / slowness()).max(Duration::from_millis(500));
            wait_described(lab, app, text, left);
        }
        step(format_args!("{app}: {} after {:.1} s", wanted[0], start.elapsed().as_secs_f64()));
    }
}
