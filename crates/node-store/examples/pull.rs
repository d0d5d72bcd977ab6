// SPDX-License-Identifier: Apache-2.0
//! Pulls, verifies and unpacks one image as process store does, with the downloads of process fetch in the same process.
//! For measurements and for comparing trees with those of other tools.
//!
//!     pull http://host:port repository reference DIRECTORY [--shifted]
//!
//! When measuring, unpack into a new directory and delete none in the minute before: ext4 goes out of the way of inodes that
//! were freed just now, and that takes longer than all the rest.
//!
//! As root the files get the owners of the image; `--shifted`: those that apps see. Prints the layers, lowest first.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ipc::calls::FetchRequest;
use ipc::limits::{APP_UID_BASE, APP_UID_COUNT};
use model::desired::{ContentDesired, ContentSource, ContentSources, RegistrySource};
use model::id::ContentTreeId;
use model::reason::Fault;
use node_agent::fetch::client::Agents;
use node_agent::fetch::registry::Registries;
use node_agent::resolve::Dns;
use node_store::catalog::{Catalog, Held};
use node_store::pull::Pull;
use node_store::source::{Opened, Source};
use oci::platform::Platform;
use oci::unpack::Owners;

/// Fetch without a second process.
struct InProcess(Registries);

impl Source for InProcess {
    fn open(&self, request: &FetchRequest, _: &Arc<AtomicBool>) -> Result<Opened, Fault> {
        let FetchRequest::Image(request) = request else { unreachable!("no file is asked for") };
        let opened = self.0.open(request, None)?;
        Ok(Opened {
            media_type: opened.media_type,
            size: opened.size,
            offset: opened.offset,
            body: opened.body,
        })
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base_url, repository, reference, directory, rest @ ..] = &arguments[..] else {
        eprintln!("usage: pull http://host:port repository reference DIRECTORY [--shifted]");
        return ExitCode::from(2);
    };
    let owners = if !rustix::process::geteuid().is_root() {
        Owners::Ignored
    } else if rest.iter().any(|word| word == "--shifted") {
        Owners::Shifted { base: APP_UID_BASE, limit: APP_UID_COUNT }
    } else {
        Owners::AsIs { limit: u32::MAX }
    };
    let catalog = match Catalog::open(&PathBuf::from(directory), owners) {
        Ok((catalog, _)) => catalog,
        Err(error) => {
            eprintln!("{}", error.fault());
            return ExitCode::FAILURE;
        }
    };
    let registry = RegistrySource { base_url: base_url.clone(), credentials: None, ca_pem: Vec::new() };
    let source = ContentSource { registry, repository: repository.clone(), reference: reference.clone() };
    let desired = ContentDesired {
        id: ContentTreeId(Default::default()),
        name: repository.clone(),
        generation: 0,
        sources: ContentSources::Registries(vec![source]),
        digest: None,
        max_size_bytes: 0,
    };
    let pull = Pull {
        catalog: &catalog,
        source: &InProcess(Registries::new(Arc::new(Agents::new(Dns::default(), b"")))),
        platform: &Platform::this_machine(),
        desired: &desired,
        cancelled: &Arc::default(),
        progress: &|_| {},
    };
    match pull.run() {
        Ok(Held::File(_)) => unreachable!("an image was ordered"),
        Ok(Held::Image(image)) => {
            for layer in &image.layers {
                println!("{}", catalog.layer_path(layer).display());
            }
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}
