//! The agent's address and its last-resort routes on the node.
//!
//! * The **intercept address**, on the loopback device: portals lead to it, and the
//!   agent's listeners are bound to it. (Redirecting to an address of the incoming
//!   interface would fail where that has none, as with Calico's pods.)
//! * The **last-resort routes**: where no route covers a ClusterIP, the kernel refuses a
//!   connection of the host itself before any rule is asked. They are in a routing table
//!   that is looked up after all others, so that they do nothing as long as there is any
//!   route.
//!
//! All of it carries a tag, by which it is told from what others put there.

mod intercept_address;
mod last_resort_route;
mod route_socket;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub(crate) use intercept_address::LOOPBACK;
pub use last_resort_route::{LAST_RESORT_PRIORITY, LAST_RESORT_TABLE, LAST_RESORT_TABLE_V4};

use crate::{Family, PortalAddresses};
use route_socket::{RouteChanges, RouteSocket};

/// The protocol number of our routes and of our address, out of those that are free for
/// anyone's use (kernel `include/uapi/linux/rtnetlink.h`, `/etc/iproute2/rt_protos`).
pub const OWN_PROTOCOL: u8 = 0xed;

/// After so many looks at unchanged notifications everything is read regardless.
const READ_EVERY: u32 = 30;

/// Owner of one family's address and routes.
#[derive(Debug)]
pub struct HostNetwork {
    intercept: IpAddr,
    socket: RouteSocket,
    changes: Option<RouteChanges>,
    known: Option<PortalAddresses>,
    looks: u32,
}

/// The address or the routes could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing}{}", hint(.source))]
pub struct HostNetworkError {
    doing: String,
    source: io::Error,
}

/// What was changed on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetworkChanges {
    /// The intercept address was added (or removed).
    pub address: bool,
    /// The rule that leads to our routing table was added (or removed); IPv6 alone has one.
    pub rule: bool,
    /// Routes that were added.
    pub routes_added: usize,
    /// Routes that were removed.
    pub routes_removed: usize,
    /// How long it took.
    pub took: Duration,
}

