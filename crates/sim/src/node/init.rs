// SPDX-License-Identifier: Apache-2.0
//! init, as far as others see it: the facts of the box. Starting what died is the world's part.

use ipc::topics;
use model::observed::{Firmware, NodeObserved};

use super::{Cx, Input};

#[derive(Debug)]
pub struct Init;

impl Init {
    pub fn handle(&mut self, cx: &mut Cx<'_>, input: &Input) {
        let Input::Start = input else { return };
        let node = NodeObserved {
            version: "0.1.0".into(),
            kernel: "6.12".into(),
            architecture: "x86_64".into(),
            hostname: cx.machine.serial.to_lowercase(),
            boot_id: cx.machine.restart_counter.to_string(),
            booted_at: cx.now.wall.time(),
            cpus: 4,
            memory_bytes: 4 << 30,
            manufacturer: "Simulated".into(),
            product: "Box".into(),
            serial: cx.machine.serial.clone(),
            firmware: Firmware::default(),
            has_watchdog: false,
            disk: None,
            is_hosted: false,
            restart_counter: cx.machine.restart_counter,
        };
        cx.put::<topics::NodeObserved>("", &node);
        cx.all_stand::<topics::NodeObserved>();
        cx.all_stand::<topics::ServiceObserved>();
    }
}
