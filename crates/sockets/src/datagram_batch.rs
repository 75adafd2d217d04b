//! Many datagrams taken from a socket before any is sent on.

use std::cell::RefCell;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::sockopt::UdpGroSegment;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, recvmsg, setsockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::datagram_run::DatagramRun;

/// Room for the largest datagram of either family, or for as many as the kernel joins.
const LARGEST: usize = 64 * 1024;
/// Room of a batch: some of the largest, or very many of the usual size.
const ROOM: usize = 4 * LARGEST;
/// Times that a socket is read from before others get their turn.
const READS: usize = 64;

thread_local! {
    static BATCH: RefCell<Option<Box<DatagramBatch>>> = const { RefCell::new(None) };
}

/// Datagrams as they came, with the addresses that they came from.
#[derive(Debug)]
pub struct DatagramBatch {
    room: Box<[u8]>,
    used: usize,
    pieces: Vec<Piece>,
    control: Vec<u8>,
}

/// What one read brought: one datagram, or several of the same sender that the kernel joined.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: Option<SocketAddr>,
    start: usize,
    len: usize,
    /// Size of each but the last.
    segment: usize,
}

/// Lets the kernel join datagrams of one sender that come together (UDP generic receive offload,
/// Linux 5.0, `UDP_GRO` in udp(7)). For sockets that are only read from by a [`DatagramBatch`],
/// which takes them apart. Without effect where the kernel can't.
pub fn join_datagrams(socket: &UdpSocket) {
    let _ = setsockopt(socket, UdpGroSegment, &true);
}

impl DatagramBatch {
    /// Runs `job` with an empty batch, which the thread keeps for the next time.
    pub fn with<T>(job: impl FnOnce(&mut Self) -> T) -> T {
        let kept = BATCH.with_borrow_mut(Option::take);
        let mut batch = kept.unwrap_or_else(|| Box::new(Self::new()));
        let done = job(&mut batch);
        batch.used = 0;
        batch.pieces.clear();
        BATCH.with_borrow_mut(|kept| *kept = Some(batch));
        done
    }

    fn new() -> Self {
        Self {
            room: vec![0; ROOM].into(),
            used: 0,
            pieces: Vec::with_capacity(READS),
            control: nix::cmsg_space!(i32),
        }
    }

