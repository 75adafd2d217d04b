//! Bytes as records of TLS 1.3 (RFC 8446 section 5.2), sealed and opened where they lie.
//!
//! rustls shakes hands; afterwards it hands over the keys, as it does for a kernel that does
//! this part. It would copy every byte twice on its way, in buffers of its own, and know no
//! two halves that work side by side. The cipher is ring's, which rustls uses as well; that
//! rustls reads what is written here, and the other way round, is a test.

use std::fmt;
use std::ops::Range;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce,
    UnboundKey,
};
use tokio_rustls::rustls::ConnectionTrafficSecrets;

/// Bytes before the ciphertext: type, version, length.
pub(super) const HEADER: usize = 5;
/// Bytes after it: the true type, and the tag.
const TRAILER: usize = 1 + 16;
/// Bytes that a record is longer than what it carries.
pub(super) const OVERHEAD: usize = HEADER + TRAILER;
/// Most bytes that a record carries (RFC 8446 section 5.1).
pub(super) const MOST: usize = 1 << 14;
/// Longest record that may come: padding is allowed (RFC 8446 section 5.2).
pub(super) const LONGEST: usize = HEADER + MOST + 256;

/// Type of what is encrypted, to be seen by all.
const APPLICATION_DATA: u8 = 23;
/// TLS 1.2, which TLS 1.3 calls itself in each record.
const VERSION: [u8; 2] = [3, 3];
/// Records under one key, below the limit of AES-GCM (RFC 8446 section 5.5: 2^24.5 full ones).
/// A lane that comes this far is given up in order, after 256 GiB, so no key is ever updated.
const MOST_RECORDS: u64 = 1 << 24;

/// Why a record is none that the other end has sealed, or none that belongs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordFault {
    /// Its header is none of TLS with encrypted content.
    #[error("a record of TLS without encryption, or none at all")]
    Header,
    /// It is longer than allowed.
    #[error("a record of TLS that is longer than allowed")]
    TooLong,
    /// Nobody who knows the key has made it, or not for this place.
    #[error("a record that was not sealed by the peer, or is out of its place")]
    Forged,
    /// It carries an alert or part of a handshake.
    #[error("a record that carries no data")]
    NoData,
    /// The key was used as often as it may be.
    #[error("more records than one key is good for")]
    WornOut,
    /// Keys of a cipher that is not offered.
    #[error("a cipher that was not offered")]
    Cipher,
}

/// The key of one direction.
struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Number of the next record.
    next: u64,
}

/// Seals what one end sends.
#[derive(Debug)]
pub(super) struct Sealer(Key);

/// Opens what the other end has sealed.
#[derive(Debug)]
pub(super) struct Opener(Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// `next` is how many records were sealed with it already.
    fn new((next, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordFault> {
        let (algorithm, key, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordFault::Cipher),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordFault::Cipher)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| RecordFault::Cipher)?,
            next,
        })
    }

    /// For the next record, and never again (RFC 8446 section 5.3).
    fn nonce(&mut self) -> Result<Nonce, RecordFault> {
        if self.next >= MOST_RECORDS {
            return Err(RecordFault::WornOut);
        }
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.next += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

impl Sealer {
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordFault> {
        Key::new(secrets).map(Self)
    }

    /// Whether so many more records may be sealed.
    pub(super) fn is_good_for(&self, records: u64) -> bool {
        self.0.next + records <= MOST_RECORDS
    }

    /// Appends `plain`, at most [`MOST`] bytes, to `to` as a record.
    pub(super) fn seal(&mut self, plain: &[u8], to: &mut Vec<u8>) -> Result<(), RecordFault> {
        let length = match u16::try_from(plain.len() + TRAILER) {
            Ok(length) if plain.len() <= MOST => length.to_be_bytes(),
            Ok(_) | Err(_) => return Err(RecordFault::TooLong),
        };
        let nonce = self.0.nonce()?;
        let [major, minor] = VERSION;
        let header = [APPLICATION_DATA, major, minor, length[0], length[1]];
        to.extend_from_slice(&header);
        let from = to.len();
        to.extend_from_slice(plain);
        to.push(APPLICATION_DATA);
        let sealed = self.0.key.seal_in_place_separate_tag(
            nonce,
            Aad::from(header),
            to.get_mut(from..).unwrap_or_default(),
        );
        // It fails for lengths only that no record has.
        let tag = sealed.map_err(|_| RecordFault::TooLong)?;
        to.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

impl Opener {
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordFault> {
        Key::new(secrets).map(Self)
    }

    /// Opens a whole record where it lies; tells where in it the plain bytes are.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<Range<usize>, RecordFault> {
        let Some((header, body)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(RecordFault::Header);
        };
        let nonce = self.0.nonce()?;
        let aad = Aad::from(*header);
        let inner = match self.0.key.open_in_place(nonce, aad, body) {
            Ok(inner) => &*inner,
            Err(_) => return Err(RecordFault::Forged),
        };
        // Padding is zeros after the type, and what has only those has no type.
        match inner.iter().rposition(|byte| *byte != 0) {
            Some(at) if inner[at] == APPLICATION_DATA => Ok(HEADER..HEADER + at),
            Some(_) | None => Err(RecordFault::NoData),
        }
    }
}

/// How long the record is that begins with `bytes`, once its header is there.
pub(super) fn record_length(bytes: &[u8]) -> Result<Option<usize>, RecordFault> {
    let Some([kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    if [*kind, *major] != [APPLICATION_DATA, VERSION[0]] {
        return Err(RecordFault::Header);
    }
    let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
    if length > LONGEST {
        return Err(RecordFault::TooLong);
    }
    Ok(Some(length))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
