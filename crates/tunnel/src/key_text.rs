//! A node's key as the text of a file.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edgemesh_catalog::{KeySignature, PreviousKey, PublicKey};

const HEAD: &str = "\
# The key by which the edgemesh agents of other nodes know this one.
# Keep it secret, and never copy it to another node. To replace it: edgemesh-agent rotate-key
";
const PRIVATE: &str = "private-key";
const PREVIOUS: &str = "previous-public-key";
const SIGNATURE: &str = "previous-key-signature";

/// What the file holds.
pub(crate) struct KeyText {
    pub(crate) secret: [u8; 32],
    pub(crate) previous: Option<PreviousKey>,
}

/// Why a file is no key. Says where, never what: the text may be a key after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKey {
    /// More bytes than any key has.
    #[error("it is longer than any key")]
    TooLong,
    /// Bytes that are no text.
    #[error("it is not text")]
    NotText,
    /// A line that isn't `name: value` with a name that is known, or comes again.
    #[error("line {line} is not one that such a file has")]
    StrangeLine {
        /// Which, from 1.
        line: usize,
    },
    /// A value that is not of its kind.
    #[error("the value in line {line} is cut or changed")]
    BadValue {
        /// Which line, from 1.
        line: usize,
    },
    /// A part is missing.
    #[error("there is no `{name}`")]
    Missing {
        /// Which.
        name: &'static str,
    },
    /// The old key's word is for another key.
    #[error("the previous key's signature is not for this key")]
    WrongStatement,
}

impl KeyText {
    pub(crate) fn print(&self) -> String {
        let mut text = format!("{HEAD}{PRIVATE}: {}\n", STANDARD.encode(self.secret));
        if let Some(previous) = &self.previous {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{PREVIOUS}: {}", previous.public_key);
            let _ = writeln!(text, "{SIGNATURE}: {}", previous.signature);
        }
        text
    }

    pub(crate) fn parse(text: &str) -> Result<Self, NotAKey> {
        let mut secret = None;
        let mut public_key: Option<PublicKey> = None;
        let mut signature: Option<KeySignature> = None;
        for (at, content) in text.lines().enumerate() {
            let line = at + 1;
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let bad = NotAKey::BadValue { line };
            let again = match content.split_once(": ") {
                Some((PRIVATE, value)) => secret.replace(bytes(value).ok_or(bad)?).is_some(),
                Some((PREVIOUS, value)) => public_key
                    .replace(value.parse().map_err(|_| bad)?)
                    .is_some(),
                Some((SIGNATURE, value)) => {
                    signature.replace(value.parse().map_err(|_| bad)?).is_some()
                }
                Some(_) | None => true,
            };
            if again {
                return Err(NotAKey::StrangeLine { line });
            }
        }
        let missing = |name| NotAKey::Missing { name };
        Ok(Self {
            secret: secret.ok_or(missing(PRIVATE))?,
            previous: match (public_key, signature) {
                (None, None) => None,
                (Some(public_key), Some(signature)) => Some(PreviousKey {
                    public_key,
                    signature,
                }),
                (Some(_), None) => return Err(missing(SIGNATURE)),
                (None, Some(_)) => return Err(missing(PREVIOUS)),
            },
        })
    }
}

fn bytes(value: &str) -> Option<[u8; 32]> {
    STANDARD.decode(value).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<[u8; 32], NotAKey> {
        KeyText::parse(text).map(|key| key.secret)
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_without_its_content() {
        let key = STANDARD.encode([7; 32]);
        let good = format!("private-key: {key}\n");
        assert_eq!(parsed(&good), Ok([7; 32]));
        assert_eq!(parsed(""), Err(NotAKey::Missing { name: PRIVATE }));
        assert_eq!(
            parsed(&format!("\n{good}{good}")),
            Err(NotAKey::StrangeLine { line: 3 })
        );
        assert_eq!(parsed(&key), Err(NotAKey::StrangeLine { line: 1 }));
        let cut = &good[..good.len() - 5];
        assert_eq!(parsed(cut), Err(NotAKey::BadValue { line: 1 }));
        let half = format!("{good}{PREVIOUS}: {key}\n");
        assert_eq!(parsed(&half), Err(NotAKey::Missing { name: SIGNATURE }));
    }

    proptest! {
        #[test]
        fn key_survives_its_text(secret in any::<[u8; 32]>(), old in any::<Option<[u8; 32]>>()) {
            let previous = old.map(|old| PreviousKey {
                public_key: PublicKey::from_bytes(old),
                signature: KeySignature::from_bytes([9; 64]),
            });
            let text = KeyText { secret, previous: previous.clone() }.print();
            let again = KeyText::parse(&text).unwrap();
            prop_assert_eq!(again.secret, secret);
            prop_assert_eq!(again.previous, previous);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = KeyText::parse(&text);
        }
    }
}
