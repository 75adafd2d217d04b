//! The two ends of a connection, and what becomes of one.

use std::io;

use tokio::net::TcpStream;

/// Which side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Endpoint,
}

/// A side broke the connection.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) side: Side,
    pub(crate) error: io::Error,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) stream: &'a TcpStream,
    pub(crate) side: Side,
}

impl End<'_> {
    pub(crate) fn broken(self, error: io::Error) -> Broken {
        Broken {
            side: self.side,
            error,
        }
    }
}
