// SPDX-License-Identifier: Apache-2.0
//! Identities. Each kind of object has its own type, so that two of them cannot be swapped by accident.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map($name)
            }
        }
    )*};
}

id! {
    /// A device (eve-api: `EdgeDevConfig.id.uuid`).
    DeviceId,
    /// An app instance (`AppInstanceConfig.uuidandversion.uuid`).
    AppId,
    /// A volume (`Volume.uuid`); together with its generation it names one disk or tree, see [`VolumeKey`].
    VolumeId,
    /// A content tree (`ContentTree.uuid`).
    ContentTreeId,
    /// A datastore (`DatastoreConfig.id`).
    DatastoreId,
    /// A network instance (`NetworkInstanceConfig.uuidandversion.uuid`).
    NetworkInstanceId,
    /// A network of a port (`NetworkConfig.id`).
    NetworkId,
}

/// One generation of a volume. Another number is another volume, built anew from its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeKey {
    pub id: VolumeId,
    pub generation: u64,
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.id, self.generation)
    }
}

/// A SHA-256 digest of content, written `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

/// The text is no `sha256:<64 hex digits>` and no bare 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a sha256 digest")]
pub struct DigestError;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        if hex.len() != 64 {
            return Err(DigestError);
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
            let digit = |c: u8| (c as char).to_digit(16).ok_or(DigestError);
            *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
        }
        Ok(Digest(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn digest_is_read_with_and_without_its_prefix() {
        let text = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let digest: Digest = text.parse().expect("well formed");
        assert_eq!(digest.to_string(), text);
        assert_eq!(text[7..].to_uppercase().parse(), Ok(digest));
        for bad in
            ["", "sha256:", "sha256:zz", "é0112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]
        {
            assert_eq!(bad.parse::<Digest>(), Err(DigestError), "{bad}");
        }
    }
}
