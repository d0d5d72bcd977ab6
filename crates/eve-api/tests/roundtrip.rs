// SPDX-License-Identifier: Apache-2.0
//! What is rendered reads back the same; a rendered config has no problem a controller must hold back for.
#![allow(clippy::unwrap_used)]

mod common;

use common::{arbitrary, reports};
use eve_api::{Message as _, parse, problems, render};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn configs_read_back(config in arbitrary::config()) {
        let bytes = render::config_response(&config, "hash");
        let response = parse::config_response(&bytes).unwrap();
        prop_assert_eq!(&response.hash, "hash");
        prop_assert_eq!(response.config.as_ref(), Some(&config));
        let wire = render::device_config(&config);
        prop_assert_eq!(parse::device_config_bytes(&wire.encode_to_vec()), Ok(config));
        prop_assert_eq!(problems::problems(&wire), Vec::<String>::new());
    }

    #[test]
    fn infos_read_back(message in reports::info()) {
        prop_assert_eq!(parse::info(&render::info(&message)).unwrap(), message);
    }

    #[test]
    fn metrics_read_back(metrics in reports::metrics()) {
        prop_assert_eq!(parse::metrics(&render::metrics(&metrics)).unwrap(), metrics);
    }

    #[test]
    fn flows_read_back(report in reports::flow_report()) {
        prop_assert_eq!(parse::flows(&render::flows(&report)).unwrap(), Some(report));
    }

    #[test]
    fn damaged_messages_never_panic(config in arbitrary::config(), hits in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 1..8)) {
        let mut bytes = render::config_response(&config, "");
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(wire) = eve_api::wire::config::ConfigResponse::decode(bytes.as_slice()) {
            let _ = problems::problems(&wire.config.unwrap_or_default());
        }
        let _ = parse::config_response(&bytes);
    }
}
