// SPDX-License-Identifier: Apache-2.0
//! The controller's ECDH certificates, newest first.
//!
//! The ones before are kept for a while: right after a rotation the config in force still names them.

use eve_api::certs::cert_hash;

/// Most certificates kept: the present set and a few rotations.
const MAX_CERTS: usize = 8;

/// Certificates exactly as the controller sent them; a newline more is another certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedCerts {
    pems: Vec<String>,
}

impl TrustedCerts {
    /// Format 1: a first line with the format, then for each certificate a line with its length in bytes and the text.
    pub const FILE: &'static str = "controller-ecdh";
    const HEAD: &'static str = "selvedge controller-ecdh 1\n";

    /// Puts the given set in front; says whether anything changed.
    pub fn renew(&mut self, pems: &[String]) -> bool {
        let mut renewed: Vec<String> = pems.to_vec();
        renewed.extend(self.pems.iter().filter(|pem| !pems.contains(pem)).cloned());
        renewed.truncate(MAX_CERTS);
        let changed = renewed != self.pems;
        self.pems = renewed;
        changed
    }

    /// The certificate a cipher context names.
    pub fn by_hash(&self, hash: &[u8]) -> Option<&String> {
        self.pems.iter().find(|pem| cert_hash(pem.as_bytes()) == hash)
    }

    pub fn to_text(&self) -> String {
        let mut text = String::from(Self::HEAD);
        for pem in &self.pems {
            text.push_str(&format!("{}\n{pem}", pem.len()));
        }
        text
    }

    /// Reads a file; what is damaged is dropped, the controller sends its certificates again.
    pub fn parse(untrusted_text: &[u8]) -> TrustedCerts {
        let mut pems = Vec::new();
        let mut rest =
            std::str::from_utf8(untrusted_text).ok().and_then(|text| text.strip_prefix(Self::HEAD));
        while let Some((length, tail)) = rest.and_then(|text| text.split_once('\n')) {
            let split = length.parse().ok().and_then(|length: usize| tail.split_at_checked(length));
            let Some((pem, tail)) = split.filter(|_| pems.len() < MAX_CERTS) else { break };
            pems.push(pem.to_owned());
            rest = Some(tail);
        }
        TrustedCerts { pems }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_the_certificate_before_and_reads_back() {
        let (a, b) = ("A\n".to_owned(), "B".to_owned());
        let mut certs = TrustedCerts::default();
        assert!(certs.renew(std::slice::from_ref(&a)));
        assert!(!certs.renew(std::slice::from_ref(&a)));
        assert!(certs.renew(std::slice::from_ref(&b)));
        assert_eq!(certs.by_hash(&cert_hash(b"A\n")), Some(&a));
        assert_eq!(certs.by_hash(&cert_hash(b"B\n")), None, "one newline more is another certificate");
        let text = certs.to_text();
        assert_eq!(TrustedCerts::parse(text.as_bytes()), certs);
        for cut in 0..text.len() {
            assert!(TrustedCerts::parse(&text.as_bytes()[..cut]).pems.len() < 2, "cut at {cut}");
        }
    }

    #[test]
    fn old_certificates_go_at_the_limit() {
        let mut certs = TrustedCerts::default();
        for number in 0..100 {
            certs.renew(&[format!("cert {number}")]);
        }
        assert_eq!(certs.pems.len(), MAX_CERTS);
        assert_eq!(certs.pems[0], "cert 99");
    }
}
