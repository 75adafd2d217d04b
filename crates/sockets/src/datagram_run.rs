//! Runs of datagrams that the kernel takes as one (UDP generic segmentation offload: Linux 4.18,
//! `UDP_SEGMENT` in udp(7)): it goes through the network stack once, not once for each.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

/// Datagrams that the kernel takes as one at most (`UDP_MAX_SEGMENTS` in its older versions).
const MOST: usize = 64;
/// Bytes that it takes as one at most: what IPv4 lets a datagram have, of which there must be
/// one for a moment.
const MOST_BYTES: usize = 65_507;

/// Datagrams that may go as one: all are of the same size but the last, which may be shorter.
#[derive(Debug)]
pub struct DatagramRun<'a> {
    /// Each holds whole datagrams.
    pieces: [IoSlice<'a>; MOST],
    used: usize,
    shape: Shape,
}

/// What decides whether one piece more fits in. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    segment: usize,
    count: usize,
    bytes: usize,
    /// The last one is shorter than the others.
    closed: bool,
}

impl Shape {
    /// Takes in the datagrams of `bytes` bytes in all that are of `segment` bytes each but the
    /// last; false when they don't fit.
    fn take(&mut self, bytes: usize, segment: usize) -> bool {
        let count = bytes.div_ceil(segment.max(1)).max(1);
        if self.count == 0 {
            *self = Self {
                segment,
                count,
                bytes,
                closed: bytes == 0 || !bytes.is_multiple_of(segment),
            };
            return true;
        }
        let same = segment == self.segment || (count == 1 && bytes < self.segment);
        let fits = self.count + count <= MOST && self.bytes + bytes <= MOST_BYTES;
        if self.closed || bytes == 0 || !same || !fits {
            return false;
        }
        self.count += count;
        self.bytes += bytes;
        self.closed = !bytes.is_multiple_of(self.segment);
        true
    }
}

impl<'a> DatagramRun<'a> {
    /// A run of one.
    #[must_use]
    pub fn of(datagram: &'a [u8]) -> Self {
        let mut run = Self::new();
        // The first one always fits.
        let _ = run.take(datagram, datagram.len());
        run
    }

    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            pieces: [IoSlice::new(&[]); MOST],
            used: 0,
            shape: Shape::default(),
        }
    }

    /// Takes in a piece of whole datagrams, `segment` bytes each but the last; false when it
    /// does not fit.
    pub(crate) fn take(&mut self, piece: &'a [u8], segment: usize) -> bool {
        let taken = self.used < MOST && self.shape.take(piece.len(), segment);
        if taken {
            self.pieces[self.used] = IoSlice::new(piece);
            self.used += 1;
        }
        taken
    }

    /// How many datagrams they are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.count
    }

    /// How many bytes they are in all.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shape.bytes
    }

    /// One after the other.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let segment = self.shape.segment.max(1);
        self.pieces[..self.used].iter().flat_map(move |piece| {
            // No bytes are a datagram, too.
            let empty = piece.is_empty().then_some(&piece[..]);
            empty.into_iter().chain(piece.chunks(segment))
        })
    }
}

/// The largest size of datagrams that a socket sends as one, as far as is known: what is larger
/// than the path takes must be sent one by one, to be fragmented, and some paths take none.
#[derive(Debug)]
pub struct SegmentLimit(AtomicUsize);

impl Default for SegmentLimit {
    fn default() -> Self {
        Self(AtomicUsize::new(MOST_BYTES))
    }
}

impl SegmentLimit {
    /// Sends a run as one, now or not at all, to the address or to where the socket is
    /// connected to. None when its datagrams have to be sent one by one.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the socket's buffer is full; else the kernel's word on an earlier
    /// datagram.
    pub fn send_now(
        &self,
        socket: &impl AsFd,
        run: &DatagramRun<'_>,
        to: Option<SocketAddr>,
    ) -> Option<io::Result<()>> {
        let segment = run.shape.segment;
        if run.count() < 2 || segment > self.0.load(Ordering::Relaxed) {
            return None;
        }
        let size = u16::try_from(segment).ok()?;
        let sent = sendmsg(
            socket.as_fd().as_raw_fd(),
            &run.pieces[..run.used],
            &[ControlMessage::UdpGsoSegments(&size)],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            to.map(SockaddrStorage::from).as_ref(),
        );
        match sent {
            Ok(_) => Some(Ok(())),
            // Larger than the path takes whole, or a kernel or device that does not split them.
            Err(Errno::EMSGSIZE | Errno::EINVAL | Errno::EIO | Errno::EOPNOTSUPP) => {
                self.0.store(segment - 1, Ordering::Relaxed);
                None
            }
            Err(error) => Some(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn those_of_one_size_and_a_shorter_last_one_go_as_one() {
        let data = [7; 100];
        let mut run = DatagramRun::new();
        assert!(run.take(&data[..30], 10));
        assert!(!run.take(&data[..11], 11));
        assert!(run.take(&data[..10], 10));
        assert!(!run.take(&[], 0));
        assert!(run.take(&data[..4], 4));
        assert!(!run.take(&data[..4], 4));
        let sizes: Vec<_> = run.datagrams().map(<[u8]>::len).collect();
        assert_eq!(sizes, [10, 10, 10, 10, 4]);
        assert_eq!((run.count(), run.bytes()), (5, 44));
    }

    #[test]
    fn an_empty_datagram_goes_alone() {
        let mut run = DatagramRun::new();
        assert!(run.take(&[], 0));
        assert!(!run.take(&[], 0));
        assert!(!run.take(&[1], 1));
        assert_eq!(run.datagrams().collect::<Vec<_>>(), [&[] as &[u8]]);
    }

    proptest! {
        #[test]
        fn what_a_run_gives_back_is_what_it_took(sizes in proptest::collection::vec(0_usize..3000, 1..200)) {
            let data = vec![0_u8; 3000];
            let mut run = DatagramRun::new();
            let taken: Vec<usize> = sizes
                .into_iter()
                .take_while(|size| run.take(&data[..*size], *size))
                .collect();
            let given: Vec<usize> = run.datagrams().map(<[u8]>::len).collect();
            prop_assert_eq!(&given, &taken);
            prop_assert_eq!(run.count(), taken.len());
            prop_assert!(run.bytes() <= MOST_BYTES && run.count() <= MOST);
            // What the kernel asks for: one size, and only the last may be shorter.
            if let Some((last, others)) = given.split_last() {
                prop_assert!(others.iter().all(|size| *size == given[0]) && *last <= given[0]);
            }
        }
    }
}
