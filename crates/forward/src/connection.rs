//! One TCP connection, from its arrival to its closing record.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_plan::PortalEndpoint;
use edgemesh_sockets::{PipePool, ResetOnDrop, ResetUnlessKept, broken, look_at};
use edgemesh_tunnel::FirstBytes;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, debug_span, field, info, warn};

use crate::addrs::ClientAddr;
use crate::chance::Chance;
use crate::connection_end::Broken;
use crate::crew::{Arrival, Crew};
use crate::descriptors::Descriptors;
use crate::dial::{DialFailure, DialLimits, Dialled, Dialler, Stragglers};
use crate::dial_reports::DialReports;
use crate::log_limit::LogLimit;
use crate::metrics::Counters;
use crate::original_dst::ResolveOriginalDst;
use crate::portal::ActivePortal;
use crate::portal_table::PortalTable;
use crate::reasons::Refused;
use crate::relay::Moved;
use crate::ways::{TcpUpstream, Ways};

/// What all connections share.
pub(crate) struct Connections {
    pub(crate) table: watch::Receiver<Arc<PortalTable>>,
    pub(crate) original_dst: ResolveOriginalDst,
    pub(crate) ways: Ways,
    pub(crate) limits: DialLimits,
    /// Two are the place of a connection that is served.
    pub(crate) descriptors: Descriptors,
    /// How long a connection waits for a place.
    pub(crate) admission_wait: Duration,
    /// Bounds the attempts that nobody waits for any more.
    pub(crate) stragglers: Arc<Semaphore>,
    /// What bulk transfers go through.
    pub(crate) pipes: PipePool,
    pub(crate) chance: Chance,
    pub(crate) reports: DialReports,
    pub(crate) counters: Arc<Counters>,
    pub(crate) failures: LogLimit,
    /// Ends every connection with a reset.
    pub(crate) cut: CancellationToken,
}

/// What became of a connection.
enum Closed {
    Refused(Refused),
    NotDialled(DialFailure),
    ClientVanished,
    Ended,
    Broken(Broken),
    Cut,
}

/// What a connection's closing record is written from.
struct Record {
    client: ClientAddr,
    portal: Option<Arc<ActivePortal>>,
    endpoint: Option<PortalEndpoint>,
    moved: Moved,
    since: Instant,
}

