//! The forwarder as its owner sees it: bind, start, follow the plan, drain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use edgemesh_catalog::{Protocol, SharedMap};
use edgemesh_plan::{Frontend, Plan, Portal};
use edgemesh_sockets::{OutwardSockets, PipePool};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::addrs::ListenAddr;
use crate::chance::Chance;
use crate::connection::Connections;
use crate::crew::Crew;
use crate::descriptors::Descriptors;
use crate::dial::DialLimits;
use crate::endpoint_health::EndpointHealth;
use crate::error::BindError;
use crate::flow_cap::FlowCap;
use crate::liveness::Liveness;
use crate::log_limit::LogLimit;
use crate::metrics::Counters;
use crate::original_dst::{ResolveOriginalDst, from_conntrack};
use crate::portal_table::{PortalTable, is_forwarded, is_served};
use crate::refusal::RefusalPort;
use crate::settings::{Settings, Strategy};
use crate::socket::{any_port, listen_tcp};
use crate::tasks::{TaskEnd, TaskName, Tasks};
use crate::udp::Flows;
use crate::udp_flow::Clock;
use crate::udp_portals::UdpPortals;
use crate::ways::Ways;
use crate::worker::{self, Shared, Worker};
use crate::worker_thread;

/// Attempts of connections that are served already, waited for at a time.
const MOST_STRAGGLERS: usize = 64;
/// How long tasks may take to end once they were told to.
const LAST_GRACE: Duration = Duration::from_secs(1);

/// Takes intercepted connections and datagrams to the endpoints that the plan names.
///
/// [`Forwarder::bind`] opens all sockets, [`Forwarder::start`] serves them; connections that
/// arrive in between wait. Then, for each plan, [`Forwarder::prepare`], the rules, and
/// [`Forwarder::retire`], in this order: the forwarder knows a portal before the kernel sends
/// traffic to it, and forgets it after. Dropping it resets all connections at once;
/// [`Forwarder::drain`] lets them end.
pub struct Forwarder {
    strategy: Strategy,
    chance: Chance,
    families: Vec<Family>,
    table: watch::Sender<Arc<PortalTable>>,
    /// What it is ready for.
    prepared: Plan,
    destinations: Destinations,
    /// Where it serves though it may not have to, once no rule leads there.
    leaving: BTreeSet<Frontend>,
    connections: Arc<Connections>,
    /// How many are to be started; none when they are.
    workers: usize,
    room: Arc<Semaphore>,
    udp: UdpPortals,
    counters: Arc<Counters>,
    stop_accepting: CancellationToken,
    tasks: Tasks,
    liveness: Liveness,
}

/// What we hold of one address family.
struct Family {
    intercept: IpAddr,
    listen: ListenAddr,
    /// One for each worker, who take them at the start.
    listeners: Vec<TcpListener>,
    refusal: RefusalPort,
}

/// The ports on the intercept address that portals have to lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destinations {
    /// One per intercepted portal, unless it failed.
    pub ports: SharedMap<Frontend, u16>,
    /// Portals that cannot be served now, with the reason. They are best left to kube-proxy
    /// until another [`Forwarder::prepare`] succeeds.
    pub failed: BTreeMap<Frontend, String>,
}

/// A task that should never end has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the forwarder's task for {task} has {}; {}",
    if *.panicked { "panicked" } else { "ended" },
    if *.recoverable { "prepare the plan again to reopen it" } else { "restart the forwarder" })]
pub struct TaskEnded {
    /// What it served.
    pub task: String,
    /// Whether it panicked.
    pub panicked: bool,
    /// Whether [`Forwarder::prepare`] makes it good (with another port); otherwise the
    /// forwarder has to be made anew.
    pub recoverable: bool,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// TCP connections that had to be reset.
    pub cut: u64,
}

impl Forwarder {
    /// Opens the listeners and refusal ports of each family that has an intercept address.
    /// Needs a tokio runtime around it, as all methods do.
    ///
    /// # Errors
    ///
    /// When a socket cannot be opened or bound, or the mark cannot be set.
    pub fn bind(settings: &Settings) -> Result<Self, BindError> {
        Self::bind_with(settings, from_conntrack())
    }