impl HostNetwork {
    /// Makes ready; changes nothing. `intercept` also sets the family.
    ///
    /// # Errors
    ///
    /// When the kernel gives no netlink socket.
    pub fn open(intercept: IpAddr) -> Result<Self, HostNetworkError> {
        let socket = RouteSocket::open()?;
        let changes = RouteChanges::listen(Family::of(intercept), socket.port())
            .inspect_err(|error| {
                tracing::warn!(%error, "not told of changed routes; reading them each time");
            })
            .ok();
        Ok(Self {
            intercept,
            socket,
            changes,
            known: None,
            looks: 0,
        })
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.intercept)
    }

    /// Brings the intercept address there, which listeners need, and leaves routes as they
    /// are: an agent that still runs may have made them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn ensure_address(&mut self) -> Result<(), HostNetworkError> {
        let handle = self.socket.handle()?;
        intercept_address::ensure(&handle, self.intercept).await?;
        Ok(())
    }

    /// Brings the intercept address there, and a last-resort route for each of these
    /// addresses, which are of this family. The first call takes over what another process of
    /// the agent left; a later one costs what changed.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the next call reads back what is there.
    pub async fn apply(
        &mut self,
        cluster_ips: &PortalAddresses,
    ) -> Result<HostNetworkChanges, HostNetworkError> {
        match self.known.take() {
            Some(known) => self.change(&known, cluster_ips).await,
            None => self.set_right(cluster_ips).await,
        }
    }

    /// Finds out whether all is still there, and puts back what is not. Costs next to
    /// nothing as long as the kernel tells of no change.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub async fn verify(
        &mut self,
        cluster_ips: &PortalAddresses,
    ) -> Result<HostNetworkChanges, HostNetworkError> {
        self.looks = (self.looks + 1) % READ_EVERY;
        let told = self.changes.as_mut().is_none_or(RouteChanges::any);
        if !told && self.looks != 0 && self.known.as_ref() == Some(cluster_ips) {
            return Ok(HostNetworkChanges::default());
        }
        self.set_right(cluster_ips).await
    }

    /// Takes all of it away. Fine when nothing is there.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub async fn remove(&mut self) -> Result<HostNetworkChanges, HostNetworkError> {
        self.known = None;
        let family = self.family();
        remove(&mut self.socket, family, &[self.intercept]).await
    }

    async fn set_right(
        &mut self,
        wanted: &PortalAddresses,
    ) -> Result<HostNetworkChanges, HostNetworkError> {
        let started = Instant::now();
        self.known = None;
        let family = self.family();
        let handle = self.socket.handle()?;
        last_resort_route::remove_needless_rule(&handle, family).await?;
        // The routes name the address as their source, so it comes first.
        let address = intercept_address::ensure(&handle, self.intercept).await?;
        let there = last_resort_route::read(&handle, self.intercept).await?;
        let (added, removed) =
            last_resort_route::change(&handle, self.intercept, &there, wanted.keys()).await?;
        let is_needed = !wanted.is_empty();
        let rule = last_resort_route::set_rule(&handle, family, is_needed).await?;
        self.known = Some(wanted.clone());
        Ok(HostNetworkChanges {
            address,
            rule,
            routes_added: added,
            routes_removed: removed,
            took: started.elapsed(),
        })
    }

    async fn change(
        &mut self,
        known: &PortalAddresses,
        wanted: &PortalAddresses,
    ) -> Result<HostNetworkChanges, HostNetworkError> {
        let started = Instant::now();
        let (mut gone, mut new) = (BTreeSet::new(), BTreeSet::new());
        for (&ip, before, after) in known.differing(wanted) {
            match (before, after) {
                (Some(_), None) => gone.insert(ip),
                (None, Some(_)) => new.insert(ip),
                (Some(_), Some(_)) | (None, None) => continue,
            };
        }
        if gone.is_empty() && new.is_empty() {
            self.known = Some(wanted.clone());
            return Ok(HostNetworkChanges::default());
        }
        let handle = self.socket.handle()?;
        let there = last_resort_route::Found::all_ours(&gone);
        let (routes_added, routes_removed) =
            last_resort_route::change(&handle, self.intercept, &there, &new).await?;
        let is_needed = !wanted.is_empty();
        let rule = if known.is_empty() == is_needed {
            last_resort_route::set_rule(&handle, self.family(), is_needed).await?
        } else {
            false
        };
        self.known = Some(wanted.clone());
        Ok(HostNetworkChanges {
            address: false,
            rule,
            routes_added,
            routes_removed,
            took: started.elapsed(),
        })
    }
}

/// Takes away what agents left in one family, whatever their settings were: all that
/// carries our tag, and `intercepts` where the kernel keeps no tags on addresses.
pub(crate) async fn remove_left_behind(
    family: Family,
    intercepts: &[IpAddr],
) -> Result<HostNetworkChanges, HostNetworkError> {
    remove(&mut RouteSocket::open()?, family, intercepts).await
}

async fn remove(
    socket: &mut RouteSocket,
    family: Family,
    intercepts: &[IpAddr],
) -> Result<HostNetworkChanges, HostNetworkError> {
    let started = Instant::now();
    let handle = socket.handle()?;
    let rule = last_resort_route::remove_rule(&handle, family).await?;
    let routes_removed = last_resort_route::remove_all(&handle, family).await?;
    let address = intercept_address::remove(&handle, family, intercepts).await?;
    Ok(HostNetworkChanges {
        address,
        rule,
        routes_added: 0,
        routes_removed,
        took: started.elapsed(),
    })
}

impl HostNetworkChanges {
    /// Whether nothing was changed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        !self.address && !self.rule && self.routes_added == 0 && self.routes_removed == 0
    }
}

impl fmt::Display for HostNetworkChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.address {
            parts.push("the intercept address".to_owned());
        }
        if self.rule {
            parts.push(format!("the rule of priority {LAST_RESORT_PRIORITY}"));
        }
        let routes = self.routes_added + self.routes_removed;
        if routes > 0 {
            parts.push(format!("{routes} last-resort routes"));
        }
        if parts.is_empty() {
            parts.push("nothing".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

impl HostNetworkError {
    fn new(doing: impl Into<String>, source: io::Error) -> Self {
        Self {
            doing: doing.into(),
            source,
        }
    }

    fn of_request(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        Self::new(doing, source)
    }

    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.source.kind() != io::ErrorKind::PermissionDenied
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (it takes root, or CAP_NET_ADMIN on the host's network: hostNetwork and that \
             capability in the pod's securityContext)"
        }
        _ => "",
    }
}
