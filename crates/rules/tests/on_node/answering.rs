//! Somebody who answers where portals lead to, in place of the agent.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use edgemesh_catalog::Protocol;
use edgemesh_lab::{Namespace, Node, Place, connect_from};
use edgemesh_plan::Frontend;
use edgemesh_rules::{Family, Mark, PortalRule, RuleComment, Ruleset};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

use super::{cluster_ip, intercept};

const NAME: &[u8] = b"the agent";
const PORT: u16 = 20007;

/// Says "the agent" over TCP and UDP, on the intercept address.
pub(crate) struct Answering {
    family: Family,
    udp_port: u16,
    portals: BTreeMap<&'static str, SocketAddr>,
}

impl Answering {
    /// Puts the address on the node and begins.
    pub(crate) fn on_intercept_address(node: &Node, family: Family) -> Result<Self> {
        let address = intercept(family);
        node.program("ip")
            // With IPv6 it would be tentative for a moment, and could not be bound to.
            .args(["address", "add", &address.to_string(), "dev", "lo", "nodad"])
            .run()?;
        let (listener, socket) = node.namespace().run(|| -> io::Result<_> {
            Ok((
                TcpListener::bind((address, PORT))?,
                UdpSocket::bind((address, 0))?,
            ))
        })??;
        let udp_port = socket.local_addr()?.port();
        // Both end with the lab.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(NAME));
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(NAME, from);
            }
        });
        Ok(Self {
            family,
            udp_port,
            portals: BTreeMap::from([("default/web", (cluster_ip(family, 1), 80).into())]),
        })
    }

    /// Rules by which these portals lead here.
    pub(crate) fn rules(&self, names: &[&str]) -> Result<Arc<Ruleset>> {
        let mut rules = Ruleset::new(intercept(self.family), 20008, Mark::AGENT);
        for name in names {
            let at = self.portal(name);
            for (protocol, to_port) in [(Protocol::Tcp, PORT), (Protocol::Udp, self.udp_port)] {
                let frontend = Frontend {
                    ip: at.ip(),
                    protocol,
                    port: at.port(),
                };
                let comment = RuleComment::new(name);
                rules.insert(
                    frontend,
                    PortalRule {
                        comment,
                        to_port,
                        kernel: None,
                    },
                )?;
            }
        }
        Ok(Arc::new(rules))
    }

    /// Where the portal is.
    pub(crate) fn portal(&self, name: &str) -> SocketAddr {
        self.portals[name]
    }

    /// Who answers at the portal, over TCP.
    pub(crate) fn asked_from(&self, place: &Namespace, portal: &str) -> Result<String> {
        let stream = connect_from(place, self.portal(portal))
            .with_context(|| format!("nobody answers {} at {portal}", place.name()))?;
        who(stream)
    }

    /// Who answers at the portal, over UDP.
    pub(crate) fn udp_asked_from(&self, place: &Namespace, portal: &str) -> Result<String> {
        let to = self.portal(portal);
        let any: IpAddr = match self.family {
            Family::V4 => [0; 4].into(),
            Family::V6 => [0; 16].into(),
        };
        let answer = place.run(|| -> io::Result<String> {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 256];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })?;
        Ok(name_in(&answer.with_context(|| {
            format!("{} at {portal}", place.name())
        })?))
    }

    /// What becomes of a connection that is not made through a portal.
    pub(crate) fn asked_directly_from(&self, place: &Namespace) -> io::Result<TcpStream> {
        connect_from(place, (intercept(self.family), PORT).into())
    }

    /// Who answers the agent's own traffic at the intercept address: our rules let it pass.
    pub(crate) fn asked_by_itself(&self, node: &Node) -> Result<String> {
        let to = SocketAddr::from((intercept(self.family), PORT));
        who(connect_as_agent(node, to)?)
    }
}

/// A connection that carries the agent's mark.
pub(crate) fn connect_as_agent(node: &Node, to: SocketAddr) -> Result<TcpStream> {
    let stream = node.namespace().run(|| -> io::Result<TcpStream> {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::Mark, &Mark::AGENT.value())?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(fd.into())
    })??;
    Ok(stream)
}

fn who(mut stream: TcpStream) -> Result<String> {
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        bail!("no answer");
    }
    Ok(name_in(&answer))
}

/// Identity servers of the lab say `POD saw ...`.
fn name_in(answer: &str) -> String {
    answer.split(" saw ").next().unwrap_or_default().to_owned()
}
