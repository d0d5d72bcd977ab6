// SPDX-License-Identifier: Apache-2.0
//! The command line of a hosted init.

use std::collections::BTreeMap;
use std::path::PathBuf;

pub const USAGE: &str = "\
usage: selvedge-init --hosted --config DIR --persist DIR --run DIR [options]
  --config DIR       EVE-shaped config directory
  --persist DIR      what the node keeps
  --run DIR          mount points; nothing in it outlives the process
  --set KEY=VALUE    a setting for all services; may be repeated
  --services A,B     start only these
  --manifests DIR    manifests to use instead of those built in
  --bins DIR         executables; default: where this one lies
  --instance NAME    tells nodes on one machine apart; default: 0
  --verbose          log lines also to stderr";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub config: PathBuf,
    pub persist: PathBuf,
    pub run: PathBuf,
    pub settings: BTreeMap<String, String>,
    /// Nothing: all.
    pub services: Option<Vec<String>>,
    pub manifests: Option<PathBuf>,
    pub bins: Option<PathBuf>,
    pub instance: String,
    pub is_verbose: bool,
}

/// Why the command line cannot be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("only --hosted is known by this build")]
    NotHosted,
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("unknown argument {0:?}")]
    Unknown(String),
    #[error("--set {0:?} is not KEY=VALUE")]
    Setting(String),
    #[error("--instance {0:?} is not made of a-z, A-Z, 0-9, - and _")]
    Instance(String),
}

pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Options, ArgsError> {
    let mut args = args.into_iter();
    let (mut config, mut persist, mut run, mut is_hosted) = (None, None, None, false);
    let mut options = Options {
        config: PathBuf::new(),
        persist: PathBuf::new(),
        run: PathBuf::new(),
        settings: BTreeMap::new(),
        services: None,
        manifests: None,
        bins: None,
        instance: "0".into(),
        is_verbose: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| ArgsError::NoValue(arg.clone()));
        match arg.as_str() {
            "--hosted" => is_hosted = true,
            "--verbose" => options.is_verbose = true,
            "--config" => config = Some(PathBuf::from(value()?)),
            "--persist" => persist = Some(PathBuf::from(value()?)),
            "--run" => run = Some(PathBuf::from(value()?)),
            "--manifests" => options.manifests = Some(PathBuf::from(value()?)),
            "--bins" => options.bins = Some(PathBuf::from(value()?)),
            "--services" => {
                let list = value()?.split(',').map(str::to_string).collect();
                options.services = Some(list);
            }
            "--instance" => options.instance = value()?,
            "--set" => {
                let text = value()?;
                let (key, value) = text.split_once('=').ok_or_else(|| ArgsError::Setting(text.clone()))?;
                options.settings.insert(key.into(), value.into());
            }
            _ => return Err(ArgsError::Unknown(arg)),
        }
    }
    if !is_hosted {
        return Err(ArgsError::NotHosted);
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if options.instance.is_empty() || !options.instance.chars().all(is_plain) {
        return Err(ArgsError::Instance(options.instance));
    }
    options.config = config.ok_or(ArgsError::Missing("--config"))?;
    options.persist = persist.ok_or(ArgsError::Missing("--persist"))?;
    options.run = run.ok_or(ArgsError::Missing("--run"))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Options, ArgsError> {
        parse(text.split_whitespace().map(str::to_string))
    }

    #[test]
    fn a_command_line_says_roots_services_and_settings() {
        let options = of("--hosted --config /c --persist /p --run /r --set a=b=c --services bus,log");
        let options = options.unwrap();
        assert_eq!(options.config, PathBuf::from("/c"));
        assert_eq!(options.settings.get("a").map(String::as_str), Some("b=c"));
        assert_eq!(options.services, Some(vec!["bus".into(), "log".into()]));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        assert_eq!(of("--config /c"), Err(ArgsError::NotHosted));
        assert_eq!(of("--hosted --config /c --run /r"), Err(ArgsError::Missing("--persist")));
        assert_eq!(of("--hosted --config"), Err(ArgsError::NoValue("--config".into())));
        assert_eq!(of("--hosted --colour"), Err(ArgsError::Unknown("--colour".into())));
        assert_eq!(of("--hosted --set x"), Err(ArgsError::Setting("x".into())));
        assert_eq!(of("--hosted --instance ../x"), Err(ArgsError::Instance("../x".into())));
    }
}
