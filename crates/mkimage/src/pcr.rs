// SPDX-License-Identifier: Apache-2.0
//! What a TPM will say of an image: register 11 after systemd's stub has measured the sections of the UKI.
//!
//! The stub measures each section that is there, in an order of its own: its name with the zero byte, then its content.

use sha2::{Digest as _, Sha256};

use crate::pe;

/// The stub's order (systemd, src/fundamental/uki.h), as far as we have the sections.
const ORDER: [&str; 6] = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"];

/// Register 11 of the bank sha256, when the kernel has just started.
pub(crate) fn after_stub(uki: &[u8]) -> anyhow::Result<String> {
    let mut register = [0_u8; 32];
    for name in ORDER {
        let Some(content) = pe::section_in_memory(uki, name)? else { continue };
        let with_zero = [name.as_bytes(), &[0]].concat();
        for measured in [with_zero.as_slice(), &content] {
            let mut sum = Sha256::new();
            sum.update(register);
            sum.update(Sha256::digest(measured));
            register = sum.finalize().into();
        }
    }
    Ok(hex::encode(register))
}
