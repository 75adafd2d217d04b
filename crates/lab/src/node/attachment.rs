//! Where a node is attached, and what may become of that while it runs.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::Result;

use super::Node;
use crate::client::await_link;
use crate::network::{BRIDGE, Member, Network};
use crate::uplink::Cut;

/// A node's place on a segment.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) network: Arc<Network>,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Attachment {
    /// A free place for the lab's `number`th node.
    pub(super) fn next(network: &Arc<Network>, number: u8, ipv6: bool) -> Result<Self> {
        let (v4, v6) = network.next_addresses(number)?;
        Ok(Self {
            network: Arc::clone(network),
            v4,
            v6: ipv6.then_some(v6),
        })
    }
}

impl Node {
    /// Gives it another IPv4 address on its segment, as a DHCP server may: the old one goes
    /// with all its routes, then come the new one and the routes by it. The neighbours' ways
    /// to its pods follow. `last` is the last part of the address.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn change_address(&self, last: u8) -> Result<()> {
        let Attachment { network, v4, .. } = self.attachment();
        let new = network.address_v4(last);
        self.namespace.ip(&format!(
            "address del {v4}/24 dev eth0\n\
             address add {new}/24 dev eth0\n\
             route replace default via {}\n",
            network.router_v4()
        ))?;
        network.readdress(&self.namespace, new)?;
        self.lock_attachment().v4 = new;
        await_link(&self.namespace, network.router_v4().into())
    }

    /// Moves it to another segment, as from Wi-Fi to a mobile network: its device vanishes
    /// with addresses and routes, and one with others comes in its place. Its pods stay with
    /// it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn move_to(&self, network: &Arc<Network>) -> Result<()> {
        let next = Attachment::next(network, self.number, self.ipv6)?;
        let old = self.attachment().network;
        old.leave(&self.namespace)?;
        old.namespace().ip(&format!("link del {}\n", self.port()))?;
        *self.lock_attachment() = next;
        self.attach()?;
        self.add_default_routes()?;
        self.await_routers()
    }

    /// Cuts it off its segment, until [`Self::plug_in`]; its pods stay with it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn cut_off(&self, cut: Cut) -> Result<()> {
        self.plug_in()?;
        let port = self.port();
        let network = self.attachment().network;
        network.namespace().ip(&match cut {
            // On its own the port would answer for the router's addresses.
            Cut::Silent => format!("link set {port} nomaster arp off\n"),
            Cut::Unplugged => format!("link set {port} down\n"),
        })
    }

    /// Ends what [`Self::cut_off`] did; does nothing on a node that is not cut off.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn plug_in(&self) -> Result<()> {
        let port = self.port();
        let network = self.attachment().network;
        let router = network.namespace();
        router.ip(&format!("link set {port} master {BRIDGE} arp on up\n"))?;
        router.await_carrier(&port)?;
        self.namespace.await_carrier("eth0")
    }

    pub(super) fn attachment(&self) -> Attachment {
        self.lock_attachment().clone()
    }

    /// Makes the device, with the addresses, and the ways to pods.
    pub(super) fn attach(&self) -> Result<()> {
        let Attachment { network, v4, v6 } = self.attachment();
        let (port, router) = (self.port(), network.namespace());
        let mut lines = format!(
            "link add eth0 type veth peer name {port} netns {}\n\
             link set eth0 up\n\
             address add {v4}/24 dev eth0\n",
            router.name()
        );
        if let Some(address) = v6 {
            lines += &format!("address add {address}/64 dev eth0 nodad\n");
        }
        self.namespace.ip(&lines)?;
        router.ip(&format!("link set {port} master {BRIDGE} up\n"))?;
        network.join(Member {
            namespace: self.namespace.clone(),
            uplink_v4: v4,
            uplink_v6: v6,
            pods_v4: self.pods_v4(),
            pods_v6: self.pods_v6(),
        })
    }

    /// Waits for the link to the router, in each family the node has.
    pub(super) fn await_routers(&self) -> Result<()> {
        let network = self.attachment().network;
        await_link(&self.namespace, network.router_v4().into())?;
        if self.ipv6 {
            await_link(&self.namespace, network.router_v6().into())?;
        }
        Ok(())
    }

    /// The bridge port it hangs on.
    fn port(&self) -> String {
        format!("to-node{}", self.number)
    }

    fn lock_attachment(&self) -> MutexGuard<'_, Attachment> {
        self.attachment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
