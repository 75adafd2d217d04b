//! Keys and signatures as text: standard base64 with padding (RFC 4648, section 4), one text
//! for each value.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The public half of an agent's key (Ed25519, RFC 8032): who a peer is. Nothing secret.
///
/// Its text is 44 characters of base64, as `WireGuard` shows keys. Whether the bytes are a
/// point of the curve is for whoever verifies with it to find out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// A signature (Ed25519), not verified. Its text is 88 characters of base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySignature([u8; 64]);

/// A text that is no key or no signature. The text itself is not repeated: who pastes a key
/// into the wrong place may have pasted the private one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBase64 {
    what: &'static str,
    characters: usize,
    bytes: usize,
}

impl fmt::Display for NotBase64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            characters,
            bytes,
        } = self;
        write!(
            f,
            "is not {what}; write its {bytes} bytes as {characters} characters of standard \
             base64, with padding"
        )
    }
}

impl std::error::Error for NotBase64 {}

impl PublicKey {
    /// How long its text is.
    pub const TEXT_LENGTH: usize = 44;

    /// The key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl KeySignature {
    /// How long its text is.
    pub const TEXT_LENGTH: usize = 88;

    /// The signature with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

fn decode<const BYTES: usize>(
    text: &str,
    characters: usize,
    what: &'static str,
) -> Result<[u8; BYTES], NotBase64> {
    let refused = NotBase64 {
        what,
        characters,
        bytes: BYTES,
    };
    // Looked at first: a text of a megabyte is not decoded.
    if text.len() != characters {
        return Err(refused);
    }
    let bytes = STANDARD.decode(text).map_err(|_| refused)?;
    bytes.try_into().map_err(|_| refused)
}

impl FromStr for PublicKey {
    type Err = NotBase64;

    fn from_str(text: &str) -> Result<Self, NotBase64> {
        decode(text, Self::TEXT_LENGTH, "a public key").map(Self)
    }
}

impl FromStr for KeySignature {
    type Err = NotBase64;

    fn from_str(text: &str) -> Result<Self, NotBase64> {
        decode(text, Self::TEXT_LENGTH, "a signature").map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Display for KeySignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for KeySignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySignature({self})")
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for KeySignature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for KeySignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn key_prints_as_base64_with_padding() {
        let key = PublicKey::from_bytes([0; 32]);
        assert_eq!(key.to_string(), ZERO);
        assert_eq!(format!("{key:?}"), format!("PublicKey({ZERO})"));
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("{ZERO:?}"));
    }

    #[test]
    fn each_key_has_one_text() {
        let unpadded = &ZERO[..43];
        let spare_bits = format!("{}B=", &ZERO[..42]);
        let url_alphabet = format!("_{}", &ZERO[1..]);
        let spaced = format!("{} ", &ZERO[..43]);
        for text in ["", unpadded, &spare_bits, &url_alphabet, &spaced] {
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn refusal_says_what_to_write_and_does_not_repeat_the_text() {
        let error = "hunter2".parse::<PublicKey>().unwrap_err().to_string();
        assert_eq!(
            error,
            "is not a public key; write its 32 bytes as 44 characters of standard base64, with \
             padding"
        );
    }

    proptest! {
        #[test]
        fn key_survives_its_text(bytes in any::<[u8; 32]>()) {
            let key = PublicKey::from_bytes(bytes);
            prop_assert_eq!(key.to_string().len(), PublicKey::TEXT_LENGTH);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn signature_survives_its_text(
            halves in (any::<[u8; 32]>(), any::<[u8; 32]>())
        ) {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&halves.0);
            bytes[32..].copy_from_slice(&halves.1);
            let signature = KeySignature::from_bytes(bytes);
            prop_assert_eq!(signature.to_string().len(), KeySignature::TEXT_LENGTH);
            prop_assert_eq!(signature.to_string().parse(), Ok(signature));
            let json = serde_json::to_string(&signature).unwrap();
            prop_assert_eq!(serde_json::from_str::<KeySignature>(&json).unwrap(), signature);
        }
    }
}
