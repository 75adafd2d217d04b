//! The form of the file, as text.
//!
//! ```text
//! edgemesh-catalog 2
//! {"saved_at":1700000000}
//! {"service":{...}}
//! {"slice":{...}}
//! {"node":{...}}
//! {"meshnode":{...}}
//! sha256 <64 hexadecimal digits over all bytes before this line>
//! ```
//!
//! One JSON value a line, so that it is written and read without ever being held
//! in memory, and can be looked at with ordinary tools. First and last line keep
//! their form in all versions to come: whether a file is whole is known before
//! its version counts. Version 1 had no `meshnode` and is read as well.

use std::io::{self, BufRead, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edgemesh_catalog::{Catalog, EndpointSlice, Fold, MeshNode, Node, Service};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LastGood;

/// The version that is written.
pub(super) const VERSION: u32 = 2;

/// The first version, which the later ones only added to.
const OLDEST: u32 = 1;

const MAGIC: &str = "edgemesh-catalog ";
const TRAILER: &str = "sha256 ";

/// Length of the last line with its newline.
const TRAILER_LEN: u64 = (TRAILER.len() + 64 + 1) as u64;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormatError {
    /// It is not what was once written.
    #[error("{0}")]
    Damaged(String),
    /// It is whole, and of a version that we do not know.
    #[error("it has version {0}")]
    UnknownVersion(u32),
    /// It could not be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// Seconds since the Unix epoch.
    saved_at: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum RecordRef<'a> {
    Service(&'a Service),
    Slice(&'a EndpointSlice),
    Node(&'a Node),
    MeshNode(&'a MeshNode),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Service(Service),
    Slice(EndpointSlice),
    Node(Node),
    MeshNode(MeshNode),
}

/// Writes a catalog.
pub(super) fn write(catalog: &Catalog, saved_at: SystemTime, to: impl Write) -> io::Result<()> {
    let mut to = Hashing {
        to,
        hash: Sha256::new(),
    };
    writeln!(to, "{MAGIC}{VERSION}")?;
    let since_epoch = saved_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    write_line(
        &mut to,
        &Header {
            saved_at: since_epoch.as_secs(),
        },
    )?;
    for service in catalog.services() {
        write_line(&mut to, &RecordRef::Service(service))?;
    }
    for slice in catalog.slices() {
        write_line(&mut to, &RecordRef::Slice(slice))?;
    }
    for node in catalog.nodes() {
        write_line(&mut to, &RecordRef::Node(node))?;
    }
    for mesh_node in catalog.mesh_nodes() {
        write_line(&mut to, &RecordRef::MeshNode(mesh_node))?;
    }
    let Hashing { mut to, hash } = to;
    writeln!(to, "{TRAILER}{}", hex(&hash.finalize()))?;
    to.flush()
}

/// Whether the `length` bytes of `from` are whole: exactly what was written.
pub(super) fn verify(mut from: impl Read, length: u64) -> Result<(), FormatError> {
    let Some(hashed) = length.checked_sub(TRAILER_LEN) else {
        return Err(FormatError::Damaged("it is too short".to_owned()));
    };
    let mut hash = Sha256::new();
    let mut left = hashed;
    let mut buffer = [0; 16 * 1024];
    while left > 0 {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(FormatError::Damaged("it ends early".to_owned()));
        }
        hash.update(&buffer[..read]);
        left -= read as u64;
    }
    let mut trailer = Vec::new();
    from.take(TRAILER_LEN + 1).read_to_end(&mut trailer)?;
    let wanted = format!("{TRAILER}{}\n", hex(&hash.finalize()));
    if trailer == wanted.as_bytes() {
        Ok(())
    } else {
        Err(FormatError::Damaged("its checksum does not match".into()))
    }
}

/// Reads a catalog from a file that was verified.
pub(super) fn read(from: impl BufRead) -> Result<LastGood, FormatError> {
    let mut lines = from.lines();
    let mut next = || -> Result<String, FormatError> {
        lines
            .next()
            .ok_or_else(|| FormatError::Damaged("it ends early".to_owned()))?
            .map_err(FormatError::Io)
    };
    let first = next()?;
    let version = first
        .strip_prefix(MAGIC)
        .and_then(|version| version.parse().ok())
        .ok_or_else(|| FormatError::Damaged("its first line is not ours".to_owned()))?;
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(FormatError::UnknownVersion(version));
    }
    let header: Header = parse(&next()?, 2)?;
    let mut fold = Fold::default();
    let mut number = 3;
    loop {
        let line = next()?;
        if line.starts_with(TRAILER) {
            return Ok(LastGood {
                catalog: fold.catalog(),
                saved_at: UNIX_EPOCH
                    .checked_add(Duration::from_secs(header.saved_at))
                    .unwrap_or(UNIX_EPOCH),
            });
        }
        fold.apply(parse::<Record>(&line, number)?.into());
        number += 1;
    }
}

impl From<Record> for edgemesh_catalog::Change {
    fn from(record: Record) -> Self {
        match record {
            Record::Service(service) => Self::Service(service),
            Record::Slice(slice) => Self::Slice(slice),
            Record::Node(node) => Self::Node(node),
            Record::MeshNode(mesh_node) => Self::MeshNode(mesh_node),
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(line: &str, number: usize) -> Result<T, FormatError> {
    serde_json::from_str(line)
        .map_err(|error| FormatError::Damaged(format!("its line {number} is not ours: {error}")))
}

fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value).map_err(io::Error::from)?;
    to.write_all(b"\n")
}

/// A content with the last line that makes it whole.
#[cfg(test)]
pub(super) fn sealed(content: &str) -> String {
    let hash = Sha256::digest(content.as_bytes());
    format!("{content}{TRAILER}{}\n", hex(&hash))
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0xf)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

struct Hashing<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
