use std::io::ErrorKind;
use std::sync::Arc;

use edgemesh_sockets::STREAM_BUFFER;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const MIB: usize = 1 << 20;

/// A relayed connection, seen from its two ends.
struct Relayed {
    client: TcpStream,
    endpoint: TcpStream,
    relay: JoinHandle<(Result<(), Broken>, Arc<Moved>)>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    (near, listener.accept().await.unwrap().0)
}

#[expect(clippy::disallowed_methods, reason = "the test awaits the task itself")]
async fn relayed() -> Relayed {
    let (client, client_side) = pair().await;
    let (endpoint, endpoint_side) = pair().await;
    let relay = tokio::spawn(async move {
        let moved = Arc::new(Moved::default());
        let ended = relay(
            ResetOnDrop::new(client_side),
            ResetOnDrop::new(endpoint_side),
            &moved,
            &Counters::default(),
        )
        .await;
        (ended, moved)
    });
    Relayed {
        client,
        endpoint,
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
        relay,
    } = relayed().await;
    // Until nothing more fits into the client's path: the relay holds a full buffer then.
    fill(&endpoint).await;
    drop(ResetOnDrop::new(endpoint));
    let broken = relay.await.unwrap().0.unwrap_err();
    assert_eq!(broken.side, Side::Endpoint);
    drop(client);
}

#[tokio::test]
async fn a_reset_passes_after_that_side_has_ended_its_stream() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
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

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_sides() {
    let Relayed {
        mut client,
        mut endpoint,
        relay,
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
    let moved = Moved::default();
    let counters = Counters::default();
    let relay = relay(
        ResetOnDrop::new(client_side),
        ResetOnDrop::new(endpoint_side),
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
    while let Ok(ready) =
        tokio::time::timeout(std::time::Duration::from_millis(300), stream.writable()).await
    {
        ready.unwrap();
        match stream.try_write(&block[sent % PERIOD..]) {
            Ok(n) => sent += n,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 256 * MIB, "nothing bounds what is buffered");
    }
    sent
}
