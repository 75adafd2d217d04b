//! What has come on a stream, on its way to a socket: many packets' bytes by one call.
//!
//! The transport hands out what came in one packet as one chunk. Written each by itself, a
//! chunk would go on as a packet of its own, and every packet costs its way through the
//! kernel: bridges, netfilter, the acknowledgement. Written together, up to 64 KiB pass as one,
//! and the end of the stream with them, where it has come, too.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use edgemesh_sockets::send_last_pieces;
use iroh::endpoint::ReadError;
use tokio::net::TcpStream;

use crate::carry::{Broken, read_error};
use crate::course::Inbound;
use crate::inflow::Inflow;

/// Chunks of a run at most: as many full packets as the kernel passes on as one (64 KiB).
const MOST: usize = 48;

/// Takes `first`, and unless `is_last` all that has come behind it, and gives the socket what
/// it has room for. Returns how many bytes of the stream that was. It never waits.
///
/// `inbound` knows then whether the stream has ended with them. The socket's end is to follow as
/// soon as it has all of them: it keeps them back for that.
///
/// # Errors
///
/// When the socket or the stream is broken.
pub(crate) async fn take_run(
    tcp: &TcpStream,
    recv: &mut Inflow,
    inbound: &mut Inbound,
    first: Bytes,
    is_last: bool,
) -> Result<usize, Broken> {
    // Both at once, so that while it waits a connection holds no more than what is left.
    let begun = poll_fn(|cx| {
        let more = (!is_last).then_some(&mut *recv);
        Poll::Ready(begin(cx, tcp, more, &first))
    })
    .await?;
    inbound.take(begun.length, begun.rest);
    inbound.ended = begun.ended;
    Ok(begun.length)
}

/// A run that the socket was offered.
struct Begun {
    /// Bytes of all of it.
    length: usize,
    /// What the socket had no room for.
    rest: Vec<Bytes>,
    /// Whether it is the last of the stream.
    ended: bool,
}

fn begin(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    more: Option<&mut Inflow>,
    first: &Bytes,
) -> Result<Begun, Broken> {
    let mut run = [const { Bytes::new() }; MOST];
    run[0] = first.clone();
    let (mut count, mut ended) = (1, false);
    if let Some(recv) = more {
        while count < MOST
            && !ended
            && let Poll::Ready(read) = recv.poll_run(cx, &mut run[count..])
        {
            let read = read.map_err(Broken::Tunnel)?;
            count += read;
            ended = read == 0;
        }
    }
    let run = &mut run[..count];
    let length = run.iter().map(Bytes::len).sum();
    let write = if ended { write_last } else { write_now };
    let written = write(tcp, run).map_err(Broken::Socket)?;
    let rest = if written == length {
        Vec::new()
    } else {
        let mut rest: Vec<Bytes> = run.iter_mut().map(std::mem::take).collect();
        drop_front(&mut rest, written);
        rest
    };
    Ok(Begun {
        length,
        rest,
        ended,
    })
}

/// Gives the socket the rest of what was taken.
///
/// # Errors
///
/// When the socket or the stream is broken. The stream's reset does not wait for a socket that
/// takes nothing.
pub(crate) async fn pass_on_rest(
    tcp: &TcpStream,
    recv: &mut Inflow,
    inbound: &mut Inbound,
) -> Result<(), Broken> {
    let rest = &mut inbound.rest;
    let mut may_be_reset = true;
    while !rest.is_empty() {
        tokio::select! {
            biased;
            // The stream's reset must not wait for a reader that does not read.
            reset = recv.received_reset(), if may_be_reset => {
                match reset {
                    Ok(Some(code)) => return Err(read_error(ReadError::Reset(code))),
                    // It has come to its end.
                    Ok(None) => may_be_reset = false,
                    Err(error) => return Err(read_error(error.into())),
                }
                continue;
            }
            ready = tcp.writable() => ready.map_err(Broken::Socket)?,
        }
        let written = write_now(tcp, rest).map_err(Broken::Socket)?;
        drop_front(rest, written);
    }
    Ok(())
}

/// Writes what the socket takes now, of [`MOST`] chunks; tells how many bytes it took.
fn write_now(tcp: &TcpStream, chunks: &[Bytes]) -> io::Result<usize> {
    write(chunks, |slices| tcp.try_write_vectored(slices))
}

/// The same for those that the end of the stream follows at once.
fn write_last(tcp: &TcpStream, chunks: &[Bytes]) -> io::Result<usize> {
    write(chunks, |slices| send_last_pieces(tcp, slices))
}

fn write(
    chunks: &[Bytes],
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); MOST];
    for (slice, chunk) in slices.iter_mut().zip(chunks) {
        *slice = IoSlice::new(chunk);
    }
    match write(&slices[..chunks.len().min(MOST)]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// Drops the first `count` bytes.
fn drop_front(chunks: &mut Vec<Bytes>, mut count: usize) {
    let mut whole = 0;
    for chunk in &mut *chunks {
        if chunk.len() > count {
            chunk.advance(count);
            break;
        }
        count -= chunk.len();
        whole += 1;
    }
    chunks.drain(..whole);
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    fn chunks(lengths: &[usize]) -> Vec<Bytes> {
        let mut next = 0_u8;
        let mut chunk = |length: &usize| {
            let bytes: Vec<u8> = (0..*length)
                .map(|_| {
                    next = next.wrapping_add(1);
                    next
                })
                .collect();
            Bytes::from(bytes)
        };
        lengths.iter().map(&mut chunk).collect()
    }

    #[test]
    fn what_was_written_is_dropped_across_chunks_and_within_one() {
        let all = chunks(&[3, 1, 5]).concat();
        for count in 0..=all.len() {
            let mut rest = chunks(&[3, 1, 5]);
            drop_front(&mut rest, count);
            assert_eq!(rest.concat(), all[count..], "{count}");
            assert!(rest.iter().all(|chunk| !chunk.is_empty()), "{count}");
        }
    }

    #[tokio::test]
    async fn more_chunks_than_one_call_takes_arrive_whole_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let writer = TcpStream::connect(address).await.unwrap();
        let (mut reader, _) = listener.accept().await.unwrap();
        // More than the socket has room for, in more chunks than one call takes.
        let mut rest = chunks(&[20_011; 10 * MOST]);
        let all = rest.concat();
        let write = async {
            while !rest.is_empty() {
                writer.writable().await.unwrap();
                let written = write_now(&writer, &rest).unwrap();
                drop_front(&mut rest, written);
            }
            drop(writer);
        };
        let mut read = Vec::new();
        let ((), count) = tokio::join!(write, reader.read_to_end(&mut read));
        count.unwrap();
        assert!(read == all);
    }
}