    /// As [`Self::bind`], where the original destination of a connection is not to be had
    /// from the kernel's connection tracking.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_with(
        settings: &Settings,
        original_dst: ResolveOriginalDst,
    ) -> Result<Self, BindError> {
        let outward = OutwardSockets::new(settings.mark);
        if let Some(mark) = settings.mark {
            outward
                .check()
                .map_err(|source| BindError::Mark { mark, source })?;
        }
        let workers = settings.workers();
        let families = bind_families(settings, workers)?;
        let ways = Ways::new(outward, settings.tunnel.clone());
        let chance = Chance::new(settings.seed);
        let counters = Arc::new(Counters::default());
        let table = watch::Sender::new(Arc::default());
        let places = settings
            .max_connections
            .clamp(1, Semaphore::MAX_PERMITS / 4);
        let descriptors = Descriptors::for_connections(places);
        let flows = Flows {
            ways: ways.clone(),
            idle: settings.udp_idle_timeout,
            cap: Arc::new(FlowCap::new(
                settings.max_udp_flows,
                settings.udp_flows_apart,
                descriptors.clone(),
            )),
            clock: Clock::start(),
            chance: Chance::new(chance.draw()),
            counters: Arc::clone(&counters),
        };
        let connections = Connections {
            table: table.subscribe(),
            original_dst,
            ways,
            limits: DialLimits {
                attempt: settings.dial_timeout,
                deadline: settings.dial_deadline,
            },
            descriptors: descriptors.clone(),
            admission_wait: settings.admission_wait,
            stragglers: Arc::new(Semaphore::new(MOST_STRAGGLERS)),
            pipes: PipePool::new(settings.max_pipes),
            chance: Chance::new(chance.draw()),
            reports: settings.dial_reports.clone(),
            counters: Arc::clone(&counters),
            failures: LogLimit::new(),
            cut: CancellationToken::new(),
        };
        Ok(Self {
            strategy: settings.strategy,
            chance,
            families,
            table,
            prepared: Plan::default(),
            destinations: Destinations::default(),
            leaving: BTreeSet::new(),
            connections: Arc::new(connections),
            workers,
            room: Arc::new(Semaphore::new(places + waiting_room(places) + workers)),
            udp: UdpPortals::new(Arc::new(flows), descriptors),
            counters,
            stop_accepting: CancellationToken::new(),
            tasks: Tasks::default(),
            liveness: Liveness::default(),
        })
    }

    /// Begins to accept connections. Calling it again does nothing.
    pub fn start(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        if workers == 0 {
            return;
        }
        let (crew, seats, beside_tunnel) = Crew::new(workers);
        let shared = Shared {
            connections: Arc::clone(&self.connections),
            crew: Arc::new(crew),
            room: Arc::clone(&self.room),
            ids: Arc::new(AtomicU64::new(1)),
        };
        for (number, seat) in seats.into_iter().enumerate() {
            let stop = self.stop_accepting.child_token();
            let work = worker::with_listeners(
                shared.clone(),
                seat,
                self.listeners_of_next_worker(),
                self.liveness.listener(),
                stop.clone(),
            );
            let running = worker_thread::start(number, work);
            self.tasks.own(TaskName::Worker(number), stop, running);
        }
        let stop = self.stop_accepting.child_token();
        let runtime = self.connections.ways.runtime();
        let worker = Worker::new(shared, beside_tunnel, vec![], self.liveness.listener());
        let running = worker.run(stop.clone());
        self.tasks
            .own_in(&runtime, TaskName::TunnelWorker, stop, running);
    }

    fn listeners_of_next_worker(&mut self) -> Vec<(TcpListener, ListenAddr)> {
        let families = self.families.iter_mut();
        families
            .filter_map(|family| Some((family.listeners.pop()?, family.listen)))
            .collect()
    }

    /// Where the listeners are bound, one per family.
    pub fn listen_addrs(&self) -> impl Iterator<Item = ListenAddr> {
        self.families.iter().map(|family| family.listen)
    }

    /// The address per family where everything is refused: the destination for whoever
    /// addresses the intercept address itself.
    pub fn refusal_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.families
            .iter()
            .map(|family| SocketAddr::new(family.intercept, family.refusal.port()))
    }

    /// Whether the listeners go round.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// What has been counted so far, and goes on being counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// What becomes known about endpoints, now and later.
    #[must_use]
    pub fn endpoint_health(&self) -> EndpointHealth {
        EndpointHealth::new(self.table.subscribe())
    }

    /// Gets ready for the traffic of `plan`, and still serves all that was served before.
    /// Existing connections are left alone; UDP flows whose endpoint is gone move.
    ///
    /// It goes on from the plan before: what is the same in both is not looked at again, unless
    /// it could not be served or is not served any more.
    pub fn prepare(&mut self, plan: &Plan) -> Destinations {
        let mut anew: BTreeSet<Frontend> = plan.frontends_changed_since(&self.prepared).collect();
        let table = self.table.borrow().clone();
        let table = Arc::new(table.with(plan, &anew, self.strategy, &self.chance));
        self.table.send_replace(Arc::clone(&table));
        let gone = anew.iter().filter(|frontend| !is_served(plan, **frontend));
        self.leaving.extend(gone);

        anew.extend(self.udp.ended());
        anew.extend(self.destinations.failed.keys());
        for frontend in anew {
            self.destinations.ports.remove(&frontend);
            self.destinations.failed.remove(&frontend);
            let Some((_, portal)) = plan.intercepted_at(frontend) else {
                continue;
            };
            match self.destination(portal, &table) {
                Ok(port) => {
                    self.destinations.ports.insert(frontend, port);
                }
                Err(reason) => {
                    warn!(portal = %frontend, %reason, "a portal cannot be served");
                    self.destinations.failed.insert(frontend, reason);
                }
            }
        }
        self.prepared = plan.clone();
        self.destinations.clone()
    }

    fn destination(&mut self, portal: &Portal, table: &PortalTable) -> Result<u16, String> {
        let frontend = portal.frontend;
        let family = self
            .families
            .iter()
            .find(|family| family.intercept.is_ipv4() == frontend.ip.is_ipv4())
            .ok_or("this node has no intercept address of the portal's family")?;
        if !is_forwarded(&portal.target) {
            return Ok(family.refusal.port());
        }
        match frontend.protocol {
            Protocol::Tcp => Ok(family.listen.0.port()),
            Protocol::Udp => {
                let active = table.get(&frontend).ok_or("the portal is not known")?;
                self.udp
                    .port(active, family.intercept, &mut self.tasks)
                    .map_err(|error| {
                        format!("cannot open a UDP socket on {}: {error}", family.intercept)
                    })
            }
            Protocol::Sctp => Err("SCTP is not forwarded".to_owned()),
        }
    }

    /// Closes what the plan that was [prepared](Self::prepare) last has no use for. To be called
    /// when no rule leads there any more. Existing TCP connections are left alone.
    pub fn retire(&mut self) {
        let mut gone = std::mem::take(&mut self.leaving);
        gone.retain(|frontend| !is_served(&self.prepared, *frontend));
        let table = self.table.borrow().without(&gone);
        self.udp.close_those_gone_from(&table);
        self.table.send_replace(Arc::new(table));
    }

    /// Waits until a task ends that should not have. Safe to cancel and to call again; to be
    /// called all along, for it also collects the tasks that ended in order.
    pub async fn task_ended(&mut self) -> TaskEnded {
        loop {
            let TaskEnd {
                task,
                panicked,
                expected,
            } = self.tasks.next().await;
            if panicked {
                self.counters.task_panicked();
            }
            if !expected {
                return TaskEnded {
                    task: task.to_string(),
                    panicked,
                    recoverable: match task {
                        TaskName::Worker(_) | TaskName::TunnelWorker => false,
                        TaskName::UdpPortal(_) => true,
                    },
                };
            }
        }
    }

    /// Stops accepting, lets connections end for at most `patience`, and then resets those
    /// that are left. UDP is served as long as connections are waited for. To be called when
    /// no rule leads here any more.
    pub async fn drain(mut self, patience: Duration) -> Drained {
        self.stop_accepting.cancel();
        let deadline = Instant::now() + patience;
        // Time being up is no error but the reason to cut.
        let _ = timeout_at(deadline, self.tasks.workers_done()).await;
        let cut = self.counters.active_connections();
        self.connections.cut.cancel();
        self.udp.close();
        let _ = timeout_at(Instant::now() + LAST_GRACE, self.tasks.all_done()).await;
        self.tasks.shutdown(LAST_GRACE).await;
        info!(cut, "the forwarder has ended");
        Drained { cut }
    }
}

