// SPDX-License-Identifier: Apache-2.0
//! Configuration properties (eve-api `ConfigItem`): which ones this node knows, their limits and defaults.
//!
//! A bad value keeps the default and is reported; an unknown key is reported as unknown. Every received item is echoed.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use model::config::ConfigItem;
use model::status::ConfigItemStatus;

use crate::apps::probe;

/// The properties this node acts upon, with all times in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Items {
    pub config_interval_s: u32,
    pub metric_interval_s: u32,
    pub device_info_interval_s: u32,
    pub cert_interval_s: u32,
    pub send_timeout_s: u32,
    pub dial_timeout_s: u32,
    pub is_maintenance: bool,
    /// Part of the disk's size in MiB that logs may take.
    pub log_quota_mib: u32,
    /// How long a new version of the operating system must be well before it stays.
    pub update_test_s: u32,
    /// A new version that does not reach the controller in this time is given up, if the one before did.
    pub update_contact_s: u32,
}

impl Default for Items {
    fn default() -> Items {
        Items {
            config_interval_s: 60,
            metric_interval_s: 60,
            device_info_interval_s: 600,
            cert_interval_s: 86_400,
            send_timeout_s: 120,
            dial_timeout_s: 10,
            is_maintenance: false,
            log_quota_mib: 2048,
            update_test_s: 600,
            update_contact_s: 300,
        }
    }
}

/// Number with its limits, and where it goes.
struct Number {
    key: &'static str,
    min: u32,
    max: u32,
    field: fn(&mut Items) -> &mut u32,
}

/// Limits as EVE documents them.
const NUMBERS: &[Number] = &[
    Number { key: "timer.config.interval", min: 5, max: 86_400, field: |i| &mut i.config_interval_s },
    Number { key: "timer.metric.interval", min: 5, max: 3_600, field: |i| &mut i.metric_interval_s },
    Number {
        key: "timer.deviceinfo.interval",
        min: 30,
        max: 86_400,
        field: |i| &mut i.device_info_interval_s,
    },
    Number { key: "timer.cert.interval", min: 60, max: 2_592_000, field: |i| &mut i.cert_interval_s },
    Number { key: "timer.send.timeout", min: 1, max: 3_600, field: |i| &mut i.send_timeout_s },
    Number { key: "timer.dial.timeout", min: 1, max: 3_600, field: |i| &mut i.dial_timeout_s },
    Number { key: "timer.test.baseimage.update", min: 30, max: 3_600, field: |i| &mut i.update_test_s },
    Number {
        key: "timer.update.fallback.no.network",
        min: 60,
        max: 86_400,
        field: |i| &mut i.update_contact_s,
    },
    Number {
        key: "newlog.gzipfiles.ondisk.maxmegabytes",
        min: 10,
        max: 1_048_576,
        field: |i| &mut i.log_quota_mib,
    },
];

/// Reads all items of a config and makes the echo of each, in the order received.
pub fn read(items: &[ConfigItem]) -> (Items, Vec<ConfigItemStatus>) {
    let mut out = Items::default();
    let echo = items.iter().map(|item| read_one(item, &mut out)).collect();
    (out, echo)
}

fn read_one(item: &ConfigItem, out: &mut Items) -> ConfigItemStatus {
    let result = if let Some(number) = NUMBERS.iter().find(|n| n.key == item.key) {
        read_number(number, &item.value, out).map(|()| true)
    } else if item.key == "maintenance.mode" {
        read_switch(&item.value).map(|on| {
            out.is_maintenance = on;
            true
        })
    } else if let Some(result) = probe::check(&item.key, &item.value) {
        result.map(|()| true)
    } else {
        Ok(false)
    };
    let (is_known, error) = match result {
        Ok(known) => (known, None),
        Err(text) => (true, Some(text)),
    };
    ConfigItemStatus { key: item.key.clone(), value: item.value.clone(), is_known, error }
}

fn read_number(number: &Number, text: &str, out: &mut Items) -> Result<(), String> {
    let value: u32 = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
    if value < number.min || value > number.max {
        return Err(format!("{value} is not within {} to {}", number.min, number.max));
    }
    *(number.field)(out) = value;
    Ok(())
}

/// EVE's three-valued switches: `none` leaves the choice to the node, which is off.
fn read_switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" | "true" | "on" | "1" => Ok(true),
        "disabled" | "false" | "off" | "none" | "0" | "" => Ok(false),
        other => Err(format!("{:?} is neither enabled nor disabled", other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, value: &str) -> ConfigItem {
        ConfigItem { key: key.into(), value: value.into() }
    }

    #[test]
    fn good_items_are_taken_and_bad_ones_keep_the_default() {
        let (items, echo) = read(&[
            item("timer.config.interval", "10"),
            item("timer.metric.interval", "4"),
            item("timer.cert.interval", "soon"),
            item("maintenance.mode", "enabled"),
            item("debug.enable.ssh", "key"),
        ]);
        assert_eq!(items.config_interval_s, 10);
        assert_eq!(items.metric_interval_s, 60);
        assert_eq!(items.cert_interval_s, 86_400);
        assert!(items.is_maintenance);
        let seen: Vec<_> = echo.iter().map(|e| (e.is_known, e.error.is_some())).collect();
        assert_eq!(seen, [(true, false), (true, true), (true, true), (true, false), (false, false)]);
    }
}
