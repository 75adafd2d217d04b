//! What the tunnel would find on this host: its key, its ports, its relays.

use std::fs;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use edgemesh_catalog::{NodeName, PublicKey};
use edgemesh_tunnel::NodeKey;

use super::listeners::{Bound, bound, is_taken};
use crate::config::{Config, EdgeTunnelConfig};
use crate::tunnel::TunnelReport;

/// How long a relay may take to accept a connection. Over the slowest links that a tunnel is
/// of use on, a round trip takes less than one second.
const RELAY_TIMEOUT: Duration = Duration::from_secs(3);

/// A port that the tunnel wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TunnelPort {
    /// The port.
    pub(super) port: u16,
    /// How it would have it.
    pub(super) bound: Bound,
    /// The configuration's key for it.
    pub(super) key: &'static str,
    /// Whether there is no tunnel without it.
    pub(super) is_needed: bool,
}

/// The tunnel on this host.
#[derive(Clone, Debug)]
pub(super) struct TunnelFacts {
    /// This node's key: none is there before the first start.
    pub(super) key: Result<Option<PublicKey>, String>,
    /// Ports of it that somebody listens on.
    pub(super) taken: Vec<TunnelPort>,
    /// Whether this node is to be a relay.
    pub(super) is_relay: bool,
    /// The other relay nodes, each with the first address that took a connection, or what
    /// became of the attempts.
    pub(super) relays: Vec<(String, Result<SocketAddr, Vec<String>>)>,
    /// What the agent that runs here says of its tunnel.
    pub(super) running: Option<TunnelReport>,
}

/// Looks, and changes nothing: no key is made, no port bound. Each relay sees a connection
/// that ends without a word.
pub(super) fn tunnel_facts(
    config: &Config,
    node: &NodeName,
    state_dir: &Path,
    running: Option<TunnelReport>,
) -> TunnelFacts {
    let is_relay = config.edge_tunnel.is_relay(node.as_str());
    TunnelFacts {
        key: NodeKey::look(state_dir).map_err(|error| {
            let error = anyhow::Error::new(error);
            format!("{error:#}")
        }),
        taken: taken(config, is_relay),
        is_relay,
        relays: relays(&config.edge_tunnel, node),
        running,
    }
}

fn taken(config: &Config, is_relay: bool) -> Vec<TunnelPort> {
    let mut wanted = wanted(config, is_relay);
    wanted.retain(
        |TunnelPort {
             port, bound: kind, ..
         }| {
            let files: [&str; 2] = match kind {
                Bound::TcpListening => ["tcp", "tcp6"],
                Bound::Udp => ["udp", "udp6"],
            };
            let texts = files.into_iter().filter_map(|name| {
                fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok()
            });
            let all: Vec<SocketAddr> = texts.flat_map(|text| bound(&text, *kind)).collect();
            is_taken((Ipv6Addr::UNSPECIFIED, *port).into(), &all)
                || all.iter().any(|at| at.port() == *port)
        },
    );
    wanted
}

/// The ports that the tunnel takes with this configuration.
fn wanted(config: &Config, is_relay: bool) -> Vec<TunnelPort> {
    let (tunnel, reachability) = (&config.edge_tunnel, &config.edge_proxy.reachability);
    let needed = |port, bound, key| TunnelPort {
        port,
        bound,
        key,
        is_needed: true,
    };
    let key = "modules.edgeTunnel.listenPort";
    let mut wanted = vec![needed(tunnel.listen_port, Bound::Udp, key)];
    // A relay hands over what comes to its own door.
    let at_the_door = is_relay && tunnel.relay_port() == tunnel.listen_port;
    if tunnel.tcp_carrier && !at_the_door {
        wanted.push(TunnelPort {
            is_needed: false,
            ..needed(tunnel.listen_port, Bound::TcpListening, key)
        });
    }
    if reachability.probe {
        let key = "modules.edgeProxy.reachability.probePort";
        wanted.push(needed(reachability.probe_port, Bound::Udp, key));
    }
    if is_relay {
        let key = "modules.edgeTunnel.relayListenPort";
        wanted.push(needed(tunnel.relay_port(), Bound::TcpListening, key));
        let key = "modules.edgeTunnel.addressDiscoveryPort";
        wanted.push(needed(tunnel.address_discovery_port, Bound::Udp, key));
    }
    wanted
}

