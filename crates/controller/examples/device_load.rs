// SPDX-License-Identifier: Apache-2.0
//! Load on a running controller's device API: real envelopes, real signatures, real TLS.
//!
//! `device_load SERVER(host:port) BUNDLE_DIR SERIAL PID SECONDS`: onboards a few nodes with the bundle, then polls `/config`
//! with the known hash (304, `Prefer: wait=0`), first over a new connection each time, without and with TLS resumption,
//! then over kept connections. Prints requests per second of the controller's own CPU time, read from /proc/PID.

mod device;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use device::{Context as _, Device, Result, Sessions, Target, controller_certs, exchange, verified_hash};

/// Connections at once.
const CLIENTS: usize = 32;
const DEVICES: usize = 16;
/// Different ones of each device.
const REQUESTS: usize = 16;

/// CPU time of a process in seconds.
fn cpu_s(pid: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, server, bundle, serial, pid, seconds] = &args[..] else {
        return Err("usage: device_load SERVER BUNDLE_DIR SERIAL PID SECONDS".into());
    };
    let target = Arc::new(Target::read(server, bundle)?);
    let certs = controller_certs(&target).await?;
    // A few hundred requests signed beforehand: the client's own signing is not what is measured.
    let mut requests = Vec::new();
    for number in 0..DEVICES {
        let device = Device::onboard(&target, &format!("{serial}-{number}")).await?;
        let mut stream = target.connect(&target.connector(Sessions::Fresh)).await?;
        let (_, body) = exchange(&mut stream, &device.config_request("", Some(0))?).await?;
        let hash = verified_hash(&body, &certs)?;
        for _ in 0..REQUESTS {
            requests.push(device.config_request(&hash, Some(0))?);
        }
    }
    let requests = Arc::new(requests);

    let time = Duration::from_secs(seconds.parse()?);
    for (what, sessions, keep) in [
        ("new connections, full handshake", Sessions::Fresh, false),
        ("new connections, resumed", Sessions::Resumed, false),
        ("kept connections", Sessions::Resumed, true),
    ] {
        let count = Arc::new(AtomicU64::new(0));
        let tls = target.connector(sessions);
        let (start, cpu) = (Instant::now(), cpu_s(pid)?);
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (target, tls, requests, count) =
                    (target.clone(), tls.clone(), requests.clone(), count.clone());
                tokio::spawn(async move {
                    let mut kept = None;
                    let mut next = client * REQUESTS;
                    while start.elapsed() < time {
                        let mut stream = match kept.take() {
                            Some(stream) => stream,
                            None => target.connect(&tls).await?,
                        };
                        let (status, _) = exchange(&mut stream, &requests[next % requests.len()]).await?;
                        if status != 304 {
                            return Err(format!("answered {status}").into());
                        }
                        next += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                        if keep {
                            kept = Some(stream);
                        }
                    }
                    Result::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        let (requests, cpu) = (count.load(Ordering::Relaxed) as f64, cpu_s(pid)? - cpu);
        let per_s = requests / start.elapsed().as_secs_f64();
        println!(
            "{what}: {:.0} per second and core ({per_s:.0} per second measured, {cpu:.1} s CPU)",
            requests / cpu
        );
    }
    Ok(())
}
