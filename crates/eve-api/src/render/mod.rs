// SPDX-License-Identifier: Apache-2.0
//! Model → wire. Total: every value of the model has a form on the wire, and reading it back gives the value again as
//! far as the wire can carry it.

mod config;
mod flow;
mod info;
mod metrics;

use model::time::WallTime;

use crate::wire::Timestamp;

pub use config::{config_response, device_config};
pub use flow::flows;
pub use info::info;
pub use metrics::metrics;
pub(crate) use metrics::turned;

fn timestamp(time: WallTime) -> Timestamp {
    Timestamp { seconds: time.seconds, nanos: i32::try_from(time.nanos).unwrap_or(0) }
}
