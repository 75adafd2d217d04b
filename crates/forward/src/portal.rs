//! A portal as the forwarder serves it: what it leads to, and the attempts to get there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use edgemesh_catalog::ServicePortName;
use edgemesh_plan::{Datapath, Frontend, PortalEndpoint, Way};
use edgemesh_sockets::EndpointAddr;
use tokio::sync::watch;

use crate::Strategy;
use crate::addrs::ClientAddr;
use crate::balance::{Balancer, Pick};
use crate::left_out::LeftOut;
use crate::reasons::Blame;

/// One portal. It lives as long as any plan keeps it, and what it knows of its endpoints
/// and clients with it.
#[derive(Debug)]
pub(crate) struct ActivePortal {
    pub(crate) name: ServicePortName,
    pub(crate) frontend: Frontend,
    balancer: Mutex<Balancer>,
    /// Counts how often the endpoints changed, from the first time somebody asks: a channel
    /// takes more memory than all the rest, and TCP portals need none.
    changes: OnceLock<watch::Sender<u64>>,
}

impl ActivePortal {
    pub(crate) fn new(
        name: ServicePortName,
        frontend: Frontend,
        strategy: Strategy,
        endpoints: Arc<[PortalEndpoint]>,
        affinity: Option<Duration>,
        random: u64,
    ) -> Self {
        Self {
            name,
            frontend,
            balancer: Mutex::new(Balancer::new(strategy, endpoints, affinity, random)),
            changes: OnceLock::new(),
        }
    }

    /// Makes it lead to `endpoints`, with the kernel or without.
    pub(crate) fn update(
        &self,
        endpoints: &Arc<[PortalEndpoint]>,
        affinity: Option<Duration>,
        datapath: Datapath,
        random: u64,
    ) {
        let mut balancer = self.balancer();
        balancer.set_native_have_share(datapath == Datapath::KernelAndAgent);
        if balancer.affinity() != affinity {
            balancer.set_affinity(affinity);
        }
        if balancer.endpoints() != endpoints {
            balancer.set_endpoints(Arc::clone(endpoints), random);
            drop(balancer);
            if let Some(changes) = self.changes.get() {
                changes.send_modify(|changes| *changes += 1);
            }
        }
    }

    /// Changes whenever the endpoints do.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        let changes = self.changes.get_or_init(|| watch::Sender::new(0));
        changes.subscribe()
    }

    /// Whether it leads to `endpoint` by `way`.
    pub(crate) fn has_endpoint(&self, endpoint: EndpointAddr, way: Way) -> bool {
        self.balancer().has_by(endpoint.0, way)
    }

    /// Whether there is no other endpoint to try when one fails.
    pub(crate) fn has_one_endpoint(&self) -> bool {
        self.balancer().endpoints().len() == 1
    }

    /// Whether it leads to any endpoint by `way`.
    pub(crate) fn has_endpoint_by(&self, way: Way) -> bool {
        let balancer = self.balancer();
        balancer.endpoints().iter().any(|known| known.way == way)
    }

    /// Picks the next endpoint for `client`; none when it `tried` all.
    pub(crate) fn attempt(
        self: &Arc<Self>,
        client: ClientAddr,
        tried: &[SocketAddr],
        now: Instant,
        random: u64,
    ) -> Option<Attempt> {
        let pick = self.balancer().pick(client.0.ip(), tried, now, random)?;
        Some(Attempt {
            portal: Arc::clone(self),
            pick,
            reported: false,
        })
    }

    /// `client` is served by `endpoint`: its later connections are to follow.
    pub(crate) fn settled(&self, client: ClientAddr, endpoint: EndpointAddr, now: Instant) {
        self.balancer().settled(client.0.ip(), endpoint.0, now);
    }

    /// An attempt to reach `endpoint` lasts longer than one is waited for alone, and will have
    /// an outcome by `until`.
    pub(crate) fn unanswered(&self, endpoint: EndpointAddr, until: Instant) {
        self.balancer().unanswered(endpoint.0, until);
    }

    /// A client that `endpoint` served lost it, by the fault of `blame`.
    pub(crate) fn lost(&self, endpoint: EndpointAddr, blame: Blame, now: Instant) {
        match blame {
            Blame::Endpoint => self.balancer().failed(endpoint.0, false, now),
            Blame::Way => self.balancer().way_failed(endpoint.0, now),
            Blame::Host => {}
        }
    }

    /// The endpoints that failed and have not answered since.
    pub(crate) fn left_out(&self, now: Instant) -> Vec<LeftOut> {
        self.balancer()
            .unwell(now)
            .map(|(endpoint, failures, remaining)| LeftOut {
                name: self.name.clone(),
                frontend: self.frontend,
                endpoint,
                failures,
                remaining,
            })
            .collect()
    }

    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        // A panic elsewhere leaves a balancer that is whole enough to choose from.
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An endpoint being tried. Dropped without an outcome it says nothing about the endpoint.
#[derive(Debug)]
pub(crate) struct Attempt {
    portal: Arc<ActivePortal>,
    pick: Pick,
    reported: bool,
}

impl Attempt {
    pub(crate) fn endpoint(&self) -> &PortalEndpoint {
        &self.pick.endpoint
    }

    pub(crate) fn address(&self) -> EndpointAddr {
        EndpointAddr(self.pick.endpoint.address)
    }

    /// Whether it decides if an endpoint that was left out comes back.
    pub(crate) fn is_trial(&self) -> bool {
        self.pick.trial
    }

    /// Whether session affinity chose the endpoint.
    pub(crate) fn is_remembered(&self) -> bool {
        self.pick.remembered
    }

    /// The endpoint answered.
    pub(crate) fn succeeded(mut self) {
        self.reported = true;
        self.portal.balancer().succeeded(self.address().0);
    }

    /// The endpoint was not reached, by the fault of `blame`.
    pub(crate) fn failed(mut self, blame: Blame, now: Instant) {
        let address = self.pick.endpoint.address;
        match blame {
            Blame::Endpoint => {
                self.portal.balancer().failed(address, self.pick.trial, now);
            }
            Blame::Way => self.portal.balancer().way_failed(address, now),
            // Dropped, it says nothing about the endpoint.
            Blame::Host => return,
        }
        self.reported = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.reported && self.pick.trial {
            let now = tokio::time::Instant::now().into_std();
            self.portal.balancer().abandoned(&self.pick, now);
        }
    }
}
