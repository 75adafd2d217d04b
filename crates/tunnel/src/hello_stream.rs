//! The stream on which each end says hello, and from then on how many datagrams it has sent.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use edgemesh_wire::{Hello, Tally};
use iroh::endpoint::{Connection, ReadExactError, RecvStream};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::datagram_traffic::DatagramTraffic;

/// How often is looked whether there is something to tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a peer may take to say hello, once it has begun.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Says hello, and tells of the datagrams as long as it is polled.
///
/// # Errors
///
/// When the peer does not listen any more.
pub(crate) async fn say(
    connection: &Connection,
    hello: Hello,
    datagrams: &DatagramTraffic,
) -> io::Result<Infallible> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(&hello.encode()).await?;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = looks.tick().await;
        if let Some(tally) = datagrams.tally(connection, now.into_std()) {
            stream.write_all(&tally.encode()).await?;
        }
    }
}

/// Reads the hello, which comes first.
///
/// # Errors
///
/// When it does not come, or is none.
pub(crate) async fn hear(stream: &mut RecvStream) -> io::Result<Hello> {
    let mut bytes = [0; Hello::LENGTH];
    timeout(HELLO_WITHIN, stream.read_exact(&mut bytes))
        .await?
        .map_err(io::Error::other)?;
    Hello::decode(&bytes).map_err(io::Error::other)
}

/// Reads what is told of datagrams, until nothing more is.
///
/// # Errors
///
/// When it makes no sense.
pub(crate) async fn hear_tallies(
    stream: &mut RecvStream,
    datagrams: &DatagramTraffic,
) -> io::Result<()> {
    loop {
        let mut bytes = [0; Tally::LENGTH];
        match stream.read_exact(&mut bytes).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0) | ReadExactError::ReadError(_)) => return Ok(()),
            Err(error @ ReadExactError::FinishedEarly(_)) => return Err(io::Error::other(error)),
        }
        let tally = Tally::decode(bytes).map_err(io::Error::other)?;
        datagrams
            .told(tally, Instant::now().into_std())
            .map_err(io::Error::other)?;
    }
}
