//! Probes: is the agent behind this address the one that has this key?
//!
//! ```text
//! prober ── Probe, signed by the prober ──────────────────────────> address
//! prober <── ProbeAnswer, signed by who has the key asked for ───── address
//! ```
//!
//! Each is one UDP datagram in the clear, outside the tunnel. An answer is shorter than what
//! it answers, so that nobody gains by asking in another's name. It signs the whole of the
//! question: its nonce, so that no earlier answer fits; both keys; and the address, so that
//! what was asked at one address is no proof for another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use edgemesh_catalog::{KeySignature, PublicKey};

use crate::WireError;

/// What both begin with: the protocol and its version. The kind follows.
const PROTOCOL: &[u8; 7] = b"edgemr1";
const KIND_PROBE: u8 = 1;
const KIND_ANSWER: u8 = 2;

/// Signatures over something else never begin so: the same keys sign much besides.
const PROBE_CONTEXT: &[u8] = b"edgemesh reach: a probe, v1\0";
const ANSWER_CONTEXT: &[u8] = b"edgemesh reach: the answer to a probe, v1\0";

const FAMILY_4: u8 = 4;
const FAMILY_6: u8 = 6;
/// Bytes of an IPv6 address, which an IPv4 address is filled up to.
const ADDRESS: usize = 16;
const SIGNATURE: usize = 64;
/// Nothing, up to the full length.
const PADDING: usize = 61;
/// What is signed of a probe: all before the signature.
const SIGNED: usize = Probe::LENGTH - SIGNATURE;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Never used before, and not to be guessed.
    pub nonce: [u8; 32],
    /// Who asks.
    pub from: PublicKey,
    /// Who is asked for.
    pub to: PublicKey,
    /// Where it is asked for. Without scope and flow label, which are each host's own.
    pub address: SocketAddr,
    /// When, in seconds since 1970 (UTC) by the asker's clock.
    pub sent_at: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeAnswer {
    /// That of the question.
    pub nonce: [u8; 32],
    /// Of [`ProbeAnswer::to_sign`].
    pub signature: KeySignature,
}

impl Probe {
    /// Bytes it takes, neither more nor less.
    pub const LENGTH: usize = 256;

    /// What the asker signs.
    #[must_use]
    pub fn to_sign(&self) -> Vec<u8> {
        [PROBE_CONTEXT, &self.signed_part()].concat()
    }

    /// As bytes, with the asker's signature.
    #[must_use]
    pub fn encode(&self, signature: &KeySignature) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (signed, last) = bytes.split_at_mut(SIGNED);
        signed.copy_from_slice(&self.signed_part());
        last.copy_from_slice(signature.as_bytes());
        bytes
    }

    /// From bytes. The signature is not verified.
    ///
    /// # Errors
    ///
    /// When they are not exactly one probe.
    pub fn decode(bytes: &[u8]) -> Result<(Self, KeySignature), WireError> {
        const WHAT: &str = "probe";
        if bytes.len() != Self::LENGTH {
            return Err(WireError::Length(WHAT));
        }
        let mut rest = bytes;
        take_header(&mut rest, KIND_PROBE, WHAT)?;
        let address = take_address(&mut rest)?;
        let probe = Self {
            address,
            sent_at: u64::from_be_bytes(take(&mut rest, WHAT)?),
            nonce: take(&mut rest, WHAT)?,
            from: PublicKey::from_bytes(take(&mut rest, WHAT)?),
            to: PublicKey::from_bytes(take(&mut rest, WHAT)?),
        };
        nothing(&take::<PADDING>(&mut rest, WHAT)?, "padding of a probe")?;
        let signature = KeySignature::from_bytes(take(&mut rest, WHAT)?);
        Ok((probe, signature))
    }

    fn signed_part(&self) -> [u8; SIGNED] {
        let mut bytes = [0; SIGNED];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            let end = at + field.len();
            if let Some(place) = bytes.get_mut(at..end) {
                place.copy_from_slice(field);
            }
            at = end;
        };
        put(PROTOCOL);
        put(&[KIND_PROBE]);
        let mut address = [0; ADDRESS];
        match self.address.ip() {
            IpAddr::V4(v4) => {
                put(&[FAMILY_4]);
                address[..4].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                put(&[FAMILY_6]);
                address = v6.octets();
            }
        }
        put(&address);
        put(&self.address.port().to_be_bytes());
        put(&self.sent_at.to_be_bytes());
        put(&self.nonce);
        put(self.from.as_bytes());
        put(self.to.as_bytes());
        bytes
    }
}

impl ProbeAnswer {
    /// Bytes it takes, neither more nor less; fewer than a probe.
    pub const LENGTH: usize = 104;

    /// What is signed in answer to the probe with these bytes, its signature among them.
    #[must_use]
    pub fn to_sign(probe: &[u8; Probe::LENGTH]) -> Vec<u8> {
        [ANSWER_CONTEXT, probe].concat()
    }

    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let (header, rest) = bytes.split_at_mut(PROTOCOL.len() + 1);
        let (nonce, signature) = rest.split_at_mut(self.nonce.len());
        header[..PROTOCOL.len()].copy_from_slice(PROTOCOL);
        header[PROTOCOL.len()] = KIND_ANSWER;
        nonce.copy_from_slice(&self.nonce);
        signature.copy_from_slice(self.signature.as_bytes());
        bytes
    }

    /// From bytes. The signature is not verified.
    ///
    /// # Errors
    ///
    /// When they are not exactly one answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        const WHAT: &str = "answer to a probe";
        if bytes.len() != Self::LENGTH {
            return Err(WireError::Length(WHAT));
        }
        let mut rest = bytes;
        take_header(&mut rest, KIND_ANSWER, WHAT)?;
        Ok(Self {
            nonce: take(&mut rest, WHAT)?,
            signature: KeySignature::from_bytes(take(&mut rest, WHAT)?),
        })
    }
}