impl Connections {
    /// Serves one accepted connection to its end. With a `crew` it may also be handed over to
    /// who serves beside the tunnel. (The arrival is boxed, for its room in the future would
    /// otherwise stay taken as long as the connection lives.)
    pub(crate) fn serve<'a>(
        &'a self,
        arrival: Box<Arrival>,
        crew: Option<&'a Crew>,
    ) -> impl Future<Output = ()> + Send + 'a {
        let span = debug_span!("connection", id = arrival.id, client = %arrival.client, portal = field::Empty);
        tracing::Instrument::instrument(self.serve_in_span(arrival, crew), span)
    }

    async fn serve_in_span(&self, arrival: Box<Arrival>, crew: Option<&Crew>) {
        let mut record = Record {
            client: arrival.client,
            portal: None,
            endpoint: None,
            moved: Moved::default(),
            since: Instant::now(),
        };
        let Some((client, _room)) = self.begin(*arrival, crew, &mut record) else {
            return;
        };
        let mut stragglers = None;
        let closed = tokio::select! {
            biased;
            () = self.cut.cancelled() => Closed::Cut,
            closed = self.run(client, &mut record, &mut stragglers) => closed,
        };
        self.close(closed, &record);
        drop(record);
        if let Some(stragglers) = stragglers {
            self.await_stragglers(stragglers).await;
        }
    }

    /// Finds out where the client wants to go; none when it is not served here.
    fn begin(
        &self,
        mut arrival: Arrival,
        crew: Option<&Crew>,
        record: &mut Record,
    ) -> Option<(ResetOnDrop, OwnedSemaphorePermit)> {
        let portal = match arrival.portal.take() {
            Some(portal) => portal,
            None => match self.find_portal(&arrival) {
                Ok(portal) => portal,
                Err(reason) => {
                    self.close(Closed::Refused(reason), record);
                    return None;
                }
            },
        };
        if let Some(crew) = crew
            && self.ways.may_lead_into_tunnel(&portal)
        {
            arrival.portal = Some(portal);
            // Who serves there ends only when all do; dropped, the connection is closed.
            drop(crew.hand_to_tunnel(arrival));
            return None;
        }
        let stream = match TcpStream::from_std(arrival.stream) {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, client = %arrival.client, "a connection can't be watched and was closed");
                return None;
            }
        };
        Span::current().record("portal", field::display(&portal.name));
        record.portal = Some(portal);
        Some((ResetOnDrop::new(stream), arrival.room))
    }

    async fn run(
        &self,
        client: ResetOnDrop,
        record: &mut Record,
        stragglers: &mut Option<Stragglers<TcpUpstream>>,
    ) -> Closed {
        let Some(_place) = self.place().await else {
            return Closed::Refused(Refused::Limit);
        };
        let _active = self.counters.connection_active();
        // Boxed, for its state would otherwise stay with the connection all its life.
        let dialled = Box::pin(self.dial(client.stream(), record)).await;
        let Dialled {
            stream,
            endpoint,
            stragglers: slower,
        } = match dialled {
            Some(Ok(dialled)) => dialled,
            Some(Err(failure)) => return Closed::NotDialled(failure),
            None => return Closed::ClientVanished,
        };
        self.counters.connection_relayed();
        record.endpoint = Some(endpoint);
        *stragglers = (!slower.is_empty()).then_some(slower);
        let relayed = stream.relay(client, &self.pipes, &record.moved, &self.counters);
        match relayed.await {
            Ok(()) => Closed::Ended,
            Err(broken) => Closed::Broken(broken),
        }
    }

    /// Resets the connection when there is none.
    fn find_portal(&self, arrival: &Arrival) -> Result<Arc<ActivePortal>, Refused> {
        let listener = arrival.listener;
        let in_charge = ResetUnlessKept::new(&arrival.stream);
        let destination = (self.original_dst)(&arrival.stream, listener).map_err(|error| {
            debug!(%error, "the kernel does not tell the original destination");
            Refused::NoOriginalDestination
        })?;
        if destination.0 == listener.0 {
            return Err(Refused::NotThroughPortal);
        }
        let table = self.table.borrow();
        let portal = table.tcp(destination).ok_or(Refused::NoPortal)?;
        in_charge.keep();
        Ok(Arc::clone(portal))
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Some(place) = self.descriptors.place() {
            return Some(place);
        }
        let _waiting = self.counters.connection_waiting();
        // Boxed, for its state would otherwise stay with the connection all its life.
        let place = Box::pin(self.descriptors.place_in_turn());
        timeout(self.admission_wait, place).await.ok()?
    }

    /// None when the client went away meanwhile. A client that ended its stream may be
    /// waiting for the answer and is still there.
    async fn dial(
        &self,
        client: &TcpStream,
        record: &Record,
    ) -> Option<Result<Dialled<TcpUpstream>, DialFailure>> {
        let portal = record.portal.as_ref()?;
        // Where there are others, a node that has just died must not take the client with it: what
        // it may have got could be given to none of them.
        let first = if self.ways.may_lead_into_tunnel(portal) && portal.has_one_endpoint() {
            FirstBytes::awaited()
        } else {
            FirstBytes::default()
        };
        let dialler = Dialler {
            first: &first,
            limits: self.limits,
            chance: &self.chance,
            descriptors: &self.descriptors,
            counters: &self.counters,
            reports: &self.reports,
        };
        let connect = |endpoint: &PortalEndpoint| {
            let ways = &self.ways;
            ways.connect_tcp(&portal.name, endpoint, client, &first)
        };
        tokio::select! {
            biased;
            _ = broken(client) => None,
            never = hear_first(client, &first) => match never {},
            dialled = dialler.dial(portal, record.client, connect) => Some(dialled),
        }
    }

    async fn await_stragglers(&self, stragglers: Stragglers<TcpUpstream>) {
        let Ok(_place) = self.stragglers.try_acquire() else {
            return;
        };
        tokio::select! {
            biased;
            () = self.cut.cancelled() => {}
            () = stragglers.finish() => {}
        }
    }

    fn close(&self, closed: Closed, record: &Record) {
        let counters = &self.counters;
        match closed {
            Closed::Ended => record.write("ended"),
            Closed::Cut => {
                counters.connection_cut();
                record.write("cut at shutdown");
            }
            Closed::ClientVanished => {
                counters.client_gone();
                record.write("client vanished while an endpoint was dialled");
            }
            Closed::Broken(Broken { side, error }) => {
                counters.connection_reset();
                record.write(format_args!("broken by {side:?}: {error}"));
            }
            Closed::Refused(reason) => {
                counters.connection_refused(reason);
                self.write_failure(record, format_args!("refused: {}", reason.as_str()));
            }
            Closed::NotDialled(failure) => {
                counters.connection_refused(Refused::DialFailed);
                self.write_failure(record, format_args!("refused: {failure}"));
            }
        }
    }

    fn write_failure(&self, record: &Record, result: std::fmt::Arguments<'_>) {
        match self.failures.admit(Instant::now().into_std()) {
            Some(withheld) => info!(
                portal = record.portal_name(),
                client = %record.client,
                duration = ?record.since.elapsed(),
                %result,
                withheld,
                "connection closed"
            ),
            None => record.write(result),
        }
    }
}

