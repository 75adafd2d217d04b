//! A UDP portal: its socket, and the flows of all who send to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use edgemesh_sockets::{DatagramBatch, DatagramRun};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span, error};

use crate::addrs::ClientAddr;
use crate::chance::Chance;
use crate::flow_cap::FlowCap;
use crate::metrics::Counters;
use crate::portal::{ActivePortal, Attempt};
use crate::reasons::{DialFault, Dropped, FlowEnded};
use crate::udp_answers::Answers;
use crate::udp_flow::{Clock, Flow, PortalSocket};
use crate::udp_upstream::Sent;
use crate::ways::Ways;

/// Endpoints that are tried for one datagram.
const ENDPOINTS_PER_DATAGRAM: usize = 4;

/// What all UDP portals share.
#[derive(Debug)]
pub(crate) struct Flows {
    pub(crate) ways: Ways,
    pub(crate) idle: Duration,
    pub(crate) cap: Arc<FlowCap>,
    pub(crate) clock: Clock,
    pub(crate) chance: Chance,
    pub(crate) counters: Arc<Counters>,
}

/// One UDP portal with its flows, owned by one task.
pub(crate) struct UdpPortal {
    socket: Arc<PortalSocket>,
    shared: Arc<Flows>,
    portal: Arc<ActivePortal>,
    changes: watch::Receiver<u64>,
    flows: BTreeMap<ClientAddr, Arc<Flow>>,
    tasks: JoinSet<Arc<Flow>>,
}

impl UdpPortal {
    pub(crate) fn new(socket: UdpSocket, portal: Arc<ActivePortal>, shared: Arc<Flows>) -> Self {
        Self {
            socket: Arc::new(PortalSocket::new(socket)),
            shared,
            changes: portal.changes(),
            portal,
            flows: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Serves until `stop`; ends with all its flows.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let span = debug_span!("udp portal", portal = %self.portal.name);
        async {
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    Ok(()) = self.changes.changed() => self.end_flows_of_gone_endpoints(),
                    Some(ended) = self.tasks.join_next() => self.forget(ended),
                    Ok(()) = self.socket.socket.readable() => self.receive(),
                }
                tokio::task::coop::consume_budget().await;
            }
            self.flows
                .values()
                .for_each(|flow| flow.end(FlowEnded::PortalClosed));
            while let Some(ended) = self.tasks.join_next().await {
                self.forget(ended);
            }
        }
        .instrument(span)
        .await;
    }

    fn end_flows_of_gone_endpoints(&mut self) {
        let portal = &self.portal;
        self.flows.retain(|_, flow| {
            let stays = portal.has_endpoint(flow.endpoint, flow.way());
            if !stays {
                flow.end(FlowEnded::EndpointGone);
            }
            stays
        });
    }

    fn forget(&mut self, ended: Result<Arc<Flow>, JoinError>) {
        match ended {
            Ok(ended) => {
                // The client may have a new flow already.
                if let Some(known) = self.flows.get(&ended.client)
                    && Arc::ptr_eq(known, &ended)
                {
                    self.flows.remove(&ended.client);
                }
                debug!(client = %ended.client, endpoint = %ended.endpoint, "flow ended");
            }
            Err(panic) => {
                self.shared.counters.task_panicked();
                error!(%panic, "a flow's task panicked; the flow was closed");
                self.flows.retain(|_, flow| !flow.is_ending());
            }
        }
    }

    fn receive(&mut self) {
        let socket = Arc::clone(&self.socket);
        DatagramBatch::with(|batch| {
            // Errors other than an empty socket are those of single datagrams; readiness brings
            // us back.
            let _ = batch.receive(&socket.socket);
            batch.runs(|client, run| {
                if let Some(client) = client {
                    self.forward_run(ClientAddr(client), run);
                }
            });
        });
    }

    fn forward_run(&mut self, client: ClientAddr, run: &DatagramRun<'_>) {
        if let Some(flow) = self.flows.get(&client)
            && !flow.is_ending()
            && let Some(sent) = flow.send_run(run, &self.shared.counters)
        {
            match sent {
                Sent::Yes | Sent::DroppedInTunnel => return,
                Sent::Dropped(reason) => {
                    let counters = &self.shared.counters;
                    return counters.drop_datagrams(reason, run.count());
                }
                Sent::Failed(fault) => self.lose(&Arc::clone(flow), fault),
            }
        }
        for datagram in run.datagrams() {
            self.forward(client, datagram);
        }
    }

    fn lose(&self, flow: &Flow, fault: DialFault) {
        let now = Instant::now().into_std();
        self.portal.lost(flow.endpoint, fault.blame(), now);
        flow.end(FlowEnded::for_blame(fault.blame()));
    }

    fn forward(&mut self, client: ClientAddr, datagram: &[u8]) {
        let mut tried = Vec::new();
        if let Some(flow) = self.flows.get(&client)
            && !flow.is_ending()
        {
            match flow.send(datagram, &self.shared.counters) {
                Sent::Yes | Sent::DroppedInTunnel => return,
                Sent::Dropped(reason) => return self.shared.counters.drop_datagrams(reason, 1),
                Sent::Failed(fault) => {
                    tried.push(flow.endpoint.0);
                    self.lose(&Arc::clone(flow), fault);
                }
            }
        }
        self.forward_in_new_flow(client, datagram, tried);
    }

    fn forward_in_new_flow(
        &mut self,
        client: ClientAddr,
        datagram: &[u8],
        mut tried: Vec<SocketAddr>,
    ) {
        while tried.len() < ENDPOINTS_PER_DATAGRAM {
            let now = Instant::now().into_std();
            let random = self.shared.chance.draw();
            let Some(attempt) = self.portal.attempt(client, &tried, now, random) else {
                break;
            };
            tried.push(attempt.address().0);
            let Some((flow, attempt)) = self.open(client, attempt) else {
                continue;
            };
            match flow.send(datagram, &self.shared.counters) {
                Sent::Failed(fault) => attempt.failed(fault.blame(), now),
                Sent::Yes | Sent::DroppedInTunnel => return self.keep(flow, attempt),
                Sent::Dropped(reason) => {
                    self.shared.counters.drop_datagrams(reason, 1);
                    return self.keep(flow, attempt);
                }
            }
        }
        self.shared.counters.drop_datagrams(Dropped::NoEndpoint, 1);
    }

    fn open(&self, client: ClientAddr, attempt: Attempt) -> Option<(Arc<Flow>, Attempt)> {
        let ways = &self.shared.ways;
        match ways.connect_udp(&self.portal.name, attempt.endpoint()) {
            Ok(upstream) => {
                let flow = Flow::new(client, attempt.address(), upstream, self.shared.clock);
                Some((Arc::new(flow), attempt))
            }
            Err(fault) => {
                self.shared.counters.dial_failed(fault);
                attempt.failed(fault.blame(), Instant::now().into_std());
                None
            }
        }
    }

    fn keep(&mut self, flow: Arc<Flow>, attempt: Attempt) {
        self.portal
            .settled(flow.client, flow.endpoint, Instant::now().into_std());
        self.shared.cap.admit(&flow);
        self.shared.counters.flow_opened();
        let answers = Answers {
            flow: Arc::clone(&flow),
            socket: Arc::clone(&self.socket),
            portal: Arc::clone(&self.portal),
            attempt: Some(attempt),
            idle: self.shared.idle,
            cap: Arc::clone(&self.shared.cap),
            counters: Arc::clone(&self.shared.counters),
        };
        self.tasks.spawn(answers.run());
        self.flows.insert(flow.client, flow);
    }
}