fn take_header(bytes: &mut &[u8], kind: u8, what: &'static str) -> Result<(), WireError> {
    for (expected, field) in PROTOCOL
        .iter()
        .zip(std::iter::repeat("protocol of a probe"))
        .chain([(&kind, "kind of a probe")])
    {
        let [value] = take(bytes, what)?;
        if value != *expected {
            return Err(WireError::Undefined { field, value });
        }
    }
    Ok(())
}

fn take_address(bytes: &mut &[u8]) -> Result<SocketAddr, WireError> {
    const WHAT: &str = "address of a probe";
    let [family] = take(bytes, WHAT)?;
    let octets: [u8; ADDRESS] = take(bytes, WHAT)?;
    let port = u16::from_be_bytes(take(bytes, WHAT)?);
    let ip = match family {
        FAMILY_4 => {
            let [a, b, c, d, rest @ ..] = octets;
            nothing(&rest, WHAT)?;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        FAMILY_6 => IpAddr::V6(Ipv6Addr::from(octets)),
        value => {
            return Err(WireError::Undefined {
                field: "address family of a probe",
                value,
            });
        }
    };
    Ok(SocketAddr::new(ip, port))
}

fn take<const N: usize>(bytes: &mut &[u8], what: &'static str) -> Result<[u8; N], WireError> {
    let (field, rest) = bytes.split_first_chunk().ok_or(WireError::Length(what))?;
    *bytes = rest;
    Ok(*field)
}

/// There is one way to write each probe: what has no meaning is zero.
fn nothing(bytes: &[u8], field: &'static str) -> Result<(), WireError> {
    match bytes.iter().find(|byte| **byte != 0) {
        Some(&value) => Err(WireError::Undefined { field, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn probe() -> impl Strategy<Value = Probe> {
        let bytes = any::<[u8; 32]>;
        (bytes(), bytes(), bytes(), any::<SocketAddr>(), any::<u64>()).prop_map(
            |(nonce, from, to, address, sent_at)| Probe {
                nonce,
                from: PublicKey::from_bytes(from),
                to: PublicKey::from_bytes(to),
                // Scope and flow label are this host's business.
                address: SocketAddr::new(address.ip(), address.port()),
                sent_at,
            },
        )
    }

    fn signature() -> impl Strategy<Value = KeySignature> {
        any::<([u8; 32], [u8; 32])>().prop_map(|halves| {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&halves.0);
            bytes[32..].copy_from_slice(&halves.1);
            KeySignature::from_bytes(bytes)
        })
    }

    proptest! {
        #[test]
        fn a_probe_is_read_back(probe in probe(), signature in signature()) {
            let bytes = probe.encode(&signature);
            prop_assert_eq!(Probe::decode(&bytes), Ok((probe, signature)));
            prop_assert!(ProbeAnswer::decode(&bytes).is_err());
        }

        #[test]
        fn an_answer_is_read_back(nonce: [u8; 32], signature in signature()) {
            let answer = ProbeAnswer { nonce, signature };
            prop_assert_eq!(ProbeAnswer::decode(&answer.encode()), Ok(answer));
            prop_assert!(Probe::decode(&answer.encode()).is_err());
        }

        #[test]
        fn every_byte_of_a_probe_is_signed_for_in_its_answer(
            probe in probe(), signature in signature(), at in 0..Probe::LENGTH, flip in 1..=u8::MAX,
        ) {
            let bytes = probe.encode(&signature);
            let mut other = bytes;
            other[at] ^= flip;
            prop_assert_ne!(ProbeAnswer::to_sign(&bytes), ProbeAnswer::to_sign(&other));
            // And of what its asker signs, each byte that means something.
            if let Ok((other, _)) = Probe::decode(&other) && at < SIGNED {
                prop_assert_ne!(probe.to_sign(), other.to_sign());
            }
        }

        #[test]
        fn nothing_shorter_or_longer_is_one(
            probe in probe(), signature in signature(), cut in 0..Probe::LENGTH,
        ) {
            let bytes = probe.encode(&signature);
            prop_assert!(Probe::decode(&bytes[..cut]).is_err());
            prop_assert!(Probe::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn no_bytes_make_reading_panic(mut bytes: Vec<u8>) {
            let _ = (Probe::decode(&bytes), ProbeAnswer::decode(&bytes));
            for length in [Probe::LENGTH, ProbeAnswer::LENGTH] {
                bytes.resize(length, 0);
                let _ = (Probe::decode(&bytes), ProbeAnswer::decode(&bytes));
            }
        }
    }

    #[test]
    fn an_answer_is_shorter_than_its_probe() {
        const { assert!(ProbeAnswer::LENGTH < Probe::LENGTH) };
    }

    #[test]
    fn what_means_nothing_is_zero() {
        let probe = Probe {
            nonce: [1; 32],
            from: PublicKey::from_bytes([2; 32]),
            to: PublicKey::from_bytes([3; 32]),
            address: SocketAddr::from(([10, 0, 0, 1], 20010)),
            sent_at: 4,
        };
        let bytes = probe.encode(&KeySignature::from_bytes([5; 64]));
        for odd in [13, 24, SIGNED - 1] {
            let mut bytes = bytes;
            bytes[odd] = 1;
            assert!(Probe::decode(&bytes).is_err(), "byte {odd}");
        }
    }
}
