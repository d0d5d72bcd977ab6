// SPDX-License-Identifier: Apache-2.0
//! Verification of a TPM 2.0 quote: `TPMS_ATTEST` of type `TPM_ST_ATTEST_QUOTE` over the SHA-256 bank.
//!
//! Checked, in this order: the signature over the bytes as sent, their structure, the nonce, the PCR
//! values against the quoted digest. Not here: whether these PCR values are wanted, and whether the
//! key lives in a TPM (an endorsement proof is another dialogue).
//! Source: TPM 2.0 Library part 2, `TPMS_ATTEST`, `TPMS_QUOTE_INFO`, `TPML_PCR_SELECTION`; numbers are big-endian.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use ring::signature::{ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

/// `TPM_GENERATED_VALUE`: starts every structure a TPM signed itself.
const MAGIC: u32 = 0xFF54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
const TYPE_QUOTE: u16 = 0x8018;
/// `TPM_ALG_SHA256`.
const ALG_SHA256: u16 = 0x000B;
/// `TPMS_CLOCK_INFO` (17 bytes) and the firmware version (8 bytes).
const CLOCK_AND_FIRMWARE_BYTES: usize = 25;
/// Bytes of a PCR selection: 3 bytes name PCR 0 to 23; TPMs may send more.
const MAX_SELECT_BYTES: usize = 8;
/// Bytes of one PCR in the SHA-256 bank.
pub const PCR_BYTES: usize = 32;
/// Largest `attestData` looked at: a quote is about 150 bytes.
pub const MAX_ATTEST_BYTES: usize = 4096;

/// Values of the SHA-256 bank by PCR index.
pub type Pcrs = BTreeMap<u32, [u8; PCR_BYTES]>;

/// The key that signs quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuoteKey {
    /// Uncompressed point; the signature is ASN.1 DER, as TPM tools write it (not raw r‖s as in envelopes).
    P256(Vec<u8>),
    /// PKCS#1 `RSAPublicKey`; the signature is PKCS#1 v1.5.
    Rsa(Vec<u8>),
}

/// Why a quote does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    #[error("quote signature does not fit the attestation key")]
    Signature,
    #[error("not a quote over the SHA-256 bank")]
    Malformed,
    #[error("quote is over another nonce")]
    Nonce,
    #[error("a quoted PCR is missing from the values sent")]
    MissingPcr,
    #[error("PCR values do not give the quoted digest")]
    Digest,
}

/// What a TPM signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested<'a> {
    /// `extraData`: the nonce.
    pub nonce: &'a [u8],
    /// Indexes of the quoted PCRs, rising.
    pub selection: Vec<u32>,
    /// SHA-256 over the quoted PCRs one after another.
    pub digest: &'a [u8],
}

/// Reads `TPMS_ATTEST`. The whole input must be used up.
pub fn parse_attest(untrusted_attest: &[u8]) -> Result<Attested<'_>, QuoteError> {
    if untrusted_attest.len() > MAX_ATTEST_BYTES {
        return Err(QuoteError::Malformed);
    }
    let mut input = Input(untrusted_attest);
    if input.u32()? != MAGIC || input.u16()? != TYPE_QUOTE {
        return Err(QuoteError::Malformed);
    }
    input.sized()?; // qualifiedSigner
    let nonce = input.sized()?;
    input.take(CLOCK_AND_FIRMWARE_BYTES)?;
    if input.u32()? != 1 || input.u16()? != ALG_SHA256 {
        return Err(QuoteError::Malformed);
    }
    let width = usize::from(input.take(1)?[0]);
    if width > MAX_SELECT_BYTES {
        return Err(QuoteError::Malformed);
    }
    let bits = input.take(width)?;
    let selection = (0..width as u32 * 8).filter(|i| bits[(i / 8) as usize] >> (i % 8) & 1 == 1).collect();
    let digest = input.sized()?;
    if !input.0.is_empty() {
        return Err(QuoteError::Malformed);
    }
    Ok(Attested { nonce, selection, digest })
}

