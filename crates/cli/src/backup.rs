// SPDX-License-Identifier: Apache-2.0
//! `backup` and `restore`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use controller::backup::{Existing, restore as bring_back, verify};

use crate::DONE;
use crate::args::Connection;
use crate::client::Client;

/// Longest silence within a backup: the controller copies its database before the first byte.
const BACKUP_SILENCE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// File to write; it is as secret as the controller's data directory
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// With the images of the built-in registry
    #[arg(long)]
    images: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// What backup wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Let it take the place of what is in the data directory, which is moved aside
    #[arg(long)]
    replace: bool,
}

pub(crate) fn backup(client: &Client, args: &BackupArgs) -> anyhow::Result<u8> {
    let mut name = args.output.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let done = write(client, args, &part);
    if done.is_err() {
        // Half a backup is none.
        let _ = fs::remove_file(&part);
    }
    done?;
    let bytes = fs::metadata(&args.output)?.len();
    eprintln!(
        "wrote {} ({bytes} bytes) and checked it; keep it as safe as the controller itself",
        args.output.display()
    );
    Ok(DONE)
}

fn write(client: &Client, args: &BackupArgs, part: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", part.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)
        .with_context(cannot)?;
    let mut stream = client.stream(&format!("backup?images={}", args.images), BACKUP_SILENCE)?;
    io::copy(&mut stream, &mut file).context("the backup broke off")?;
    file.flush().and_then(|()| file.sync_all()).with_context(cannot)?;
    verify(part)?;
    fs::rename(part, &args.output).with_context(|| format!("cannot write {}", args.output.display()))?;
    let parent = args.output.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

pub(crate) fn restore(connection: &Connection, args: &RestoreArgs) -> anyhow::Result<u8> {
    let existing = if args.replace { Existing::Replace } else { Existing::Refuse };
    let restored = bring_back(&args.file, &connection.data, existing)?;
    let data = connection.data.display();
    if let Some(aside) = &restored.aside {
        eprintln!("what was there before is in {}", aside.display());
    }
    if !restored.has_images {
        eprintln!("the backup holds no images: push again what the registry lacks");
    }
    eprintln!("restored {data}; devices that joined after the backup have to join again");
    eprintln!("next: selvedge --data {data} serve");
    Ok(DONE)
}
