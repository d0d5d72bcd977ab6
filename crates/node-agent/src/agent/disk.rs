// SPDX-License-Identifier: Apache-2.0
//! The agent's private directory. Everything is whole or not there, also after a power cut; what cannot be read is
//! dropped, since the controller has it all.
//!
//! | file | content |
//! |---|---|
//! | `uuid` | the device's UUID |
//! | `certs` | the controller's certificate set, as its message |
//! | `lastconfig`, `lastconfig.bak` | [`SavedConfig`]: the one in force, and one from at least ten minutes before it |
//! | `floor` | seconds since 1970 that the clock cannot be before: the latest signed timestamp |
//! | `told` | apps the controller was told of and not yet told that they are gone, an id per line |
//! | `queue/*` | info messages the controller does not have yet |

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use model::id::{AppId, DeviceId};
use node_core::upload::Urgency;
use service::files::{Files, below, erase, replace};

/// Largest file read: a config answer with its certificates.
const MAX_FILE_BYTES: u64 = 12 * 1024 * 1024;
/// Messages read back; the queue takes no more.
const MAX_QUEUE_FILES: usize = node_core::upload::MAX_ITEMS;
/// The backup is not overwritten by configs that come in quick succession.
const BACKUP_AGE: Duration = Duration::from_secs(10 * 60);
const CONFIG: &str = "lastconfig";
const CONFIG_BACKUP: &str = "lastconfig.bak";
const QUEUE: &str = "queue";
const CONFIG_HEAD: &[u8] = b"selvedge lastconfig 1\n";
const INFO_HEAD: &str = "selvedge info 1 ";

/// A signed config as it came, with what is needed to verify it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedConfig {
    /// `ZControllerCert`: the set that verified it.
    pub certs: Vec<u8>,
    /// `AuthContainer`.
    pub container: Vec<u8>,
}

/// An info message of an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedInfo {
    pub key: String,
    pub urgency: Urgency,
    pub payload: Vec<u8>,
}

/// The directory.
#[derive(Debug)]
pub struct Disk {
    files: Box<dyn Files>,
}

impl Disk {
    pub fn new(files: impl Files + 'static) -> Disk {
        Disk { files: Box::new(files) }
    }

    pub fn device(&self) -> Option<DeviceId> {
        text(self.read("uuid")?)?.trim().parse().ok()
    }

    pub fn save_device(&self, device: DeviceId) -> io::Result<()> {
        self.write("uuid", format!("{device}\n").as_bytes())
    }

    pub fn certs(&self) -> Option<Vec<u8>> {
        self.read("certs")
    }

    pub fn save_certs(&self, certs: &[u8]) -> io::Result<()> {
        self.write("certs", certs)
    }

    pub fn floor_s(&self) -> i64 {
        self.read("floor").and_then(text).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    pub fn save_floor(&self, seconds: i64) -> io::Result<()> {
        self.write("floor", format!("{seconds}\n").as_bytes())
    }

    pub fn told_apps(&self) -> BTreeSet<AppId> {
        let text = self.read("told").and_then(text).unwrap_or_default();
        text.lines().take(MAX_QUEUE_FILES).filter_map(|line| line.parse().ok()).collect()
    }

    pub fn save_told_apps(&self, apps: &BTreeSet<AppId>) -> io::Result<()> {
        let text: String = apps.iter().map(|app| format!("{app}\n")).collect();
        self.write("told", text.as_bytes())
    }

    /// The saved configs, the one in force first.
    pub fn configs(&self) -> Vec<SavedConfig> {
        let names = [CONFIG, CONFIG_BACKUP];
        names.iter().filter_map(|name| SavedConfig::parse(&self.read(name)?)).collect()
    }

    /// Saves the config that is now in force; the one before becomes the backup, when the backup is old enough.
    pub fn save_config(&self, config: &SavedConfig) -> io::Result<()> {
        let is_fresh = self.files.age(CONFIG_BACKUP).is_some_and(|age| age < BACKUP_AGE);
        if !is_fresh && let Some(before) = self.read(CONFIG) {
            self.write(CONFIG_BACKUP, &before)?;
        }
        self.write(CONFIG, &config.to_bytes())
    }

    /// All messages that were not delivered.
    pub fn queue(&self) -> Vec<SavedInfo> {
        let names = self.files.list(QUEUE).unwrap_or_default();
        names.iter().take(MAX_QUEUE_FILES).filter_map(|name| self.info(name)).collect()
    }

    fn info(&self, name: &str) -> Option<SavedInfo> {
        SavedInfo::parse(name, &self.read(&below(QUEUE, name))?)
    }

    pub fn save_info(&self, info: &SavedInfo) -> io::Result<()> {
        if self.files.list(QUEUE).is_err() {
            self.files.make_dir(QUEUE)?;
            self.files.sync_dir("")?;
        }
        replace(&*self.files, QUEUE, &file_name(&info.key), &info.to_bytes())
    }

    /// A message that is delivered. For good: one that came back after a power cut would be sent again, after newer ones
    /// of its object, and would be the controller's last word on an object that is gone.
    pub fn erase_info(&self, key: &str) -> io::Result<()> {
        erase(&*self.files, QUEUE, &file_name(key))
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        self.files.read(name, MAX_FILE_BYTES).ok()
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        replace(&*self.files, "", name, content)
    }
}

impl SavedConfig {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = CONFIG_HEAD.to_vec();
        out.extend((self.certs.len() as u64).to_le_bytes());
        out.extend(&self.certs);
        out.extend(&self.container);
        out
    }