/// Verifies a quote; gives the indexes it vouches for.
pub fn verify_quote(
    untrusted_attest: &[u8],
    untrusted_signature: &[u8],
    key: &QuoteKey,
    nonce: &[u8],
    untrusted_pcrs: &Pcrs,
) -> Result<Vec<u32>, QuoteError> {
    match key {
        QuoteKey::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(untrusted_attest, untrusted_signature),
        QuoteKey::Rsa(key) => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
            .verify(untrusted_attest, untrusted_signature),
    }
    .map_err(|_| QuoteError::Signature)?;
    let attested = parse_attest(untrusted_attest)?;
    if nonce.is_empty() || attested.nonce != nonce {
        return Err(QuoteError::Nonce);
    }
    if attested.selection.is_empty() {
        return Err(QuoteError::Malformed);
    }
    let mut hash = Sha256::new();
    for index in &attested.selection {
        hash.update(untrusted_pcrs.get(index).ok_or(QuoteError::MissingPcr)?);
    }
    if hash.finalize().as_slice() != attested.digest {
        return Err(QuoteError::Digest);
    }
    Ok(attested.selection)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], QuoteError> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(QuoteError::Malformed)?;
        self.0 = tail;
        Ok(head)
    }
    fn u16(&mut self) -> Result<u16, QuoteError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }
    fn u32(&mut self) -> Result<u32, QuoteError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
    /// `TPM2B_…`: two bytes of length, then that many.
    fn sized(&mut self) -> Result<&'a [u8], QuoteError> {
        let count = usize::from(self.u16()?);
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    const NONCE: &[u8] = b"0123456789abcdef";

    fn pcrs() -> Pcrs {
        (0..16).map(|i| (i, [i as u8; PCR_BYTES])).collect()
    }

    fn attest(nonce: &[u8], pcrs: &Pcrs) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(TYPE_QUOTE.to_be_bytes());
        out.extend(34u16.to_be_bytes());
        out.extend([0x11; 34]);
        out.extend((nonce.len() as u16).to_be_bytes());
        out.extend(nonce);
        out.extend([0; CLOCK_AND_FIRMWARE_BYTES]);
        out.extend(1u32.to_be_bytes());
        out.extend(ALG_SHA256.to_be_bytes());
        out.push(3);
        let mask: u32 = pcrs.keys().map(|i| 1 << i).sum();
        out.extend(&mask.to_le_bytes()[..3]);
        let mut hash = Sha256::new();
        pcrs.values().for_each(|v| hash.update(v));
        out.extend(32u16.to_be_bytes());
        out.extend(hash.finalize());
        out
    }

    struct Signer(EcdsaKeyPair, SystemRandom);

    impl Signer {
        fn new() -> Signer {
            let random = SystemRandom::new();
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            let pair =
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random).unwrap();
            Signer(pair, random)
        }
        fn key(&self) -> QuoteKey {
            QuoteKey::P256(self.0.public_key().as_ref().to_vec())
        }
        fn sign(&self, data: &[u8]) -> Vec<u8> {
            self.0.sign(&self.1, data).unwrap().as_ref().to_vec()
        }
    }

    #[test]
    fn a_good_quote_stands_and_names_its_pcrs() {
        let signer = Signer::new();
        let data = attest(NONCE, &pcrs());
        let names = verify_quote(&data, &signer.sign(&data), &signer.key(), NONCE, &pcrs());
        assert_eq!(names, Ok((0..16).collect()));
    }

    #[test]
    fn one_thing_wrong_is_named() {
        let signer = Signer::new();
        let data = attest(NONCE, &pcrs());
        let signature = signer.sign(&data);
        let check = |data: &[u8], sig: &[u8], nonce: &[u8], pcrs: &Pcrs| {
            verify_quote(data, sig, &signer.key(), nonce, pcrs).unwrap_err()
        };
        assert_eq!(check(&data, &Signer::new().sign(&data), NONCE, &pcrs()), QuoteError::Signature);
        assert_eq!(check(&data, &signature, b"another nonce", &pcrs()), QuoteError::Nonce);
        assert_eq!(check(&data, &signature, b"", &pcrs()), QuoteError::Nonce);
        let mut other = pcrs();
        other.insert(7, [9; PCR_BYTES]);
        assert_eq!(check(&data, &signature, NONCE, &other), QuoteError::Digest);
        other.remove(&7);
        assert_eq!(check(&data, &signature, NONCE, &other), QuoteError::MissingPcr);
        assert_eq!(check(&[0; 8], &signer.sign(&[0; 8]), NONCE, &pcrs()), QuoteError::Malformed);
        let none = attest(NONCE, &Pcrs::new());
        assert_eq!(check(&none, &signer.sign(&none), NONCE, &pcrs()), QuoteError::Malformed);
    }

    #[test]
    fn cut_or_longer_bytes_are_refused() {
        let data = attest(NONCE, &pcrs());
        assert!(parse_attest(&data).is_ok());
        for end in 0..data.len() {
            assert_eq!(parse_attest(&data[..end]), Err(QuoteError::Malformed), "{end}");
        }
        let mut longer = vec![0; 1];
        longer.splice(0..0, data);
        assert_eq!(parse_attest(&longer), Err(QuoteError::Malformed));
    }
}
