// SPDX-License-Identifier: Apache-2.0
//! Stands in for process planner in `tests/peers.rs`: orders one image and a volume of it, as the settings `base_url`,
//! `repository` and `order` (a tag, or `nothing`) say, and logs what the store says of them.

use std::process::ExitCode;

use ipc::topics::{
    ContentDesired as ContentDesiredTopic, ContentObserved, VolumeDesired as VolumeDesiredTopic,
    VolumeObserved,
};
use model::config::VolumeOrigin;
use model::desired::{ContentDesired, ContentSource, ContentSources, RegistrySource, VolumeDesired};
use model::id::{ContentTreeId, VolumeId, VolumeKey};
use service::{Event, Service, log};

fn main() -> ExitCode {
    service::main("planner", |mut service: Service<()>| {
        let setting = |name: &str| service.settings().get(name).cloned().unwrap_or_default();
        let registry =
            RegistrySource { base_url: setting("base_url"), credentials: None, ca_pem: Vec::new() };
        let source =
            ContentSource { registry, repository: setting("repository"), reference: setting("order") };
        let content = ContentDesired {
            id: ContentTreeId(Default::default()),
            name: "ordered".into(),
            generation: 0,
            sources: ContentSources::Registries(vec![source]),
            digest: None,
            max_size_bytes: 0,
        };
        let key = VolumeKey { id: VolumeId(Default::default()), generation: 1 };
        let volume = VolumeDesired {
            key,
            name: "ordered".into(),
            origin: VolumeOrigin::Content(content.id),
            max_size_bytes: 0,
            is_read_only: false,
        };
        if setting("order") != "nothing" {
            service.publish::<ContentDesiredTopic>(&content.id.to_string(), &content);
            service.publish::<VolumeDesiredTopic>(&key.to_string(), &volume);
        }
        service.synced::<ContentDesiredTopic>();
        service.synced::<VolumeDesiredTopic>();
        service.subscribe::<ContentObserved>();
        service.subscribe::<VolumeObserved>();
        loop {
            if let Event::Stop = service.next(None) {
                return;
            }
            for observed in service.all::<ContentObserved>().into_values() {
                log::info(format_args!("observed {observed:?}"));
            }
            for observed in service.all::<VolumeObserved>().into_values() {
                log::info(format_args!("observed {observed:?}"));
            }
        }
    })
}
