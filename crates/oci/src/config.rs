// SPDX-License-Identifier: Apache-2.0
//! The image config: platform, how the image is to be run, and the digests of its unpacked layers.

use model::desired::ImageConfig;
use model::id::Digest;
use serde::Deserialize;

use crate::manifest::MAX_LAYERS;
use crate::platform::Platform;

/// Largest image config read: real ones stay below 100 KB.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;
/// Words of a command and variables of an environment, each, at most.
pub const MAX_WORDS: usize = 4096;

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub platform: Platform,
    pub run: ImageConfig,
    /// SHA-256 of each layer's tar archive, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("image config is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge,
    #[error("image config is not readable as JSON")]
    Json(#[source] serde_json::Error),
    #[error("image config has no layers of type \"layers\"")]
    RootFs,
    #[error("diff id of layer {0} is not a sha256 digest")]
    DiffId(usize),
    #[error("image config has more than {MAX_WORDS} words in {0}")]
    TooMany(&'static str),
    #[error("image config has a zero byte in {0}")]
    ZeroByte(&'static str),
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    config: Option<RawRun>,
    rootfs: Option<RawRootFs>,
}

// Go's encoder writes null for an empty list, and Docker's names begin with capitals.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<String>>,
}

impl Config {
    pub fn parse(untrusted_bytes: &[u8]) -> Result<Config, ConfigError> {
        if untrusted_bytes.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge);
        }
        let raw: RawConfig = serde_json::from_slice(untrusted_bytes).map_err(ConfigError::Json)?;
        let diff_ids = match raw.rootfs {
            Some(RawRootFs { kind, diff_ids }) if kind == "layers" => diff_ids.unwrap_or_default(),
            _ => return Err(ConfigError::RootFs),
        };
        if diff_ids.len() > MAX_LAYERS {
            return Err(ConfigError::TooMany("diff_ids"));
        }
        let diff_ids = diff_ids
            .iter()
            .enumerate()
            .map(|(number, text)| match text.starts_with("sha256:") {
                true => text.parse().map_err(|_| ConfigError::DiffId(number)),
                false => Err(ConfigError::DiffId(number)),
            })
            .collect::<Result<_, _>>()?;
        let run = raw.config.unwrap_or_default();
        let run = ImageConfig {
            entrypoint: words("Entrypoint", run.entrypoint)?,
            cmd: words("Cmd", run.cmd)?,
            env: words("Env", run.env)?,
            user: word("User", run.user)?,
            working_dir: word("WorkingDir", run.working_dir)?,
            stop_signal: word("StopSignal", run.stop_signal)?,
        };
        Ok(Config { platform: raw.platform, run, diff_ids })
    }
}

fn words(what: &'static str, raw: Option<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let raw = raw.unwrap_or_default();
    if raw.len() > MAX_WORDS {
        return Err(ConfigError::TooMany(what));
    }
    raw.into_iter().map(|text| word(what, Some(text))).collect()
}

/// Nothing with a zero byte inside can be passed to a program.
fn word(what: &'static str, raw: Option<String>) -> Result<String, ConfigError> {
    let raw = raw.unwrap_or_default();
    if raw.contains('\0') { Err(ConfigError::ZeroByte(what)) } else { Ok(raw) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REAL: &str = r#"{"architecture":"amd64","os":"linux","variant":"v1","created":"2026-01-01T00:00:00Z",
        "config":{"User":"www","Env":["A=b"],"Entrypoint":null,"Cmd":["nginx","-g","daemon off;"],
        "WorkingDir":"/srv","StopSignal":"SIGQUIT","ExposedPorts":{"80/tcp":{}},"Labels":null},
        "rootfs":{"type":"layers","diff_ids":["sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"]},
        "history":[{"created_by":"x","empty_layer":true}]}"#;

    #[test]
    fn a_config_as_tools_write_it_is_read() {
        let config = Config::parse(REAL.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/amd64/v1");
        assert_eq!(config.run.cmd, ["nginx", "-g", "daemon off;"]);
        assert_eq!((config.run.user.as_str(), config.run.stop_signal.as_str()), ("www", "SIGQUIT"));
        assert!(config.run.entrypoint.is_empty());
        assert_eq!(config.diff_ids.len(), 1);
    }

    #[test]
    fn configs_that_cannot_be_run_are_refused() {
        for (from, to) in
            [("layers\"", "tree\""), ("sha256:", "sha512:"), ("A=b", "A=\\u0000b"), ("[\"A=b\"]", "[1]")]
        {
            assert!(Config::parse(REAL.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
        assert!(Config::parse(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn a_changed_config_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = REAL.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Config::parse(&bytes);
        }
    }
}
