// SPDX-License-Identifier: Apache-2.0
//! The registration message: a node hands in its certificate and serial numbers, signed by the
//! onboarding key. Limits are those the standard's own validation rules give.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use crate::certs;
use crate::envelope::decode_base64_pem;
use crate::wire::register::ZRegisterMsg;

/// `pemCert` on the wire, in bytes of base64.
pub const CERT_BYTES: std::ops::RangeInclusive<usize> = 100..=10_240;
/// Each serial number.
pub const MAX_SERIAL_CHARS: usize = 256;

/// What a node says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// PEM of the device certificate.
    pub device_pem: Vec<u8>,
    /// DER of the same.
    pub device_der: Vec<u8>,
    pub serial: String,
    pub soft_serial: String,
}

/// Why a registration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    #[error("not a registration message")]
    Malformed,
    #[error("pemCert is no base64 of a PEM certificate of 100 to 10,240 bytes")]
    Certificate,
    #[error("serial or softSerial breaks its rule")]
    Serial,
}

/// The payload of `POST /register`.
pub fn build_registration(device_pem: &[u8], serial: &str, soft_serial: &str) -> Vec<u8> {
    ZRegisterMsg {
        pem_cert: STANDARD.encode(device_pem).into_bytes(),
        serial: serial.into(),
        soft_serial: soft_serial.into(),
        ..ZRegisterMsg::default()
    }
    .encode_to_vec()
}

/// Reads the payload of `POST /register`.
pub fn parse_registration(untrusted_payload: &[u8]) -> Result<Registration, RegisterError> {
    let message = ZRegisterMsg::decode(untrusted_payload).map_err(|_| RegisterError::Malformed)?;
    if !CERT_BYTES.contains(&message.pem_cert.len()) {
        return Err(RegisterError::Certificate);
    }
    let device_pem = decode_base64_pem(&message.pem_cert).ok_or(RegisterError::Certificate)?;
    let device_der = certs::first_der(&device_pem).map_err(|_| RegisterError::Certificate)?;
    certs::PublicKey::from_der(&device_der).map_err(|_| RegisterError::Certificate)?;
    let is_soft_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if message.serial.chars().count() > MAX_SERIAL_CHARS
        || message.soft_serial.chars().count() > MAX_SERIAL_CHARS
        || !message.soft_serial.chars().all(is_soft_char)
    {
        return Err(RegisterError::Serial);
    }
    Ok(Registration { device_pem, device_der, serial: message.serial, soft_serial: message.soft_serial })
}
