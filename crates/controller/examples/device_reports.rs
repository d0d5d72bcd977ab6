// SPDX-License-Identifier: Apache-2.0
//! Devices that report without end, to a controller that may be killed: each keeps a report until it is answered.
//!
//! `device_reports SERVER(host:port) BUNDLE_DIR SERIAL COUNT`: onboards COUNT devices and prints `ready`. Then each sends an info
//! message about one app, whose name is a number that rises, and a file of one log line with the same number; both again and
//! again until they are answered 201. When standard input ends, every device finishes its report and one line for each is
//! printed, `sent DEVICE COUNT`, then `answers CODE=COUNT …`. A 503 without `Retry-After` ends the program with an error,
//! like any other answer that loses a report.

mod device;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use device::{Device, Result, Sessions, Target, Tls, exchange_with_head};
use eve_api::Message as _;
use eve_api::newlogs::{self, LogEntry, LogHeader};
use eve_api::wire::info::z_info_msg::InfoContent;
use eve_api::wire::info::{ZInfoApp, ZInfoMsg};
use tokio_rustls::TlsConnector;

/// Pause between two reports of one device.
const PAUSE: Duration = Duration::from_millis(150);
/// Pause before a try that follows one without an answer.
const RETRY: Duration = Duration::from_millis(100);
/// `ZInfoTypes` of an app.
const APP: i32 = 3;
const APP_ID: &str = "70000000-0000-4000-8000-000000000007";

type Answers = Arc<Mutex<BTreeMap<u16, u64>>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, server, bundle, serial, count] = &args[..] else {
        return Err("usage: device_reports SERVER BUNDLE_DIR SERIAL COUNT".into());
    };
    let target = Arc::new(Target::read(server, bundle)?);
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Answers::default());
    let mut devices = Vec::new();
    for number in 0..count.parse::<u32>()? {
        devices.push(Device::onboard(&target, &format!("{serial}-{number}")).await?);
    }
    println!("ready");
    let mut tasks = Vec::new();
    for device in devices {
        let reporter = Reporter {
            target: target.clone(),
            tls: target.connector(Sessions::Resumed),
            device,
            answers: answers.clone(),
            kept: None,
        };
        tasks.push(tokio::spawn(reporter.report(stop.clone())));
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        let (id, count) = task.await??;
        println!("sent {id} {count}");
    }
    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let counts: Vec<String> = answers.iter().map(|(code, count)| format!("{code}={count}")).collect();
    println!("answers {}", counts.join(" "));
    Ok(())
}

struct Reporter {
    target: Arc<Target>,
    tls: TlsConnector,
    device: Device,
    answers: Answers,
    kept: Option<Tls>,
}

impl Reporter {
    async fn report(mut self, stop: Arc<AtomicBool>) -> Result<(String, u64)> {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let app = ZInfoApp { app_id: APP_ID.into(), app_name: number.to_string(), ..ZInfoApp::default() };
            let info = ZInfoMsg {
                ztype: APP,
                dev_id: self.device.id.clone(),
                info_content: Some(InfoContent::Ainfo(app)),
                ..ZInfoMsg::default()
            };
            self.send_until_taken("info", info.encode_to_vec()).await?;
            let line = LogEntry {
                severity: "info".into(),
                source: "test".into(),
                content: number.to_string(),
                msgid: number,
                ..LogEntry::default()
            };
            self.send_until_taken("newlogs", newlogs::write(&LogHeader::default(), &[line])?).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok((self.device.id.clone(), number))
    }

    async fn send_until_taken(&mut self, call: &str, payload: Vec<u8>) -> Result<()> {
        let request = self.device.request(call, payload)?;
        loop {
            let Ok((status, head)) = self.try_once(&request).await else {
                self.kept = None;
                tokio::time::sleep(RETRY).await;
                continue;
            };
            *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
            match status {
                201 => return Ok(()),
                503 if head.contains("retry-after:") => tokio::time::sleep(RETRY).await,
                _ => return Err(format!("{call} answered {status}:\n{head}").into()),
            }
        }
    }

    async fn try_once(&mut self, request: &[u8]) -> Result<(u16, String)> {
        let mut stream = match self.kept.take() {
            Some(stream) => stream,
            None => self.target.connect(&self.tls).await?,
        };
        let (status, head, _) = exchange_with_head(&mut stream, request).await?;
        self.kept = Some(stream);
        Ok((status, head))
    }
}
