// SPDX-License-Identifier: Apache-2.0
//! Wire → model. What comes out needs no second look: references lead somewhere, numbers are in range.
//!
//! A config is refused as a whole only when it is no message or names no device. An object that cannot be read, or that
//! refers to one that is missing, goes to [`DeviceConfig::faults`] with the path of the field, and the rest stands.
//! Fields this software does not know are passed over. What has a safe default where the standard leaves it out gets
//! it here (gateway, address range, uplinks).

mod acl;
mod app;
mod bad;
mod device;
mod flow;
mod info;
mod metrics;
mod network;
mod storage;

use model::config::DeviceConfig;
use model::time::WallTime;
use prost::Message;

use crate::wire::{Timestamp, config as wire};

pub(crate) use device::SHARED_LABELS;
pub use flow::flows;
pub use info::info;
pub use metrics::metrics;

/// The message is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("not a message of the expected kind")]
    Malformed,
    #[error("config names no device")]
    NoDevice,
}

/// What a controller answers to a request for the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigResponse {
    /// Opaque; sent back with the next request.
    pub hash: String,
    /// `None`: not modified, in the form the standard's text gives it.
    pub config: Option<DeviceConfig>,
}

/// Reads a `ConfigResponse`.
pub fn config_response(untrusted_payload: &[u8]) -> Result<ConfigResponse, ParseError> {
    let wire = wire::ConfigResponse::decode(untrusted_payload).map_err(|_| ParseError::Malformed)?;
    let config = wire.config.filter(|config| *config != wire::EdgeDevConfig::default());
    Ok(ConfigResponse { hash: wire.config_hash, config: config.as_ref().map(device_config).transpose()? })
}

/// Reads a bare `EdgeDevConfig`, as a bootstrap config holds it.
pub fn device_config_bytes(untrusted_payload: &[u8]) -> Result<DeviceConfig, ParseError> {
    device_config(&wire::EdgeDevConfig::decode(untrusted_payload).map_err(|_| ParseError::Malformed)?)
}

/// Reads an `EdgeDevConfig`.
pub fn device_config(wire: &wire::EdgeDevConfig) -> Result<DeviceConfig, ParseError> {
    device::read(wire)
}

/// Nanoseconds out of range are cut to it.
fn wall_time(wire: &Timestamp) -> WallTime {
    WallTime { seconds: wire.seconds, nanos: u32::try_from(wire.nanos).unwrap_or(0).min(999_999_999) }
}
