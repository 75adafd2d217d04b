use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_sockets::STREAM_BUFFER;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;

const MIB: usize = 1 << 20;

/// A relayed connection, seen from its two ends.
struct Relayed {
    client: TcpStream,
    endpoint: TcpStream,
    pipes: Arc<PipePool>,
    relay: JoinHandle<(Result<(), Broken>, Arc<Moved>)>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn relayed() -> Relayed {
    relayed_with(2).await
}

#[expect(clippy::disallowed_methods, reason = "the test awaits the task itself")]
async fn relayed_with(most_pipes: usize) -> Relayed {
    let pipes = Arc::new(PipePool::new(most_pipes));
    let lent = Arc::clone(&pipes);
    let (client, client_side) = pair().await;
    let (endpoint, endpoint_side) = pair().await;
    let relay = tokio::spawn(async move {
        let moved = Arc::new(Moved::default());
        let ended = relay(
            ResetOnDrop::new(client_side),
            ResetOnDrop::new(endpoint_side),
            &lent,
            &moved,
            &Counters::default(),
        )
        .await;
        (ended, moved)
    });
    Relayed {
        client,
        endpoint,
        pipes,
        relay,
    }
}

const PERIOD: usize = 251;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % PERIOD) as u8).collect()
}

#[tokio::test]
async fn a_request_that_ends_its_stream_still_gets_its_whole_answer() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
        ..
    } = relayed().await;
    let answer = pattern(10 * MIB);
    let (_, got) = tokio::join!(
        async {
            let mut request = Vec::new();
            endpoint.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"everything, please");
            endpoint.write_all(&answer).await.unwrap();
            drop(endpoint);
        },
        async {
            client.write_all(b"everything, please").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    assert!(got == answer);
    let (ended, moved) = relay.await.unwrap();
    ended.unwrap();
    assert_eq!(
        (moved.up(), moved.down()),
        (18, u64::try_from(answer.len()).unwrap())
    );
}

#[tokio::test]
async fn an_endpoint_that_ends_its_stream_can_still_be_written_to() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
        ..
    } = relayed().await;
    endpoint.write_all(b"hello").await.unwrap();
    endpoint.shutdown().await.unwrap();
    let mut greeting = Vec::new();
    client.read_to_end(&mut greeting).await.unwrap();
    assert_eq!(greeting, b"hello");

    let data = pattern(3 * MIB);
    let (got, ()) = tokio::join!(
        async {
            let mut got = Vec::new();
            endpoint.read_to_end(&mut got).await.unwrap();
            got
        },
        async {
            client.write_all(&data).await.unwrap();
            client.shutdown().await.unwrap();
        }
    );
    assert!(got == data);
    relay.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn a_reset_passes_as_a_reset_in_both_directions() {
    for by_client in [true, false] {
        let Relayed {
            mut client,
            mut endpoint,
            relay,
            ..
        } = relayed().await;
        client.write_all(b"x").await.unwrap();
        endpoint.read_exact(&mut [0]).await.unwrap();
        let (breaker, mut other, side) = if by_client {
            (client, endpoint, Side::Client)
        } else {
            (endpoint, client, Side::Endpoint)
        };
        drop(ResetOnDrop::new(breaker));
        let error = other.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let broken = relay.await.unwrap().0.unwrap_err();
        assert_eq!(broken.side, side);
    }
}

#[tokio::test]
async fn a_reset_passes_at_once_while_the_other_side_does_not_read() {
    let Relayed {
        client,
        endpoint,
        pipes,
        relay,
        ..
    } = relayed().await;
    // Until nothing more fits into the client's path: the relay holds a full buffer then.
    fill(&endpoint).await;
    drop(ResetOnDrop::new(endpoint));
    let broken = relay.await.unwrap().0.unwrap_err();
    assert_eq!(broken.side, Side::Endpoint);
    assert_eq!(
        pipes.open(),
        0,
        "a pipe with data of this connection in it was kept"
    );
    drop(client);
}

#[tokio::test]
async fn a_reset_passes_after_that_side_has_ended_its_stream() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
        ..
    } = relayed().await;
    client.shutdown().await.unwrap();
    assert_eq!(endpoint.read(&mut [0]).await.unwrap(), 0);
    drop(ResetOnDrop::new(client));
    let error = endpoint
        .ready(Interest::ERROR)
        .await
        .map(|_| endpoint.take_error());
    assert!(error.unwrap().unwrap().is_some());
    assert_eq!(relay.await.unwrap().0.unwrap_err().side, Side::Client);
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer() {
    let Relayed {
        mut client,
        endpoint,
        relay,
        ..
    } = relayed().await;
    let sent = fill(&endpoint).await;
    // All that was sent is in sockets and one buffer; it comes out whole once it is read.
    let expected = pattern(sent);
    let mut got = vec![0; sent];
    client.read_exact(&mut got).await.unwrap();
    assert!(got == expected);
    drop((client, endpoint));
    let _ = relay.await.unwrap();
}