    /// What it holds proves itself by its signatures; only the form is read here.
    fn parse(untrusted: &[u8]) -> Option<SavedConfig> {
        let rest = untrusted.strip_prefix(CONFIG_HEAD)?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (certs, container) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        Some(SavedConfig { certs: certs.to_vec(), container: container.to_vec() })
    }
}

impl SavedInfo {
    fn to_bytes(&self) -> Vec<u8> {
        let urgency = match self.urgency {
            Urgency::App => "app",
            Urgency::Hardware => "hardware",
            Urgency::Rest => "rest",
        };
        let mut out = format!("{INFO_HEAD}{urgency} {}\n", self.key).into_bytes();
        out.extend(&self.payload);
        out
    }

    fn parse(name: &str, bytes: &[u8]) -> Option<SavedInfo> {
        let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (line, payload) = bytes.split_at(line_end);
        let (urgency, key) = std::str::from_utf8(line).ok()?.strip_prefix(INFO_HEAD)?.split_once(' ')?;
        let urgency = match urgency {
            "app" => Urgency::App,
            "hardware" => Urgency::Hardware,
            "rest" => Urgency::Rest,
            _ => return None,
        };
        // A file that was not renamed to its name was never whole.
        if name != file_name(key) {
            return None;
        }
        Some(SavedInfo { key: key.to_owned(), urgency, payload: payload.get(1..)?.to_vec() })
    }
}

/// Keys are made of ids and fixed words; anything else becomes `-`.
fn file_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '#' { c } else { '-' }).collect()
}

fn text(bytes: Vec<u8>) -> Option<String> {
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::files::Directory;
    use std::fs;
    use uuid::Uuid;

    fn config(byte: u8) -> SavedConfig {
        SavedConfig { certs: vec![byte; 3], container: vec![byte; 5] }
    }

    #[test]
    fn saved_configs_read_back_and_torn_ones_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(Directory::new(dir.path()));
        assert_eq!(disk.configs(), []);
        disk.save_config(&config(1)).unwrap();
        disk.save_config(&config(2)).unwrap();
        assert_eq!(disk.configs(), [config(2), config(1)]);
        disk.save_config(&config(3)).unwrap();
        assert_eq!(disk.configs(), [config(3), config(1)], "the backup is younger than ten minutes");
        let whole = fs::read(dir.path().join("lastconfig")).unwrap();
        for cut in 0..CONFIG_HEAD.len() + 11 {
            fs::write(dir.path().join("lastconfig"), &whole[..cut]).unwrap();
            assert_eq!(disk.configs(), [config(1)], "cut at {cut}");
        }
    }

    #[test]
    fn small_values_read_back_and_nonsense_is_as_good_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(Directory::new(dir.path()));
        let device = DeviceId(Uuid::from_u128(5));
        disk.save_device(device).unwrap();
        disk.save_floor(77).unwrap();
        disk.save_certs(b"set").unwrap();
        assert_eq!((disk.device(), disk.floor_s(), disk.certs()), (Some(device), 77, Some(b"set".to_vec())));
        fs::write(dir.path().join("uuid"), [0xff, 0]).unwrap();
        fs::write(dir.path().join("floor"), "soon").unwrap();
        assert_eq!((disk.device(), disk.floor_s()), (None, 0));
    }

    #[test]
    fn queued_messages_read_back_until_they_are_erased() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(Directory::new(dir.path()));
        let info = |key: &str, urgency| SavedInfo { key: key.into(), urgency, payload: b"\nx\n".to_vec() };
        let messages = [info("app/1", Urgency::App), info("volume/2#3", Urgency::Rest)];
        messages.iter().for_each(|message| disk.save_info(message).unwrap());
        fs::write(dir.path().join("queue/.app-9.new"), "selvedge info 1 app app/9\n").unwrap();
        fs::write(dir.path().join("queue/odd"), "odd").unwrap();
        assert_eq!(disk.queue(), messages);
        disk.erase_info("app/1").unwrap();
        disk.erase_info("app/1").unwrap();
        assert_eq!(disk.queue(), messages[1..]);
    }
}
