// SPDX-License-Identifier: Apache-2.0
//! Whether a node does what its operator wants and says so: asked by a change that goes through the whole node and back.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::lab::{Lab, comm};
use crate::progress::wait_for;

/// Services of a node, as their manifests name them.
pub const SERVICES: &[&str] = &["bus", "log", "vault", "agent", "planner", "net", "fetch", "store", "run"];

impl Lab {
    /// Name of the laboratory's only device.
    pub fn device(&self) -> anyhow::Result<String> {
        let text = self.controller.cli(&["get", "devices", "-o", "name"])?;
        let line = text.lines().next().context("there is no device")?;
        Ok(line.rsplit('/').next().unwrap_or(line).to_owned())
    }

    /// Changes a property that nobody knows: it changes nothing on the node but its echo.
    pub fn change(&self, marker: &str) -> anyhow::Result<()> {
        let text = self.controller.cli(&["get", &format!("device/{}", self.device()?), "-o", "json"])?;
        let mut object: serde_json::Value = serde_json::from_str(&text)?;
        object["spec"]["properties"]["test.marker"] = marker.into();
        let object_parts = object.as_object_mut().context("a device is an object")?;
        object_parts.remove("status");
        if let Some(metadata) = object_parts.get_mut("metadata").and_then(|metadata| metadata.as_object_mut())
        {
            metadata.remove("resourceVersion");
        }
        self.controller.apply("device.yaml", &object.to_string()).map(drop)
    }

    /// The device has echoed the marker, is connected, and each app of the controller is ready.
    pub fn is_true(&self, marker: &str) -> bool {
        let Ok(device) = self.device() else { return false };
        let info = self.controller.cli(&["get", &format!("device/{device}"), "--info"]).unwrap_or_default();
        info.contains(marker)
            && self.conditions_hold("devices", "Connected")
            && self.conditions_hold("apps", "Ready")
    }

    /// Every object of a kind has the condition with status True, and there is one.
    fn conditions_hold(&self, kind: &str, condition: &str) -> bool {
        let text = self.controller.cli(&["get", kind, "-o", "json"]).unwrap_or_default();
        let Ok(list) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
        let objects = list["items"].as_array().cloned().unwrap_or_else(|| vec![list]);
        let holds = |object: &serde_json::Value| {
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == condition && c["status"] == "True")
        };
        !objects.is_empty() && objects.iter().all(holds)
    }

    /// Waits until every service runs and a change has gone through the whole node and back; how long that took.
    pub fn converge(&self, marker: &str, timeout: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.change(marker)?;
        let all_run =
            || SERVICES.iter().all(|service| self.node.pids(service).is_ok_and(|pids| pids.len() == 1));
        wait_for(&format!("status is true after {marker}"), timeout, || {
            (all_run() && self.is_true(marker)).then_some(())
        })
        .map_err(|error| {
            let apps = self.controller.cli(&["get", "apps,devices", "-o", "wide"]).unwrap_or_default();
            anyhow::anyhow!("{error:#}\n{apps}\nnode:\n{}", self.node.log_tail())
        })?;
        Ok(start.elapsed())
    }

    /// The only process of a service.
    pub fn service(&self, service: &str) -> anyhow::Result<u32> {
        let pids = self.node.pids(service)?;
        anyhow::ensure!(pids.len() == 1, "{service} runs as {pids:?}");
        Ok(pids[0])
    }

    /// The first process of the apps that has this name.
    pub fn app_process(&self, name: &str) -> anyhow::Result<u32> {
        let all = self.node.all_pids()?;
        all.into_iter()
            .find(|pid| comm(*pid).as_deref() == Some(name))
            .with_context(|| format!("no {name} runs"))
    }
}
