//! All UDP portals that are open, each with a socket and a task of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use edgemesh_plan::Frontend;
use tokio_util::sync::CancellationToken;

use crate::addrs::ListenAddr;
use crate::portal::ActivePortal;
use crate::portal_table::PortalTable;
use crate::socket::{any_port, bind_udp};
use crate::tasks::{TaskName, Tasks};
use crate::udp::{Flows, UdpPortal};

/// The open portals.
pub(crate) struct UdpPortals {
    shared: Arc<Flows>,
    open: BTreeMap<Frontend, Door>,
    /// Those whose address another Service has taken over, until no rule leads to them.
    replaced: Vec<Door>,
}

/// A portal's socket as seen from outside its task.
struct Door {
    port: u16,
    portal: Arc<ActivePortal>,
    stop: CancellationToken,
}

impl Door {
    fn serves(&self, portal: &Arc<ActivePortal>) -> bool {
        Arc::ptr_eq(&self.portal, portal) && !self.stop.is_cancelled()
    }
}

impl UdpPortals {
    pub(crate) fn new(shared: Arc<Flows>) -> Self {
        Self {
            shared,
            open: BTreeMap::new(),
            replaced: Vec::new(),
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
        let socket = bind_udp(ListenAddr(any_port(intercept)))?;
        let port = socket.local_addr()?.port();
        let stop = CancellationToken::new();
        let task = UdpPortal::new(socket, Arc::clone(portal), Arc::clone(&self.shared));
        tasks.own(
            TaskName::UdpPortal(portal.frontend),
            stop.clone(),
            task.run(stop.clone()),
        );
        let door = Door {
            port,
            portal: Arc::clone(portal),
            stop,
        };
        self.replaced
            .extend(self.open.insert(portal.frontend, door));
        Ok(port)
    }

    /// Closes those that `table` has no more.
    pub(crate) fn close_those_gone_from(&mut self, table: &PortalTable) {
        self.open.retain(|frontend, door| {
            let stays = table.get(frontend).is_some();
            if !stays {
                door.stop.cancel();
            }
            stays
        });
        self.replaced.drain(..).for_each(|door| door.stop.cancel());
    }

    /// Closes all.
    pub(crate) fn close(&mut self) {
        self.close_those_gone_from(&PortalTable::default());
    }
}