/// Sends `len` bytes of the pattern both ways at once, and checks every one of them.
async fn exchange(relayed: Relayed, len: usize) {
    let Relayed {
        client,
        endpoint,
        pipes,
        relay,
    } = relayed;
    let block = pattern(PERIOD * 1024);
    let send = async |mut half: OwnedWriteHalf| {
        let mut left = len;
        while left > 0 {
            let n = left.min(block.len());
            half.write_all(&block[..n]).await.unwrap();
            left -= n;
        }
    };
    let receive = async |mut half: OwnedReadHalf| {
        let mut got = vec![0; block.len()];
        let mut all = 0;
        loop {
            let n = half
                .read(&mut got[..block.len() - all % PERIOD])
                .await
                .unwrap();
            if n == 0 {
                break all;
            }
            assert!(got[..n] == block[all % PERIOD..][..n], "after {all} bytes");
            all += n;
        }
    };
    let (client_reads, client_writes) = client.into_split();
    let (endpoint_reads, endpoint_writes) = endpoint.into_split();
    let ((), (), down, up) = tokio::join!(
        send(client_writes),
        send(endpoint_writes),
        receive(client_reads),
        receive(endpoint_reads),
    );
    assert_eq!((down, up), (len, len));
    let (ended, moved) = relay.await.unwrap();
    ended.unwrap();
    let len = u64::try_from(len).unwrap();
    assert_eq!((moved.up(), moved.down()), (len, len));
    // Each pipe that was opened is there to be lent again.
    let again: Vec<_> = (0..pipes.open()).map(|_| pipes.lend()).collect();
    assert!(again.iter().all(Option::is_some));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gib_passes_whole_in_both_directions_at_once_through_pipes() {
    let relayed = relayed().await;
    let pipes = Arc::clone(&relayed.pipes);
    exchange(relayed, 512 * MIB + 12_345).await;
    assert!(pipes.open() > 0, "nothing was spliced");
}

#[tokio::test]
async fn without_a_pipe_to_lend_bytes_are_copied() {
    for most_pipes in [0, 1] {
        exchange(relayed_with(most_pipes).await, 32 * MIB + 1).await;
    }
}

#[tokio::test]
async fn an_idle_connection_holds_no_pipe_though_it_was_a_bulk_transfer() {
    let Relayed {
        mut client,
        mut endpoint,
        pipes,
        relay,
    } = relayed().await;
    let data = pattern(8 * MIB);
    let mut got = vec![0; data.len()];
    let (sent, received) = tokio::join!(client.write_all(&data), endpoint.read_exact(&mut got));
    sent.and(received.map(drop)).unwrap();
    endpoint.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    let none_is_lent = async {
        while (0..2).map_while(|_| pipes.lend()).collect::<Vec<_>>().len() < 2 {
            yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), none_is_lent)
        .await
        .unwrap();
    drop((client, endpoint));
    let _ = relay.await.unwrap();
}

#[tokio::test]
async fn a_few_bytes_open_no_pipe() {
    let Relayed {
        mut client,
        mut endpoint,
        pipes,
        relay,
    } = relayed().await;
    for _ in 0..100 {
        client.write_all(&[1; 1000]).await.unwrap();
        endpoint.read_exact(&mut [0; 1000]).await.unwrap();
        endpoint.write_all(&[1; 1000]).await.unwrap();
        client.read_exact(&mut [0; 1000]).await.unwrap();
    }
    assert_eq!(pipes.open(), 0);
    drop((client, endpoint));
    relay.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_sides() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
        ..
    } = relayed().await;
    client.write_all(b"x").await.unwrap();
    endpoint.read_exact(&mut [0]).await.unwrap();
    relay.abort();
    for stream in [&mut client, &mut endpoint] {
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn an_idle_relay_takes_less_than_four_kib() {
    let (_client, client_side) = pair().await;
    let (_endpoint, endpoint_side) = pair().await;
    let pipes = PipePool::new(1);
    let moved = Moved::default();
    let counters = Counters::default();
    let relay = relay(
        ResetOnDrop::new(client_side),
        ResetOnDrop::new(endpoint_side),
        &pipes,
        &moved,
        &counters,
    );
    let size = size_of_val(&relay);
    println!("state of one relay: {size} bytes; buffer while data moves: {STREAM_BUFFER} bytes");
    assert!(size < 4096);
}

/// Writes the pattern until nobody takes more, and returns how much that was.
async fn fill(stream: &TcpStream) -> usize {
    let block = pattern(PERIOD * 1000);
    let mut sent = 0;
    while let Ok(ready) = timeout(Duration::from_millis(300), stream.writable()).await {
        ready.unwrap();
        match stream.try_write(&block[sent % PERIOD..]) {
            Ok(n) => sent += n,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 256 * MIB, "nothing bounds what is buffered");
    }
    sent
}