/// Hands over what `client` says first, as soon as it does.
async fn hear_first(client: &TcpStream, first: &FirstBytes) -> Infallible {
    if first.are_awaited() {
        let mut said = look_at(client, FirstBytes::MOST);
        if said.is_none() && client.readable().await.is_ok() {
            said = look_at(client, FirstBytes::MOST);
        }
        if let Some(said) = said {
            first.came(said);
        }
    }
    pending().await
}

impl Record {
    fn write(&self, result: impl std::fmt::Display) {
        debug!(
            portal = self.portal_name(),
            client = %self.client,
            endpoint = self.endpoint.as_ref().map(|e| field::display(e.address)),
            node = self.endpoint.as_ref().and_then(|e| e.node.as_ref()).map(field::display),
            way = self.endpoint.as_ref().map(|e| field::display(e.way)),
            up = self.moved.up(),
            down = self.moved.down(),
            duration = ?self.since.elapsed(),
            %result,
            "connection closed"
        );
    }

    fn portal_name(&self) -> Option<field::DisplayValue<&edgemesh_catalog::ServicePortName>> {
        self.portal
            .as_ref()
            .map(|portal| field::display(&portal.name))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::net::TcpListener;

    use edgemesh_sockets::OutwardSockets;

    use super::*;
    use crate::addrs::ListenAddr;
    use crate::original_dst::from_conntrack;

    #[tokio::test]
    async fn an_idle_connection_takes_less_than_four_kib() {
        let table = watch::Sender::new(Arc::default());
        let connections = Connections {
            table: table.subscribe(),
            original_dst: from_conntrack(),
            ways: Ways::new(OutwardSockets::new(None), None),
            limits: DialLimits {
                attempt: Duration::from_secs(2),
                deadline: Duration::from_secs(5),
            },
            descriptors: Descriptors::for_connections(1),
            admission_wait: Duration::from_secs(5),
            stragglers: Arc::new(Semaphore::new(1)),
            pipes: PipePool::new(1),
            chance: Chance::new(0),
            reports: DialReports::default(),
            counters: Arc::default(),
            failures: LogLimit::new(),
            cut: CancellationToken::new(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        let room = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let arrival = Arrival {
            id: 1,
            stream,
            client: ClientAddr(address),
            listener: ListenAddr(address),
            portal: None,
            room,
        };
        let task = connections.serve(Box::new(arrival), None);
        // Besides it there are two sockets as tokio registers them, at about 256 bytes each.
        let size = size_of_val(&task);
        println!("state of one connection: {size} bytes");
        assert!(size < 4096 - 512);
    }
}
