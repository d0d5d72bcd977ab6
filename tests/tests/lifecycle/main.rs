// SPDX-License-Identifier: Apache-2.0
//! The life of apps on a hosted node under our controller, as its operator and the users of the apps see it.
#![allow(clippy::unwrap_used)]

mod given;
mod images;
mod life;
mod limits;
mod networks;
mod plans;
mod reports;
mod volumes;

use tests::operator::{
    SOON, STOPPED, answer, app, apply, document, network, object, on_device, pids, push, sh, state,
    toolbox_lab, wait_answer, wait_described, wait_silent, wait_state,
};
