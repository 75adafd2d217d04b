//! The way between a site's router and the internet: a cable or an emulated link, which can
//! be cut, and the public address the site is known by.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::link::{Direction, EmulatedLink, LinkConditions, LinkStatistics};
use crate::namespace::Namespace;

/// The router's device towards the internet.
pub(crate) const OUTSIDE: &str = "wan";

/// How a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Packets vanish, and nobody is told: a break somewhere beyond the next device.
    Silent,
    /// The cable is pulled out: the device loses its carrier, and the kernel tells so.
    Unplugged,
}

/// What to make an [`Uplink`] of.
#[derive(Debug)]
pub(crate) struct Plug<'a> {
    /// The namespaces of the router and of the internet.
    pub(crate) router: &'a Namespace,
    pub(crate) internet: &'a Namespace,
    /// The internet's own address on all uplinks.
    pub(crate) gateway: Ipv4Addr,
    /// The internet's device; its name is unique there.
    pub(crate) device: String,
    pub(crate) address: Ipv4Addr,
    /// A /24 inside that the internet shall know the way to.
    pub(crate) routed: Option<Ipv4Addr>,
    /// The seed of an emulated link; `None`: a cable (veth).
    pub(crate) emulated: Option<u64>,
}

/// A site's way to the internet. Always the device `wan` on the router.
#[derive(Debug)]
pub struct Uplink {
    router: Namespace,
    internet: Namespace,
    gateway: Ipv4Addr,
    device: String,
    routed: Option<Ipv4Addr>,
    link: Option<EmulatedLink>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    address: Ipv4Addr,
    cut: Option<Cut>,
}

impl Uplink {
    pub(crate) fn lay(plug: Plug<'_>) -> Result<Self> {
        let Plug {
            router,
            internet,
            device,
            ..
        } = &plug;
        let link = match plug.emulated {
            Some(seed) => Some(EmulatedLink::lay(
                (router, OUTSIDE),
                (internet, device),
                seed,
            )?),
            None => {
                internet.ip(&format!(
                    "link add {device} type veth peer name {OUTSIDE} netns {}\n",
                    router.name()
                ))?;
                None
            }
        };
        let uplink = Self {
            router: plug.router.clone(),
            internet: plug.internet.clone(),
            gateway: plug.gateway,
            routed: plug.routed,
            link,
            state: Mutex::new(State {
                address: plug.address,
                cut: None,
            }),
            device: plug.device,
        };
        uplink.internet.ip(&format!(
            "link set {0} up\naddress add {1}/32 dev {0}\n",
            uplink.device, uplink.gateway
        ))?;
        uplink.router.ip(&format!("link set {OUTSIDE} up\n"))?;
        uplink.take_address(plug.address)?;
        uplink.internet.ip(&uplink.ways_in(plug.address))?;
        Ok(uplink)
    }

    /// The router's address on the internet.
    #[must_use]
    pub fn public_address(&self) -> Ipv4Addr {
        self.state().address
    }

    /// Gives the router another public address, as providers do over night: every mapping of
    /// its NAT is gone. [`crate::Internet::free_address`] has one.
    ///
    /// # Errors
    ///
    /// When somebody has the address, or while the uplink is cut.
    pub fn set_public_address(&self, address: Ipv4Addr) -> Result<()> {
        let mut state = self.state();
        ensure!(
            state.cut.is_none(),
            "the uplink of {} is cut; restore it before its address changes",
            self.router.name()
        );
        self.internet
            .ip(&format!("route add {address}/32 dev {}\n", self.device))
            .with_context(|| format!("{address} is somebody else's"))?;
        self.take_address(address)?;
        self.router
            .ip(&format!("address del {}/32 dev {OUTSIDE}\n", state.address))?;
        let gone = format!("route del {}/32 dev {}\n", state.address, self.device);
        self.internet.ip(&(self.ways_in(address) + &gone))?;
        state.address = address;
        Ok(())
    }

