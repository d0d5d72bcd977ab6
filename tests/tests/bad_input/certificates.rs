// SPDX-License-Identifier: Apache-2.0
//! Certificates of a controller that a node must not believe. (Those of registries stand in `images`.)

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use tests::lab::Controller;
use tests::operator::{SOON, app, apply, network, object, toolbox_lab, wait_answer};
use tests::probe::Probe;
use tests::progress::{step, wait_for};
use tests::tls::{Age, Authority};

/// Time in which a node that lost its controller asks again.
const ASKED_AGAIN: Duration = Duration::from_secs(30);

/// Stands in the controller's place, shakes hands and answers nothing. Gone when dropped.
struct Impostor {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Impostor {
    fn start(address: SocketAddr, config: Arc<ServerConfig>) -> Impostor {
        // the one before may have left connections that still close
        let listener = wait_for("the port is free", SOON, || TcpListener::bind(address).ok()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let Ok(mut session) = ServerConnection::new(config.clone()) else { continue };
                // refused half way, or not at all
                while session.is_handshaking() && session.complete_io(&mut stream).is_ok() {}
            }
        });
        Impostor { over, thread: Some(thread) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
#[ignore = "needs root"]
fn a_node_believes_no_controller_with_a_bad_certificate_and_says_so() {
    let mut lab = toolbox_lab("impostor", 66);
    apply(&lab, &(network("apps", "10.60.0.0/24") + &app("good", "box:1", "apps", 8080, "")));
    wait_answer(&mut lab, 8080, "one", SOON);
    let probe = Probe::start(lab.app_address(8080).unwrap());
    let device = object(&lab, "devices")["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let address = lab.controller.address;
    let key = fs::read_to_string(lab.controller.data.join("pki/root.key.pem")).unwrap();
    // the controller's own CA: only the age of what it signed is wrong
    let own = Authority::with_key("Selvedge root", &key).unwrap();
    let foreign = Authority::new("Selvedge root").unwrap();
    lab.controller.process().stop().unwrap();
    for (authority, age, told) in [
        (&foreign, Age::Valid, "ControllerUntrusted"),
        (&own, Age::Expired, "expired"),
        (&own, Age::Future, "not valid yet"),
    ] {
        step(format_args!("an impostor: {told}"));
        let _impostor = Impostor::start(address, authority.server(address.ip(), age).unwrap());
        wait_for(&format!("the node says {told}"), ASKED_AGAIN, || {
            let log = fs::read_to_string(lab.node.process().log_path()).ok()?;
            log.contains(told).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}:\n{}", lab.node.process().log_tail()));
    }
    step("the controller is back");
    lab.controller = Controller::start_at(&lab.place, address, &[]).unwrap();
    apply(&lab, &app("more", "box:2", "apps", 8081, ""));
    wait_answer(&mut lab, 8081, "two", ASKED_AGAIN + SOON);
    wait_for("its operator reads what was", SOON, || {
        let log = lab.controller.cli(&["logs", &format!("device/{device}"), "--tail", "5000"]).ok()?;
        (log.contains("expired") && log.contains("not valid yet")).then_some(())
    })
    .unwrap();
    assert!(probe.end().unwrap() > 10);
}
