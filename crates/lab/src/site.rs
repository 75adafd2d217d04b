//! A site: a segment for nodes, with a router that leads to the internet.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::client::Place;
use crate::internet::Internet;
use crate::link::LinkConditions;
use crate::namespace::Namespace;
use crate::nat::Nat;
use crate::network::{BRIDGE, Network, PodRoutes};
use crate::strays::{Stray, StrayCounter};
use crate::uplink::{OUTSIDE, Uplink};

/// What most homes have; every private site has the same unless told otherwise, so that
/// their addresses overlap.
const PRIVATE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 0);
const PRIVATE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x192, 0x168, 1, 0, 0, 0, 0);

/// A site to be; [`Self::create`] makes it.
#[derive(Debug)]
#[must_use]
pub struct SiteBuilder<'internet> {
    internet: &'internet Internet,
    name: String,
    range_v4: Ipv4Addr,
    range_v6: Ipv6Addr,
    nat: Nat,
    conditions: Option<(LinkConditions, u64)>,
    pod_routes: PodRoutes,
}

impl<'internet> SiteBuilder<'internet> {
    pub(crate) fn new(internet: &'internet Internet, name: &str) -> Self {
        Self {
            internet,
            name: name.to_owned(),
            range_v4: PRIVATE,
            range_v6: PRIVATE_V6,
            nat: Nat::PortPreserving,
            conditions: None,
            pod_routes: PodRoutes::Nowhere,
        }
    }

    /// Behind this kind of NAT; default [`Nat::PortPreserving`].
    pub fn behind(mut self, nat: Nat) -> Self {
        self.nat = nat;
        self
    }

    /// With this /24 for its nodes instead of 192.168.1.0/24. The internet knows the way to
    /// one that isn't private; further public ones are to be from 198.18.0.0/15, or packets
    /// to them count as strays.
    pub fn range(mut self, network: Ipv4Addr) -> Self {
        self.range_v4 = network;
        self
    }

    /// A cloud: public addresses 198.51.100.0/24 for its nodes and no NAT, and nodes that
    /// know the ways to each other's pods.
    pub fn cloud(mut self) -> Self {
        self.range_v4 = Ipv4Addr::new(198, 51, 100, 0);
        self.range_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0);
        self.nat = Nat::None;
        self.pod_routes = PodRoutes::Everywhere;
        self
    }

    /// With an emulated link to the internet under these conditions in both directions,
    /// whose chance follows `seed`. Default: a cable, which can't have conditions.
    pub fn over(mut self, conditions: LinkConditions, seed: u64) -> Self {
        self.conditions = Some((conditions, seed));
        self
    }

    /// With nodes and a router that know the ways to all pods of the site. Default: a node
    /// alone knows its pods, and speaks for them (`ipMasq` of CNI's plugins).
    pub fn with_pods_routed(mut self) -> Self {
        self.pod_routes = PodRoutes::Everywhere;
        self
    }

    /// Makes the site: a router called `site-NAME`, with the first address of the range.
    ///
    /// # Errors
    ///
    /// When the name is taken, or private addresses were to be routed.
    pub fn create(self) -> Result<Site> {
        let namespace = format!("site-{}", self.name);
        let network = Network::of_site(&namespace, self.range_v4, self.range_v6, self.pod_routes)?;
        let router = network.namespace().clone();
        let routed = (!self.range_v4.is_private()).then_some(self.range_v4);
        let seed = self.conditions.map(|(_, seed)| seed);
        let uplink = self.internet.plug_in(&router, routed, seed)?;
        if let Some((conditions, _)) = self.conditions {
            uplink.set_conditions_both_ways(conditions)?;
        }
        let site = Site {
            strays: StrayCounter::begin(&router, &self.name, BRIDGE, OUTSIDE)?,
            name: self.name,
            network: Arc::new(network),
            uplink,
            is_routed: routed.is_some(),
            nat: Mutex::new(Nat::None),
        };
        site.set_nat(self.nat)?;
        Ok(site)
    }
}

/// A site of the lab. Put nodes on it by `lab.node(…).on(site.network())`: the first has the
/// address ending in 11.
#[derive(Debug)]
pub struct Site {
    name: String,
    network: Arc<Network>,
    uplink: Uplink,
    strays: StrayCounter,
    is_routed: bool,
    nat: Mutex<Nat>,
}

impl Place for Site {
    /// Its router's.
    fn namespace(&self) -> &Namespace {
        self.network.namespace()
    }
}

impl Site {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its segment, for nodes.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Its way to the internet.
    #[must_use]
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// What its router does at present.
    #[must_use]
    pub fn nat(&self) -> Nat {
        *self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another router in the place of the present one: other rules, and no memory of
    /// connections.
    ///
    /// # Errors
    ///
    /// When private addresses were to be routed: others' routers would not know the way.
    pub fn set_nat(&self, nat: Nat) -> Result<()> {
        ensure!(
            self.is_routed || nat != Nat::None,
            "{} has private addresses, which nobody on the internet could answer without a NAT",
            self.name
        );
        let mut present = self.nat.lock().unwrap_or_else(PoisonError::into_inner);
        self.namespace()
            .nft(&nat.render(BRIDGE, OUTSIDE))
            .with_context(|| format!("cannot make the router of {} a {nat}", self.name))?;
        self.forget_connections()?;
        *present = nat;
        Ok(())
    }

    /// Makes the router forget all connections, as by a restart: with a NAT, those that are
    /// open have to be made anew, or begin a new mapping.
    ///
    /// # Errors
    ///
    /// Those of conntrack (the program).
    pub fn forget_connections(&self) -> Result<()> {
        self.program("conntrack").arg("--flush").run().map(|_| ())
    }

    /// What nodes and pods of this site have sent to places outside the lab, and to the
    /// services of their surroundings. Sorted.
    ///
    /// # Errors
    ///
    /// Those of nft.
    pub fn strays(&self) -> Result<Vec<Stray>> {
        self.strays.read()
    }
}