/// All at once: the slowest decides how long it takes.
fn relays(
    config: &EdgeTunnelConfig,
    node: &NodeName,
) -> Vec<(String, Result<SocketAddr, Vec<String>>)> {
    let port = config.relay_port();
    let others = || {
        let mut relays = config.relay_nodes.iter();
        std::iter::from_fn(move || relays.find(|relay| relay.node_name != node.as_str()))
    };
    thread::scope(|scope| {
        let attempts: Vec<_> = others()
            .map(|relay| {
                let addresses = relay.advertise_address.iter();
                let addresses: Vec<_> = addresses.map(|at| at.with_port(port)).collect();
                scope.spawn(move || first_that_accepts(&addresses))
            })
            .collect();
        others()
            .zip(attempts)
            .map(|(relay, attempt)| {
                let outcome = attempt
                    .join()
                    .unwrap_or_else(|_| Err(vec!["the attempt broke off".to_owned()]));
                (relay.node_name.clone(), outcome)
            })
            .collect()
    })
}

fn first_that_accepts(addresses: &[SocketAddr]) -> Result<SocketAddr, Vec<String>> {
    let mut problems = Vec::new();
    for &address in addresses {
        match TcpStream::connect_timeout(&address, RELAY_TIMEOUT) {
            Ok(_) => return Ok(address),
            Err(error) => problems.push(format!("{address}: {}", in_words(&error))),
        }
    }
    Err(problems)
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            format!("no answer within {} s", RELAY_TIMEOUT.as_secs())
        }
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::config::{AdvertisedAddress, RelayNode};

    fn relay(name: &str, at: &[SocketAddr]) -> RelayNode {
        RelayNode {
            node_name: name.to_owned(),
            advertise_address: at
                .iter()
                .map(|at| AdvertisedAddress {
                    ip: at.ip(),
                    port: Some(at.port()),
                })
                .collect(),
        }
    }

    #[test]
    fn a_relay_is_tried_at_each_address_and_oneself_is_not_tried() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = open.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = closed.local_addr().unwrap();
        drop(closed);
        let config = EdgeTunnelConfig {
            relay_nodes: vec![
                relay("cloud1", &[nobody, at]),
                relay("cloud2", &[nobody]),
                relay("edge1", &[nobody]),
            ],
            ..EdgeTunnelConfig::default()
        };
        assert_eq!(
            relays(&config, &NodeName::new("edge1")),
            [
                ("cloud1".to_owned(), Ok(at)),
                ("cloud2".to_owned(), Err(vec![format!("{nobody}: refused")])),
            ]
        );
    }

    #[test]
    fn a_port_that_somebody_has_is_seen_without_binding_it() {
        let somebody = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = somebody.local_addr().unwrap().port();
        let mut config = Config::without_file();
        config.edge_proxy.reachability.probe = false;
        config.edge_tunnel.listen_port = port;
        let of_tunnel = TunnelPort {
            port,
            bound: Bound::Udp,
            key: "modules.edgeTunnel.listenPort",
            is_needed: true,
        };
        assert_eq!(taken(&config, false), [of_tunnel]);
        config.edge_proxy.reachability.probe = true;
        config.edge_proxy.reachability.probe_port = port;
        assert_eq!(taken(&config, false).len(), 2);
        drop(somebody);
        assert_eq!(taken(&config, false), []);
    }

    #[test]
    fn only_the_tunnel_itself_needs_its_port_and_a_relay_has_one_door() {
        let mut config = Config::without_file();
        config.edge_proxy.reachability.probe = false;
        let by_tcp = |config: &Config, is_relay| {
            let all = wanted(config, is_relay).into_iter();
            let by_tcp = all.filter(|port| port.bound == Bound::TcpListening);
            by_tcp
                .map(|port| (port.key, port.is_needed))
                .collect::<Vec<_>>()
        };
        let lanes = ("modules.edgeTunnel.listenPort", false);
        let relay = ("modules.edgeTunnel.relayListenPort", true);
        assert_eq!(by_tcp(&config, false), [lanes]);
        assert_eq!(by_tcp(&config, true), [relay]);
        config.edge_tunnel.relay_listen_port = Some(443);
        assert_eq!(by_tcp(&config, true), [lanes, relay]);
        config.edge_tunnel.tcp_carrier = false;
        assert_eq!(by_tcp(&config, false), []);
    }

    #[test]
    fn no_key_is_made_by_looking() {
        let state = tempfile::tempdir().unwrap();
        let config = Config::without_file();
        let facts = tunnel_facts(&config, &NodeName::new("edge1"), state.path(), None);
        assert_eq!(facts.key, Ok(None));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }
}
