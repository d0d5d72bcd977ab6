// SPDX-License-Identifier: Apache-2.0
//! Makes the list of what happens shorter while the same checker still fails.

use crate::scenario::Scenario;
use crate::{Failure, Telling, run};

/// Worlds tried at most: a failing list is short long before.
const MAX_TRIES: usize = 400;

/// A scenario with as few steps as can be found that fails as `failure` does, and how it fails.
pub fn shrink(scenario: &Scenario, failure: &Failure) -> (Scenario, Failure) {
    let mut best = scenario.clone();
    let mut how = failure.clone();
    let mut tries = 0;
    // What happens after the failure does not matter.
    best.steps.retain(|step| step.at_ms <= failure.at_ms);
    let fails = |candidate: &Scenario| {
        run(candidate, Telling::End).failure.filter(|other| other.checker == failure.checker)
    };
    match fails(&best) {
        Some(other) => how = other,
        None => best = scenario.clone(),
    }
    let mut part = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut is_shorter = false;
        while start < best.steps.len() && tries < MAX_TRIES {
            tries += 1;
            let mut candidate = best.clone();
            let end = (start + part).min(candidate.steps.len());
            candidate.steps.drain(start..end);
            match fails(&candidate) {
                Some(other) => {
                    (best, how, is_shorter) = (candidate, other, true);
                }
                None => start += part,
            }
        }
        if tries >= MAX_TRIES || (part == 1 && !is_shorter) {
            return (best, how);
        }
        part = (part / 2).max(1);
    }
}
