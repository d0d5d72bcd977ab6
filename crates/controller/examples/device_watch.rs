// SPDX-License-Identifier: Apache-2.0
//! Devices that poll for their config as stock EVE does, against a controller that holds its answers.
//!
//! `device_watch SERVER(host:port) BUNDLE_DIR SERIAL COUNT`: onboards COUNT devices. Each asks over a new connection without any
//! `Prefer`, and when it has its answer pauses for 0.3 to 1 of `timer.config.interval` (5 s). Lines on standard output: `asks DEVICE`
//! when a request was sent, `got DEVICE MICROSECONDS` (since the epoch) when a new config has come and its signature is verified.
//! Ends with its standard input.

mod device;

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use device::{Device, Result, Sessions, Target, controller_certs, exchange, verified_hash};

/// `timer.config.interval` at its least.
const INTERVAL_MS: u64 = 5_000;

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, server, bundle, serial, count] = &args[..] else {
        return Err("usage: device_watch SERVER BUNDLE_DIR SERIAL COUNT".into());
    };
    let target = Arc::new(Target::read(server, bundle)?);
    let certs = Arc::new(controller_certs(&target).await?);
    for number in 0..count.parse()? {
        let device = Device::onboard(&target, &format!("{serial}-{number}")).await?;
        let (target, certs) = (target.clone(), certs.clone());
        tokio::spawn(async move {
            if let Err(error) = poll(&target, &certs, &device, number).await {
                eprintln!("device {number}: {error}");
                std::process::exit(1);
            }
        });
    }
    // Whoever started this holds the other end.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

async fn poll(
    target: &Target,
    certs: &eve_api::certs::ControllerCerts,
    device: &Device,
    number: u64,
) -> Result<()> {
    let tls = target.connector(Sessions::Resumed);
    let mut hash = String::new();
    for round in 0_u64.. {
        let request = device.config_request(&hash, None)?;
        let mut stream = target.connect(&tls).await?;
        if !hash.is_empty() {
            println!("asks {number}");
        }
        let (status, body) = exchange(&mut stream, &request).await?;
        drop(stream);
        match status {
            200 => {
                hash = verified_hash(&body, certs)?;
                println!("got {number} {}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
            }
            304 => {}
            _ => return Err(format!("config answered {status}").into()),
        }
        // Spread without a source of chance: any two devices and any two rounds differ.
        let spread = (number * 7_919 + round * 104_729) % (INTERVAL_MS * 7 / 10);
        tokio::time::sleep(Duration::from_millis(INTERVAL_MS * 3 / 10 + spread)).await;
    }
    Ok(())
}
