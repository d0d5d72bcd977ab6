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
//! | `queue/*` | info messages the controller does not have yet |

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::id::DeviceId;
use node_core::upload::Urgency;
use service::durable::replace;

/// Largest file read: a config answer with its certificates.
const MAX_FILE_BYTES: u64 = 12 * 1024 * 1024;
/// Messages read back; the queue takes no more.
const MAX_QUEUE_FILES: usize = node_core::upload::MAX_ITEMS;
/// The backup is not overwritten by configs that come in quick succession.
const BACKUP_AGE: Duration = Duration::from_secs(10 * 60);
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
#[derive(Clone, Debug)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    pub fn new(dir: impl Into<PathBuf>) -> Disk {
        Disk { dir: dir.into() }
    }

    pub fn device(&self) -> Option<DeviceId> {
        text(read(&self.dir.join("uuid"))?)?.trim().parse().ok()
    }

    pub fn save_device(&self, device: DeviceId) -> io::Result<()> {
        replace(&self.dir, "uuid", format!("{device}\n").as_bytes())
    }

    pub fn certs(&self) -> Option<Vec<u8>> {
        read(&self.dir.join("certs"))
    }

    pub fn save_certs(&self, certs: &[u8]) -> io::Result<()> {
        replace(&self.dir, "certs", certs)
    }

    pub fn floor_s(&self) -> i64 {
        read(&self.dir.join("floor")).and_then(text).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    pub fn save_floor(&self, seconds: i64) -> io::Result<()> {
        replace(&self.dir, "floor", format!("{seconds}\n").as_bytes())
    }

    /// The saved configs, the one in force first.
    pub fn configs(&self) -> Vec<SavedConfig> {
        let names = ["lastconfig", "lastconfig.bak"];
        names.iter().filter_map(|name| SavedConfig::parse(&read(&self.dir.join(name))?)).collect()
    }

    /// Saves the config that is now in force; the one before becomes the backup, when the backup is old enough.
    pub fn save_config(&self, config: &SavedConfig) -> io::Result<()> {
        let backup = self.dir.join("lastconfig.bak");
        let is_fresh = fs::metadata(&backup)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < BACKUP_AGE));
        if !is_fresh && let Some(before) = read(&self.dir.join("lastconfig")) {
            replace(&self.dir, "lastconfig.bak", &before)?;
        }
        replace(&self.dir, "lastconfig", &config.to_bytes())
    }

    /// All messages that were not delivered.
    pub fn queue(&self) -> Vec<SavedInfo> {
        let Ok(entries) = fs::read_dir(self.dir.join("queue")) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths.iter().take(MAX_QUEUE_FILES).filter_map(|path| SavedInfo::parse(path)).collect()
    }

    pub fn save_info(&self, info: &SavedInfo) -> io::Result<()> {
        let dir = self.dir.join("queue");
        if !dir.exists() {
            fs::create_dir(&dir)?;
            File::open(&self.dir)?.sync_all()?;
        }
        replace(&dir, &file_name(&info.key), &info.to_bytes())
    }

    /// A message that is delivered; after a power cut it may be sent again, which does no harm.
    pub fn erase_info(&self, key: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join("queue").join(file_name(key))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
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

    fn parse(path: &Path) -> Option<SavedInfo> {
        let bytes = read(path)?;
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
        if path.file_name()?.to_str()? != file_name(key) {
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

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).ok()?;
    (content.len() as u64 <= MAX_FILE_BYTES).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn config(byte: u8) -> SavedConfig {
        SavedConfig { certs: vec![byte; 3], container: vec![byte; 5] }
    }

    #[test]
    fn saved_configs_read_back_and_torn_ones_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
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
        let disk = Disk::new(dir.path());
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
        let disk = Disk::new(dir.path());
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
