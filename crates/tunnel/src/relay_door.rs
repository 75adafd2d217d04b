//! The door of this node's relay: what strangers can do before they have proved a key.
//!
//! A client begins with an HTTP request and goes on with a WebSocket, in which it proves its
//! key. Whoever has not done so within a few seconds is put out, and there is a bound for
//! how many may try at a time. Apart from that there is `/ping`, by which clients find
//! out how far the relay is. Nothing tells what this is, who made it, or whose it is.
//!
//! Who begins with TLS instead, as peers do that dial this node for a lane, is passed on to
//! those who take lanes: the two share the port that a firewall lets through.

use std::future::{Ready, ready};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use iroh_relay::http::{RELAY_PATH, RELAY_PROBE_PATH};
use iroh_relay::server::http_server::{BytesBody, HyperError, HyperResult, RelayServiceWithNotify};
use iroh_relay::server::streams::MaybeTlsStream;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use crate::address_places::{AddressPlaces, Place};
use crate::relay_counters::RelayCounters;
use crate::relay_rooms::RelayRooms;
use crate::tcp_carrier::SideDoor;

/// Connections in all that have not proved a key yet.
const IN_ALL: usize = 1024;
/// Of these, from one address: nodes behind one NAT come all at once when a relay restarts,
/// and each is through in a few round trips.
const PER_ADDRESS: usize = 128;
/// How long a connection may take to prove a key.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Pause after a failure to accept that is not about one connection.
const BACK_OFF: Duration = Duration::from_millis(100);
/// What a connection with TLS begins with: the type of a record of its handshake (RFC 8446
/// section 5.1). No HTTP method does.
const TLS: u8 = 22;
/// Bytes of a request's head: it has a few short lines.
const HEAD: usize = 8192;

/// Lets clients in, until `stop`. Those who are in stay.
pub(crate) async fn keep_door(
    listener: TcpListener,
    rooms: RelayRooms,
    counters: Arc<RelayCounters>,
    lanes: Option<SideDoor>,
    stop: CancellationToken,
) {
    let places = AddressPlaces::new(IN_ALL, PER_ADDRESS);
    let mut arrivals = JoinSet::new();
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = arrivals.join_next() => {}
            accepted = accept(&listener, not_before) => match accepted {
                Ok((stream, from)) => match places.take(from.ip()) {
                    Some(place) => {
                        arrivals.spawn(receive(stream, rooms.clone(), lanes.clone(), place));
                    }
                    None => counters.note_turned_away(),
                },
                Err(error) => {
                    warn!(%error, "the relay cannot take connections; it tries again");
                    not_before = Instant::now() + BACK_OFF;
                }
            },
        }
    }
    arrivals.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    not_before: Instant,
) -> io::Result<(TcpStream, SocketAddr)> {
    sleep_until(not_before).await;
    listener.accept().await
}

/// Brings one connection to where the relay has taken it over or refused it, or passes it on.
async fn receive(stream: TcpStream, rooms: RelayRooms, lanes: Option<SideDoor>, place: Place) {
    if let Some(lanes) = lanes {
        let mut first = [0];
        match timeout(ARRIVAL, stream.peek(&mut first)).await {
            Ok(Ok(1)) if first == [TLS] => {
                // Who takes lanes has places of its own for those who come.
                let _ = lanes.send(stream).await;
                return;
            }
            Ok(Ok(1)) => {}
            Ok(Ok(_) | Err(_)) | Err(_) => return,
        }
    }
    let Ok(handle) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    // Dropped with the last of the request's copies: the relay keeps one while it asks for
    // the key.
    let arrived = CancellationToken::new();
    let door = Door {
        rooms,
        arriving: Arc::new(arrived.clone().drop_guard()),
    };
    let arrival = async {
        let served = hyper::server::conn::http1::Builder::new()
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(MaybeTlsStream::Plain(stream)), door)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            debug!(%error, "a relay client did not come to an end of its request");
        }
        arrived.cancelled().await;
    };
    if timeout(ARRIVAL, arrival).await.is_err() {
        // The relay itself would wait for the key for ever. It ends when its socket does;
        // if that has ended meanwhile, all the better.
        let _ = SockRef::from(&handle).shutdown(Shutdown::Both);
    }
    drop(place);
}

/// Passes on what is for the relay, and answers the rest.
struct Door {
    rooms: RelayRooms,
    arriving: Arc<DropGuard>,
}

impl Service<Request<Incoming>> for Door {
    type Response = Response<BytesBody>;
    type Error = HyperError;
    type Future = Ready<HyperResult<Response<BytesBody>>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        match (request.method(), request.uri().path()) {
            (&Method::GET, RELAY_PATH) => {
                let arriving = Arc::clone(&self.arriving);
                request.extensions_mut().insert(arriving);
                let host = request.headers().get(HOST);
                let room = self
                    .rooms
                    .for_host(host.and_then(|host| host.to_str().ok()));
                RelayServiceWithNotify::new(room, Arc::new(Notify::new())).call(request)
            }
            (&Method::GET, RELAY_PROBE_PATH) => answer(StatusCode::OK),
            _ => answer(StatusCode::NOT_FOUND),
        }
    }
}

fn answer(status: StatusCode) -> Ready<HyperResult<Response<BytesBody>>> {
    let body: BytesBody = Box::new(Full::new(Bytes::new()));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    ready(Ok(response))
}
