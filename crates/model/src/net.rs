// SPDX-License-Identifier: Apache-2.0
//! Addresses and prefixes.

use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no address of the expected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    #[error("not an Ethernet address like 02:00:00:00:00:01")]
    Mac,
    #[error("not an IPv4 prefix like 10.1.2.0/24")]
    Prefix,
}

impl FromStr for Mac {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self, NetError> {
        let mut out = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut out {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(NetError::Mac)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NetError::Mac)?;
        }
        parts.next().is_none().then_some(Mac(out)).ok_or(NetError::Mac)
    }
}

/// An IPv4 prefix; host bits are kept as written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix4 {
    pub address: Ipv4Addr,
    /// 0 to 32.
    pub length: u8,
}

impl Prefix4 {
    /// Netmask of this length.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0))
    }
    /// The first address of the prefix.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() & self.mask().to_bits())
    }
    /// The last address of the prefix.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask().to_bits())
    }
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.network().to_bits()
    }
}

impl fmt::Display for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix4 {
    type Err = NetError;
    fn from_str(text: &str) -> Result<Self, NetError> {
        let (address, length) = text.split_once('/').ok_or(NetError::Prefix)?;
        let length = length.parse().map_err(|_| NetError::Prefix)?;
        if length > 32 {
            return Err(NetError::Prefix);
        }
        Ok(Prefix4 { address: address.parse().map_err(|_| NetError::Prefix)?, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn prefix_knows_its_bounds() {
        let prefix: Prefix4 = "10.11.12.7/24".parse().expect("well formed");
        assert_eq!(prefix.network().to_string(), "10.11.12.0");
        assert_eq!(prefix.broadcast().to_string(), "10.11.12.255");
        assert!(prefix.contains("10.11.12.200".parse().expect("address")));
        assert!(!prefix.contains("10.11.13.1".parse().expect("address")));
        let all: Prefix4 = "0.0.0.0/0".parse().expect("well formed");
        assert!(all.contains("192.0.2.1".parse().expect("address")));
        assert!("10.0.0.0/33".parse::<Prefix4>().is_err());
    }

    #[test]
    fn mac_is_six_pairs() {
        assert_eq!("02:16:3e:00:0a:ff".parse::<Mac>().expect("mac").to_string(), "02:16:3e:00:0a:ff");
        for bad in ["", "02:16:3e:00:0a", "02:16:3e:00:0a:ff:00", "+2:16:3e:00:0a:ff0"] {
            assert_eq!(bad.parse::<Mac>(), Err(NetError::Mac), "{bad}");
        }
    }
}