    /// Takes what a socket has, as much as there is room for.
    ///
    /// # Errors
    ///
    /// What kept it from taking more: `WouldBlock` when there is no more; else what the kernel
    /// tells of an earlier datagram that was sent. What came before it is in the batch.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        while self.pieces.len() < READS && self.used + LARGEST <= ROOM {
            // One interest at a time: tokio's `try_io` knows no two at once.
            let mut read = |interest| socket.try_io(interest, || self.read(socket));
            let piece = match read(Interest::READABLE) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => read(Interest::ERROR),
                read => read,
            }?;
            self.used += piece.len;
            self.pieces.push(piece);
        }
        Ok(())
    }

    fn read(&mut self, socket: &UdpSocket) -> io::Result<Piece> {
        let start = self.used;
        let mut room = [IoSliceMut::new(&mut self.room[start..start + LARGEST])];
        let received: RecvMsg<'_, '_, SockaddrStorage> = recvmsg(
            socket.as_fd().as_raw_fd(),
            &mut room,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let len = received.bytes;
        let joined = received.cmsgs().ok().and_then(|mut told| {
            told.find_map(|told| match told {
                ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
                _ => None,
            })
        });
        Ok(Piece {
            from: received.address.as_ref().and_then(to_std),
            start,
            len,
            segment: joined
                .filter(|size| 0 < *size && *size < len)
                .unwrap_or(len),
        })
    }

    /// Hands all out, those of one sender in their order and together.
    pub fn runs(&mut self, mut take: impl FnMut(Option<SocketAddr>, &DatagramRun<'_>)) {
        self.pieces
            .sort_unstable_by_key(|piece| (piece.from, piece.start));
        let mut rest = self.pieces.iter().peekable();
        while let Some(first) = rest.peek() {
            let from = first.from;
            let mut run = DatagramRun::new();
            while let Some(piece) = rest.next_if(|piece| {
                let bytes = &self.room[piece.start..piece.start + piece.len];
                piece.from == from && run.take(bytes, piece.segment)
            }) {
                debug_assert_eq!(piece.from, from);
            }
            take(from, &run);
        }
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|v6| SocketAddr::V6((*v6).into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datagram_run::SegmentLimit;

    async fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    /// Receives until `many` have come, run by run: sender, then sizes.
    async fn receive(socket: &UdpSocket, many: usize) -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
        let mut all: Vec<(SocketAddr, Vec<Vec<u8>>)> = Vec::new();
        while all.iter().map(|(_, run)| run.len()).sum::<usize>() < many {
            socket.readable().await.unwrap();
            DatagramBatch::with(|batch| {
                let _ = batch.receive(socket);
                batch.runs(|from, run| {
                    all.push((from.unwrap(), run.datagrams().map(<[u8]>::to_vec).collect()));
                });
            });
        }
        all
    }

    #[tokio::test]
    async fn datagrams_of_every_size_keep_their_boundaries_and_their_order() {
        let (near, far) = (socket().await, socket().await);
        let sizes = [0, 1, 1200, 1200, 1200, 7, 0, 65_507, 1200, 4000];
        for (number, size) in sizes.into_iter().enumerate() {
            let datagram = vec![u8::try_from(number).unwrap(); size];
            near.send_to(&datagram, far.local_addr().unwrap())
                .await
                .unwrap();
        }
        let got: Vec<Vec<u8>> = receive(&far, sizes.len())
            .await
            .into_iter()
            .flat_map(|(_, run)| run)
            .collect();
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), sizes);
        for (number, datagram) in got.iter().enumerate() {
            assert!(datagram.iter().all(|byte| usize::from(*byte) == number));
        }
    }

    #[tokio::test]
    async fn senders_are_kept_apart() {
        let far = socket().await;
        let senders = [socket().await, socket().await];
        for number in 0..20_u8 {
            let sender = &senders[usize::from(number) % 2];
            sender
                .send_to(&[number; 100], far.local_addr().unwrap())
                .await
                .unwrap();
        }
        for sender in &senders {
            let address = sender.local_addr().unwrap();
            assert_ne!(address, far.local_addr().unwrap());
        }
        let got = receive(&far, 20).await;
        for (place, sender) in senders.iter().enumerate() {
            let address = sender.local_addr().unwrap();
            let numbers: Vec<u8> = got
                .iter()
                .filter(|(from, _)| *from == address)
                .flat_map(|(_, run)| run.iter().map(|datagram| datagram[0]))
                .collect();
            let expected: Vec<u8> = (0..20).filter(|n| usize::from(*n) % 2 == place).collect();
            assert_eq!(numbers, expected);
        }
    }

    #[tokio::test]
    async fn a_run_that_was_sent_as_one_arrives_as_many_joined_or_not() {
        for joins in [false, true] {
            let (near, middle, far) = (socket().await, socket().await, socket().await);
            if joins {
                join_datagrams(&far);
            }
            let sizes = [1000, 1000, 1000, 1000, 300];
            for size in sizes {
                near.send_to(&vec![1; size], middle.local_addr().unwrap())
                    .await
                    .unwrap();
            }
            // The runs of what came, sent on as one each.
            let limit = SegmentLimit::default();
            let mut passed_on = 0;
            while passed_on < sizes.len() {
                middle.readable().await.unwrap();
                DatagramBatch::with(|batch| {
                    let _ = batch.receive(&middle);
                    batch.runs(|_, run| {
                        passed_on += run.count();
                        let to = far.local_addr().unwrap();
                        match limit.send_now(&middle, run, Some(to)) {
                            Some(sent) => sent.unwrap(),
                            None => run.datagrams().for_each(|datagram| {
                                middle.try_send_to(datagram, to).unwrap();
                            }),
                        }
                    });
                });
            }
            let got: Vec<usize> = receive(&far, sizes.len())
                .await
                .iter()
                .flat_map(|(_, run)| run.iter().map(Vec::len))
                .collect();
            assert_eq!(got, sizes);
        }
    }
}