fn bind_families(settings: &Settings, workers: usize) -> Result<Vec<Family>, BindError> {
    let v4 = settings.intercept_v4.map(IpAddr::V4);
    let v6 = settings.intercept_v6.map(IpAddr::V6);
    let families = v4
        .into_iter()
        .chain(v6)
        .map(|intercept| bind_family(intercept, settings, workers))
        .collect::<Result<Vec<_>, _>>()?;
    if families.is_empty() {
        return Err(BindError::NoFamily);
    }
    Ok(families)
}

fn bind_family(
    intercept: IpAddr,
    settings: &Settings,
    workers: usize,
) -> Result<Family, BindError> {
    let wanted = ListenAddr(SocketAddr::new(intercept, settings.listen_port));
    let listen_error = |source| BindError::Listen {
        address: wanted.0,
        source,
    };
    let (listen, listeners) = match listen_tcp(wanted, workers) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if settings.listen_port_expected_taken {
                info!(address = %wanted, "the listen port is still taken; taking a free one");
            } else {
                warn!(
                    address = %wanted,
                    "another process holds the listen port; taking a free one instead \
                     (modules.edgeProxy.listenPort sets it)"
                );
            }
            listen_tcp(ListenAddr(any_port(intercept)), workers)
        }
        bound => bound,
    }
    .map_err(listen_error)?;
    let refusal = RefusalPort::reserve(intercept).map_err(|source| BindError::Refusal {
        address: intercept,
        source,
    })?;
    Ok(Family {
        intercept,
        listen,
        listeners,
        refusal,
    })
}

/// Connections beyond the limit that may wait for a place; further ones stay in the
/// kernel's backlog.
fn waiting_room(places: usize) -> usize {
    (places / 16).clamp(16, 32)
}
