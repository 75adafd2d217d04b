//! The sockets at which this node answers probes: one for each of its addresses that others
//! are told, so that an answer leaves from where the question came to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use edgemesh_wire::Probe;
use socket2::{Domain, Type};
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use crate::answerer::Answerer;
use crate::counters::Counters;

/// The sockets, each with its task. Nothing runs any more when it is dropped.
#[derive(Debug)]
pub(crate) struct Answering {
    answerer: Arc<Mutex<Answerer>>,
    counters: Arc<Counters>,
    port: u16,
    mark: Option<u32>,
    open: BTreeMap<IpAddr, AbortHandle>,
    tasks: JoinSet<IpAddr>,
    /// What could not be opened the last time: it is said once.
    said: BTreeSet<IpAddr>,
}

impl Answering {
    pub(crate) fn new(
        answerer: Arc<Mutex<Answerer>>,
        counters: Arc<Counters>,
        port: u16,
        mark: Option<u32>,
    ) -> Self {
        Self {
            answerer,
            counters,
            port,
            mark,
            open: BTreeMap::new(),
            tasks: JoinSet::new(),
            said: BTreeSet::new(),
        }
    }

    /// Answers at these addresses and no other. Whether all could be opened: while another
    /// agent of this node still has the port, it is to be tried again.
    pub(crate) fn listen_at(&mut self, wanted: &BTreeSet<IpAddr>) -> bool {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Ok(address) = ended {
                self.open.remove(&address);
            }
        }
        self.open.retain(|address, task| {
            let keeps = wanted.contains(address) && !task.is_finished();
            if !keeps {
                task.abort();
            }
            keeps
        });
        self.said.retain(|address| wanted.contains(address));
        let missing: Vec<IpAddr> = wanted
            .iter()
            .filter(|address| !self.open.contains_key(address))
            .copied()
            .collect();
        let mut complete = true;
        for address in missing {
            complete &= self.open(address);
        }
        complete
    }

    fn open(&mut self, address: IpAddr) -> bool {
        let at = SocketAddr::new(address, self.port);
        match bind(at, self.mark) {
            Ok(socket) => {
                debug!(%at, "probes are answered");
                if self.said.remove(&address) {
                    info!(%at, "probes are answered at last");
                }
                let answerer = Arc::clone(&self.answerer);
                let counters = Arc::clone(&self.counters);
                let task = self.tasks.spawn(async move {
                    let error = answer_all(&socket, at, &answerer, &counters).await;
                    debug!(%at, %error, "a socket for probes is given up; it is opened anew");
                    address
                });
                self.open.insert(address, task);
                true
            }
            Err(error) => {
                if self.said.insert(address) {
                    warn!(
                        %at, %error,
                        "probes are not answered here, so that others reach this node through \
                         the tunnel; trying again. If another program has the port, set \
                         modules.edgeProxy.reachability.probePort"
                    );
                }
                false
            }
        }
    }
}

/// Opens a socket at an address of this host.
pub(crate) fn bind(at: SocketAddr, mark: Option<u32>) -> io::Result<UdpSocket> {
    let socket = edgemesh_sockets::open(Domain::for_address(at), Type::DGRAM)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers until the socket is beyond use; tells why.
async fn answer_all(
    socket: &UdpSocket,
    at: SocketAddr,
    answerer: &Mutex<Answerer>,
    counters: &Counters,
) -> io::Error {
    // One byte more than a probe: what is longer is none.
    let mut buffer = [0; Probe::LENGTH + 1];
    let mut errors = 0_u32;
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => {
                errors = 0;
                received
            }
            // An earlier answer was not to be delivered; that is told to whoever asks next.
            Err(error) if errors < 16 => {
                errors += 1;
                debug!(%error, "a socket for probes");
                continue;
            }
            Err(error) => return error,
        };
        let answer = answerer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answer(
                buffer.get(..length).unwrap_or_default(),
                from.ip(),
                at,
                Instant::now(),
                unix_now(),
            );
        match answer {
            Ok(answer) => {
                counters.count_answered();
                // Lost or not sent is all the same to who asked.
                let _ = socket.send_to(&answer, from).await;
            }
            Err(reason) => counters.count_refused(reason),
        }
    }
}

/// Seconds since 1970, by this node's clock.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
