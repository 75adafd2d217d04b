//! TCP connections to the API server that bypass our own rules.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tracing::warn;

/// How long one address may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A dead connection is noticed after about a minute, where a watch that is merely
/// silent would be waited on for five.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long data of ours may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens TCP connections, each with the agent's mark.
///
/// The API server's own ClusterIP is one that we intercept. Were our connection to
/// it subject to our rules, a stale catalog would send it to an endpoint that is
/// gone, and the fresh one could never be read.
#[derive(Clone, Debug)]
pub(crate) struct MarkedConnector {
    mark: Option<u32>,
    /// Whether it was said that marking is not permitted.
    said: Arc<AtomicBool>,
}

impl MarkedConnector {
    /// A connector whose sockets carry `mark` (SO_MARK); none for no mark.
    pub(crate) fn new(mark: Option<u32>, said: Arc<AtomicBool>) -> Self {
        Self { mark, said }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let (host, port) = host_and_port(&uri)?;
        let mut last = None;
        for address in lookup_host((host.as_str(), port)).await? {
            match timeout(CONNECT_TIMEOUT, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => last = Some(named(address, &error)),
                Err(_) => {
                    let error = io::Error::from(io::ErrorKind::TimedOut);
                    last = Some(named(address, &error));
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{host} has no address; check the API server's name"),
            )
        }))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        self.set_mark(&socket);
        socket.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        let options = SockRef::from(&socket);
        options.set_tcp_keepalive(&keepalive)?;
        options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.connect(address).await
    }

    fn set_mark(&self, socket: &TcpSocket) {
        let Some(mark) = self.mark else { return };
        if let Err(error) = SockRef::from(socket).set_mark(mark)
            && !self.said.swap(true, Ordering::Relaxed)
        {
            warn!(
                %error, mark,
                "cannot mark the connections to the API server; going on without. If it is \
                 reached by its ClusterIP they pass through the agent's own rules: grant CAP_NET_ADMIN"
            );
        }
    }
}

impl tower::Service<Uri> for MarkedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

fn host_and_port(uri: &Uri) -> io::Result<(String, u16)> {
    let host = uri.host().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{uri} names no host; write https://HOST:PORT"),
        )
    })?;
    let default = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    // An IPv6 address stands in brackets in a URL and nowhere else.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), uri.port_u16().unwrap_or(default)))
}

fn named(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("connecting to {address}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_follows_from_the_scheme() {
        let of = |uri: &'static str| host_and_port(&Uri::from_static(uri)).unwrap();
        assert_eq!(of("https://api.example"), ("api.example".to_owned(), 443));
        assert_eq!(of("http://10.0.0.1"), ("10.0.0.1".to_owned(), 80));
        assert_eq!(of("https://[fd00::1]:6443"), ("fd00::1".to_owned(), 6443));
    }
}
