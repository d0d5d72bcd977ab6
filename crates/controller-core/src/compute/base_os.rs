// SPDX-License-Identifier: Apache-2.0
//! The version of the operating system: its update file as a content tree, and the order to run it.

use alloc::format;
use alloc::vec::Vec;

use model::config::{BaseOs, ContentTree};
use model::id::ContentTreeId;

use super::{Builder, Used, wire_id};
use crate::intent::Object;
use crate::resource::BaseOsSpec;

impl<'a> Builder<'a> {
    pub(super) fn base_os(
        &self,
        os: &'a Object<BaseOsSpec>,
        trees: &mut Vec<ContentTree>,
        used: &mut Used<'a>,
    ) -> Option<BaseOs> {
        let spec = &os.spec;
        let id = ContentTreeId(wire_id(os.uid, self.id, "content"));
        let name = format!("{} {}", os.name, spec.version);
        // nothing depends on its generation: another content has another sum, or another attempt
        let tree = match (&spec.file, &spec.image) {
            (Some(file), None) => {
                used.datastores.insert(&file.datastore);
                self.file_tree(id, &name, file, 0)?
            }
            (None, Some(image)) => {
                used.registries.insert(&image.registry);
                self.image_tree(id, &name, image, 0)?
            }
            _ => return None,
        };
        trees.push(tree);
        Some(BaseOs {
            content_tree: id,
            version: spec.version.clone(),
            is_active: spec.activate,
            retry_counter: spec.retry_counter,
        })
    }
}