    /// Cuts the uplink in both directions, until [`Self::restore`].
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn cut(&self, cut: Cut) -> Result<()> {
        let mut state = self.state();
        self.mend(&state)?;
        match cut {
            Cut::Silent => self.drop_all(true)?,
            Cut::Unplugged if self.link.is_some() => {
                self.drop_all(true)?;
                self.router
                    .ip(&format!("link set {OUTSIDE} carrier off\n"))?;
            }
            Cut::Unplugged => self
                .internet
                .ip(&format!("link set {} down\n", self.device))?,
        }
        state.cut = Some(cut);
        Ok(())
    }

    /// Brings a cut uplink back; does nothing when it is whole.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn restore(&self) -> Result<()> {
        let mut state = self.state();
        self.mend(&state)?;
        state.cut = None;
        Ok(())
    }

    /// Puts one direction under conditions, from now on.
    ///
    /// # Errors
    ///
    /// When the uplink was made as a plain cable.
    pub fn set_conditions(&self, direction: Direction, conditions: LinkConditions) -> Result<()> {
        self.emulated()?.set(direction, conditions);
        Ok(())
    }

    /// Puts both directions under the same conditions, from now on.
    ///
    /// # Errors
    ///
    /// When the uplink was made as a plain cable.
    pub fn set_conditions_both_ways(&self, conditions: LinkConditions) -> Result<()> {
        self.emulated()?.set_both(conditions);
        Ok(())
    }

    /// What one direction has done so far.
    ///
    /// # Errors
    ///
    /// When the uplink was made as a plain cable.
    pub fn statistics(&self, direction: Direction) -> Result<LinkStatistics> {
        Ok(self.emulated()?.statistics(direction))
    }

    fn emulated(&self) -> Result<&EmulatedLink> {
        self.link.as_ref().with_context(|| {
            format!(
                "the uplink of {} is a plain cable, without conditions; give the site's builder \
                 some (SiteBuilder::over)",
                self.router.name()
            )
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_address(&self, address: Ipv4Addr) -> Result<()> {
        let gateway = self.gateway;
        self.router.ip(&format!(
            "address add {address}/32 dev {OUTSIDE}\n\
             route replace {gateway} dev {OUTSIDE} scope link\n\
             route replace default via {gateway} dev {OUTSIDE}\n"
        ))
    }

    /// The internet's routes to the site.
    fn ways_in(&self, address: Ipv4Addr) -> String {
        let device = &self.device;
        let mut lines = format!("route replace {address}/32 dev {device}\n");
        if let Some(range) = self.routed {
            lines += &format!("route replace {range}/24 via {address} dev {device}\n");
        }
        lines
    }

    fn mend(&self, state: &State) -> Result<()> {
        match state.cut {
            None => Ok(()),
            Some(Cut::Silent) => self.drop_all(false),
            Some(Cut::Unplugged) if self.link.is_some() => {
                self.router
                    .ip(&format!("link set {OUTSIDE} carrier on\n"))?;
                self.router.await_carrier(OUTSIDE)?;
                self.drop_all(false)
            }
            Some(Cut::Unplugged) => {
                let lines = format!("link set {} up\n", self.device);
                self.internet.ip(&(lines + &self.ways_in(state.address)))?;
                self.internet.await_carrier(&self.device)?;
                self.router.await_carrier(OUTSIDE)
            }
        }
    }

    fn drop_all(&self, drop: bool) -> Result<()> {
        let verb = if drop { "add" } else { "delete" };
        let device = &self.device;
        self.internet.nft(&format!(
            "{verb} element inet lab-cuts cut {{ {device} }}\n"
        ))
    }
}

/// The table of the internet's namespace that makes cut devices drop everything.
pub(crate) const CUTS: &str = "table inet lab-cuts {
  set cut { type ifname; }
  chain from {
    type filter hook prerouting priority raw; policy accept;
    iifname @cut drop
  }
  chain towards {
    type filter hook postrouting priority raw; policy accept;
    oifname @cut drop
  }
}
";
