// SPDX-License-Identifier: Apache-2.0
//! Logs and metrics of apps and of the device reach the operator.

use std::time::Duration;

use serde_json::Value;
use tests::command::{root, run};
use tests::progress::wait_for;

use super::{SOON, app, apply, network, object, on_device, sh, toolbox_lab, wait_answer};

#[test]
#[ignore = "needs root"]
fn logs_and_metrics_of_apps_and_device_arrive() {
    let mut lab = toolbox_lab("reports", 35);
    let name = object(&lab, "devices")["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let mut device = object(&lab, &format!("device/{name}"));
    device["spec"]["properties"]["timer.metric.interval"] = "5".into();
    device.as_object_mut().unwrap().remove("status");
    lab.controller.apply("device.yaml", &device.to_string()).unwrap();
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("talker", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let id = on_device(&lab, "talker")["id"].as_str().unwrap().to_owned();

    // its first process has the console; a shell behind the web server writes into that, not into its answer
    sh(&lab, 8080, "echo 'a line: ümläut \"quoted\" %s {}' > /proc/1/fd/1; echo wrong > /proc/1/fd/2");
    let logs = wait_for("the app's lines arrive", SOON, || {
        let text = lab.controller.cli(&["logs", "app/talker"]).ok()?;
        let lines = ["toolbox one starts", "a line: ümläut \"quoted\" %s {}", "wrong"];
        lines.iter().all(|line| text.contains(line)).then_some(text)
    })
    .unwrap_or_else(|error| panic!("{error}: {}", lab.controller.cli(&["logs", "app/talker"]).unwrap()));
    assert!(!logs.contains("selvedge-"), "lines of services are among the app's:\n{logs}");
    wait_for("the device's lines arrive", SOON, || {
        let text = lab.controller.cli(&["logs", &format!("device/{name}"), "--tail", "5000"]).ok()?;
        (text.contains("talker") && !text.contains("ümläut")).then_some(())
    })
    .unwrap_or_else(|error| {
        panic!("{error}: {}", lab.controller.cli(&["logs", &format!("device/{name}")]).unwrap())
    });

    let metrics = wait_for("metrics arrive", Duration::from_secs(20), || {
        let text = lab.controller.cli(&["get", &format!("device/{name}"), "--metrics"]).ok()?;
        let metrics: Value = serde_json::from_str(&text).ok()?;
        let app = metrics["message"]["am"].as_array()?.iter().find(|app| app["AppID"] == *id)?.clone();
        let is_measured = |value: &Value| number(value).is_some_and(|number| number > 0.0);
        // in whole mebibytes it is nothing
        let memory = app["memory"]["usedPercentage"].clone();
        // processes and links are looked at by two services, each in its own time
        let has_links = app["network"].as_array().is_some_and(|links| !links.is_empty());
        (is_measured(&memory) && is_measured(&app["cpu"]["totalNs"]) && has_links).then_some((metrics, app))
    });
    let (metrics, app) = metrics.unwrap_or_else(|error| {
        panic!(
            "{error}: {}",
            lab.controller.cli(&["get", &format!("device/{name}"), "--metrics"]).unwrap_or_default()
        )
    });
    told_of_the_box(&lab, &name);
    let device = &metrics["message"]["dm"];
    let disk = &device["disk"][0];
    assert!(["total", "used", "free"].iter().all(|field| number(&disk[*field]) > Some(0.0)), "{disk}");
    assert!(
        number(&device["deviceMemory"]["memoryMB"]) > number(&device["deviceMemory"]["usedEveMB"]),
        "{device}"
    );
    assert!(number(&device["memory"]["usedMem"]).is_some_and(|mebibytes| mebibytes > 0.0), "{device}");
    assert!(number(&device["cpuMetric"]["totalNs"]).is_some_and(|time| time > 0.0), "{device}");
    assert_eq!(app["AppName"].as_str(), Some("talker"), "{app}");
    let links = app["network"].as_array().unwrap();
    assert!(links.iter().any(|link| number(&link["txBytes"]).is_some_and(|bytes| bytes > 0.0)), "{app}");
}

/// The newest info of the device, with what every box has. The whole list of fields stands in the table of `node-agent`.
fn told_of_the_box(lab: &tests::lab::Lab, name: &str) {
    let text = lab.controller.cli(&["get", &format!("device/{name}"), "--info"]).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let device = find(&all, "dinfo").unwrap_or_else(|| panic!("{text}"));
    let uname = run(root("uname").arg("-n")).unwrap();
    assert_eq!(device["HostName"].as_str(), Some(uname.trim()), "{device}");
    for field in ["ncpu", "memory", "storage"] {
        assert!(number(&device[field]) > Some(0.0), "{field}: {device}");
    }
    for field in
        ["machineArch", "bootTime", "lastRebootReason", "dns", "minfo", "dataSecAtRestInfo", "systemAdapter"]
    {
        assert!(!device[field].is_null(), "{field}: {device}");
    }
    assert_eq!(device["lastBootReason"], "BOOT_REASON_FIRST", "{device}");
    assert_eq!(device["state"], "ZDEVICE_STATE_ONLINE", "{device}");
    assert_eq!(device["HSMStatus"], "NOTFOUND", "{device}");
    let slot = &device["swList"][0];
    assert!(slot["activated"] == true && slot["shortVersion"].is_string(), "{slot}");
    let echo = &device["configItemStatus"]["configItems"]["timer.metric.interval"];
    assert_eq!(echo["value"], "5", "{device}");
    assert!(device["appInstances"].as_array().unwrap().iter().any(|app| app["name"] == "talker"), "{device}");
    let uplink = device["network"].as_array().unwrap().iter().find(|port| port["uplink"] == true).unwrap();
    for field in ["IPAddrs", "defaultRouters"] {
        assert_eq!(uplink[field].as_array().map(Vec::len), Some(1), "{field}: {uplink}");
    }
    let port = &device["systemAdapter"]["status"][0]["ports"][0];
    assert!(port["isMgmt"] == true && port["up"] == true && port["subnet"].is_string(), "{port}");
    assert!(device["systemAdapter"]["status"][0]["lastSucceeded"].is_string(), "{device}");
    let root_ca = device["secInfo"]["shaRootCa"].as_str().unwrap();
    assert_eq!(root_ca.len(), 44, "SHA-256 in base64");
}

/// The first value of this name, however deep.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(name).or_else(|| map.values().find_map(|inner| find(inner, name))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, name)),
        _ => None,
    }
}

/// Protobuf's JSON writes 64-bit numbers as texts.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}
