//! The usual stage of a cluster whose nodes sit in a cloud and behind NATs.

use std::fmt::Write;

use anyhow::{Result, ensure};

use crate::internet::Internet;
use crate::lab::Lab;
use crate::link::LinkConditions;
use crate::nat::Nat;
use crate::node::Node;
use crate::site::Site;
use crate::strays::{Stray, StrayKind};

/// Sites and nodes to be; [`Self::create`] makes them.
#[derive(Debug)]
#[must_use]
pub struct SitesBuilder {
    nats: [Nat; 2],
    one_lan: bool,
    edge_link: Option<(LinkConditions, u64)>,
}

impl SitesBuilder {
    /// Both edge sites behind this kind of NAT; default [`Nat::PortPreserving`].
    pub fn edges_behind(mut self, nat: Nat) -> Self {
        self.nats = [nat, nat];
        self
    }

    /// `edge1` and `edge2` behind these kinds of NAT.
    pub fn behind(mut self, edge1: Nat, edge2: Nat) -> Self {
        self.nats = [edge1, edge2];
        self
    }

    /// Both edge nodes on one segment, behind one NAT (`edge1`'s), instead of on a site each.
    pub fn edges_in_one_lan(mut self) -> Self {
        self.one_lan = true;
        self
    }

    /// With emulated links between the edge sites and the internet, under these conditions in
    /// both directions; default: cables. `seed` decides about chance.
    pub fn edges_over(mut self, conditions: LinkConditions, seed: u64) -> Self {
        self.edge_link = Some((conditions, seed));
        self
    }

    /// Makes everything: internet, sites, nodes.
    ///
    /// # Errors
    ///
    /// When the lab has an internet or nodes of these names already.
    pub fn create(self, lab: &Lab) -> Result<Sites> {
        let internet = lab.internet()?;
        let cloud = internet.site("cloud").cloud().create()?;
        let cloud1 = lab.node("cloud1").on(cloud.network()).create()?;
        let cloud2 = lab.node("cloud2").on(cloud.network()).create()?;
        let mut edges = vec![self.edge_site(&internet, "edge1", self.nats[0], 0)?];
        if !self.one_lan {
            edges.push(self.edge_site(&internet, "edge2", self.nats[1], 1)?);
        }
        let edge1 = lab.node("edge1").on(edges[0].network()).create()?;
        let last = &edges[edges.len() - 1];
        let edge2 = lab.node("edge2").on(last.network()).create()?;
        Ok(Sites {
            internet,
            cloud,
            edges,
            cloud1,
            cloud2,
            edge1,
            edge2,
        })
    }

    fn edge_site(&self, internet: &Internet, name: &str, nat: Nat, number: u64) -> Result<Site> {
        let builder = internet.site(name).behind(nat);
        match self.edge_link {
            Some((conditions, seed)) => builder.over(conditions, seed + number).create(),
            None => builder.create(),
        }
    }
}

/// A cloud site with two nodes, whose addresses are public and who know the ways to each
/// other's pods; and two edge nodes, each on a site of its own behind a NAT (or both on one,
/// see [`SitesBuilder::edges_in_one_lan`]). Both edge sites use 192.168.1.0/24, and both edge
/// nodes are 192.168.1.11 there.
///
/// ```no_run
/// use std::time::Duration;
///
/// use edgemesh_lab::{Cut, LinkConditions, Nat, Serve, Sites, Traffic, test};
///
/// # fn main() -> anyhow::Result<()> {
/// test(|lab| {
///     let path = LinkConditions::delay(Duration::from_millis(15)).loss(0.005);
///     let sites = Sites::builder()
///         .behind(Nat::PortPreserving, Nat::Symmetric)
///         .edges_over(path, 1)
///         .create(lab)?;
///     let server = sites.cloud1.pod("server").create()?;
///     let client = sites.edge1.pod("client").create()?;
///     let _echo = server.serve(7, Serve::Echo)?;
///     // … kube-proxy stand-ins and agents on `sites.nodes()` …
///     let held = client.hold("10.96.10.1:7", Duration::from_millis(50))?;
///     sites.edge1_site().uplink().cut(Cut::Silent)?;
///     sites.edge1_site().uplink().restore()?;
///     held.await_echo(Duration::from_secs(2))?.check_whole()?;
///     client.connect_at_once("10.96.10.1:7", 1000, 20_000)?.check_all_intact()?;
///     sites.check_no_strays(&[])
/// })
/// # }
/// ```
#[derive(Debug)]
pub struct Sites {
    /// What lies between the sites.
    pub internet: Internet,
    /// The site of `cloud1` and `cloud2`: 198.51.100.0/24, reachable by everybody.
    pub cloud: Site,
    /// 198.51.100.11.
    pub cloud1: Node,
    /// 198.51.100.12.
    pub cloud2: Node,
    /// 192.168.1.11 on the first edge site.
    pub edge1: Node,
    /// 192.168.1.11 on the second edge site, or 192.168.1.12 on the first.
    pub edge2: Node,
    edges: Vec<Site>,
}

impl Sites {
    /// Sites to be.
    pub fn builder() -> SitesBuilder {
        SitesBuilder {
            nats: [Nat::PortPreserving; 2],
            one_lan: false,
            edge_link: None,
        }
    }

    /// All four nodes: cloud1, cloud2, edge1, edge2.
    #[must_use]
    pub fn nodes(&self) -> [&Node; 4] {
        [&self.cloud1, &self.cloud2, &self.edge1, &self.edge2]
    }

    /// The site that `edge1` is on.
    #[must_use]
    pub fn edge1_site(&self) -> &Site {
        &self.edges[0]
    }

    /// The site that `edge2` is on; may be that of `edge1`.
    #[must_use]
    pub fn edge2_site(&self) -> &Site {
        &self.edges[self.edges.len() - 1]
    }

    /// All sites, the cloud first.
    pub fn all(&self) -> impl Iterator<Item = &Site> {
        std::iter::once(&self.cloud).chain(&self.edges)
    }

    /// What any node or pod has sent to places outside the lab, or to the services of its
    /// surroundings.
    ///
    /// # Errors
    ///
    /// Those of nft.
    pub fn strays(&self) -> Result<Vec<Stray>> {
        let mut strays = Vec::new();
        for site in self.all() {
            strays.extend(site.strays()?);
        }
        Ok(strays)
    }

    /// Checks that no node and no pod has sent anything outside, but for what is of an
    /// `allowed` kind.
    ///
    /// # Errors
    ///
    /// When one has: lists every stray.
    pub fn check_no_strays(&self, allowed: &[StrayKind]) -> Result<()> {
        let mut listed = String::new();
        for stray in self.strays()? {
            if !allowed.contains(&stray.kind()) {
                writeln!(listed, "{stray}")?;
            }
        }
        ensure!(listed.is_empty(), "packets left the cluster:\n{listed}");
        Ok(())
    }
}
