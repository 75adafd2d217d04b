//! Bytes that follow from a seed, so that whoever gets them knows the first wrong one; and
//! the server that sends and checks them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, bail};

use crate::splitmix::SplitMix;

/// An endless stream of bytes.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    random: SplitMix,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: SplitMix::new(seed),
            word: [0; 8],
            used: 8,
        }
    }

    /// The first `length` bytes that follow from a seed.
    pub(super) fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Self::new(seed).fill(&mut bytes);
        bytes
    }

    pub(super) fn fill(&mut self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            if self.used == self.word.len() {
                self.word = self.random.next().to_le_bytes();
                self.used = 0;
            }
            let rest = &self.word[self.used..];
            let length = rest.len().min(buffer.len());
            let (now, later) = buffer.split_at_mut(length);
            now.copy_from_slice(&rest[..length]);
            buffer = later;
            self.used += length;
        }
    }

    /// Sends the next `length` bytes.
    pub(super) fn send(&mut self, to: &mut impl Write, mut length: u64) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        while length > 0 {
            let now = usize::try_from(length).map_or(buffer.len(), |rest| rest.min(buffer.len()));
            self.fill(&mut buffer[..now]);
            to.write_all(&buffer[..now])?;
            length -= u64::try_from(now).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Reads to the end, which shall come after exactly `length` right bytes.
    ///
    /// # Errors
    ///
    /// When the connection breaks, and for the first byte that is wrong, missing or too much.
    pub(super) fn check_whole(&mut self, from: &mut impl Read, length: u64) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let mut expected = buffer.clone();
        let mut place: u64 = 0;
        loop {
            let got = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) => bail!("after {place} of {length} right bytes: {error}"),
            };
            self.fill(&mut expected[..got]);
            let is_wrong = |(got, expected): (&u8, &u8)| got != expected;
            if buffer[..got] != expected[..got] {
                let wrong = buffer.iter().zip(&expected).position(is_wrong);
                let wrong = u64::try_from(wrong.unwrap_or_default())?;
                bail!("byte {} of {length} is wrong", place + wrong);
            }
            place += u64::try_from(got)?;
            if place > length {
                bail!("more than {length} bytes came");
            }
        }
        if place < length {
            bail!("the stream ended after {place} of {length} bytes");
        }
        Ok(())
    }
}

/// The first line of a connection to a pattern server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Once the client has ended its half, send so many bytes that follow from a seed.
    Send { seed: u64, bytes: u64 },
    /// Read to the end of the client's half, then say whether it was that.
    Take { seed: u64, bytes: u64 },
}

/// What the server says of bytes that came as they should.
pub(super) const INTACT: &str = "intact";

impl Task {
    pub(super) fn to_line(self) -> String {
        match self {
            Self::Send { seed, bytes } => format!("send {seed} {bytes}\n"),
            Self::Take { seed, bytes } => format!("take {seed} {bytes}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let verb = words.next()?;
        let seed = words.next()?.parse().ok()?;
        let bytes = words.next()?.parse().ok()?;
        match verb {
            "send" => Some(Self::Send { seed, bytes }),
            "take" => Some(Self::Take { seed, bytes }),
            _ => None,
        }
    }
}

/// The conversation of [`crate::Serve::Pattern`].
pub(crate) fn serve_pattern(mut stream: &TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match Task::parse(&line) {
        Some(Task::Send { seed, bytes }) => {
            let further = io::copy(&mut reader, &mut io::sink())?;
            if further > 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Pattern::new(seed).send(&mut stream, bytes)?;
        }
        Some(Task::Take { seed, bytes }) => {
            let verdict = match Pattern::new(seed).check_whole(&mut reader, bytes) {
                Ok(()) => INTACT.to_owned(),
                Err(error) => format!("{error:#}"),
            };
            stream.write_all(verdict.as_bytes())?;
        }
        None => return Err(io::ErrorKind::InvalidData.into()),
    }
    stream.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], length: u64) -> String {
        let outcome = Pattern::new(1).check_whole(&mut &*bytes, length);
        outcome.map_or_else(|error| error.to_string(), |()| INTACT.to_owned())
    }

    #[test]
    fn the_first_byte_that_is_wrong_missing_or_too_much_is_told() {
        let mut bytes = Pattern::bytes(1, 100_000);
        assert_eq!(check(&bytes, 100_000), INTACT);
        assert_eq!(check(&bytes, 99_999), "more than 99999 bytes came");
        assert_eq!(
            check(&bytes, 100_001),
            "the stream ended after 100000 of 100001 bytes"
        );
        bytes[70_001] ^= 1;
        assert_eq!(check(&bytes, 100_000), "byte 70001 of 100000 is wrong");
    }

    #[test]
    fn a_pattern_is_the_same_in_pieces_of_any_size() {
        let whole = Pattern::bytes(9, 1000);
        let mut pattern = Pattern::new(9);
        let mut pieces = Vec::new();
        for length in (0..44).map(|number| number * 7 % 45) {
            let mut piece = vec![0; length];
            pattern.fill(&mut piece);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole[..pieces.len()]);
    }

    #[test]
    fn a_task_is_read_as_it_was_written() {
        let task = Task::Take { seed: 1, bytes: 2 };
        assert_eq!(Task::parse(&task.to_line()), Some(task));
        assert_eq!(Task::parse("give 1 2"), None);
    }
}
