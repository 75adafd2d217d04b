//! All UDP portals that are open, each with a socket and a task of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_plan::Frontend;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addrs::ListenAddr;
use crate::descriptors::Descriptors;
use crate::portal::ActivePortal;
use crate::portal_table::PortalTable;
use crate::recent_ports::RecentPorts;
use crate::socket::{any_port, bind_udp};
use crate::tasks::{TaskName, Tasks};
use crate::udp::{Flows, UdpPortal};

/// The open portals.
pub(crate) struct UdpPortals {
    shared: Arc<Flows>,
    descriptors: Descriptors,
    open: BTreeMap<Frontend, Door>,
    /// Those whose address another Service has taken over, until no rule leads to them.
    replaced: Vec<Door>,
    recent: RecentPorts,
}

/// A portal's socket as seen from outside its task.
struct Door {
    intercept: IpAddr,
    port: u16,
    portal: Arc<ActivePortal>,
    stop: CancellationToken,
    /// None where it had to do with one of those that are kept back.
    _descriptor: Option<OwnedSemaphorePermit>,
}

impl Door {
    fn serves(&self, portal: &Arc<ActivePortal>) -> bool {
        Arc::ptr_eq(&self.portal, portal) && !self.stop.is_cancelled()
    }
}

impl UdpPortals {
    pub(crate) fn new(shared: Arc<Flows>, descriptors: Descriptors) -> Self {
        Self {
            shared,
            descriptors,
            open: BTreeMap::new(),
            replaced: Vec::new(),
            recent: RecentPorts::default(),
        }
    }

    /// The port on `intercept` where `portal` is served; opens it when it is not yet.
    pub(crate) fn port(
        &mut self,
        portal: &Arc<ActivePortal>,
        intercept: IpAddr,
        tasks: &mut Tasks,
    ) -> io::Result<u16> {
        if let Some(door) = self.open.get(&portal.frontend)
            && door.serves(portal)
        {
            return Ok(door.port);
        }
        let (socket, port) = self.bind(intercept)?;
        let stop = CancellationToken::new();
        let task = UdpPortal::new(socket, Arc::clone(portal), Arc::clone(&self.shared));
        tasks.own(
            TaskName::UdpPortal(portal.frontend),
            stop.clone(),
            task.run(stop.clone()),
        );
        let door = Door {
            intercept,
            port,
            portal: Arc::clone(portal),
            stop,
            _descriptor: self.descriptors.for_datagrams(),
        };
        self.replaced
            .extend(self.open.insert(portal.frontend, door));
        Ok(port)
    }

    /// Where nobody serves any more who should: the task has ended by itself.
    pub(crate) fn ended(&self) -> impl Iterator<Item = Frontend> {
        let ended = self
            .open
            .iter()
            .filter(|(_, door)| door.stop.is_cancelled());
        ended.map(|(frontend, _)| *frontend)
    }

    fn bind(&mut self, intercept: IpAddr) -> io::Result<(UdpSocket, u16)> {
        let now = Instant::now().into_std();
        // Held until a good one is found, so that the kernel does not give them again.
        let mut unwanted = Vec::new();
        loop {
            let socket = bind_udp(ListenAddr(any_port(intercept)))?;
            let port = socket.local_addr()?.port();
            // After that many the kernel is short of others.
            if unwanted.len() == 16 || !self.recent.has(intercept, port, now) {
                return Ok((socket, port));
            }
            unwanted.push(socket);
        }
    }

    /// Closes those that `table` has no more.
    pub(crate) fn close_those_gone_from(&mut self, table: &PortalTable) {
        let now = Instant::now().into_std();
        let recent = &mut self.recent;
        let mut close = |door: &Door| {
            door.stop.cancel();
            recent.give_up(door.intercept, door.port, now);
        };
        self.open.retain(|frontend, door| {
            let stays = table.get(frontend).is_some();
            if !stays {
                close(door);
            }
            stays
        });
        self.replaced.drain(..).for_each(|door| close(&door));
    }

    /// Closes all.
    pub(crate) fn close(&mut self) {
        self.close_those_gone_from(&PortalTable::default());
    }
}
