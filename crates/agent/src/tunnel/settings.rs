//! What the tunnel is told at its start, from what the operator wrote. Pure.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use edgemesh_catalog::NodeName;
use edgemesh_tunnel::{Limits, RelayAddress, RelayNode, RelaySettings, Settings, Timing};

use crate::config::{self, Config, EdgeTunnelConfig, TunnelLimits};

/// A UDP flow lives longer at the exit than at the entry, which alone knows its client.
const EXIT_OUTLIVES_ENTRY: Duration = Duration::from_secs(30);

/// In place of a limit that is switched off: more than there can be open files.
const UNLIMITED: usize = 1 << 20;

/// The tunnel's settings on `node`.
pub(super) fn settings(config: &Config, node: &NodeName) -> Settings {
    let (tunnel, proxy) = (&config.edge_tunnel, &config.edge_proxy);
    Settings {
        listen_port: tunnel.listen_port,
        advertise: tunnel.advertised().collect(),
        relay_nodes: relay_nodes(tunnel),
        relay: tunnel
            .is_relay(node.as_str())
            .then(|| relay_settings(tunnel)),
        never: vec![config.common.intercept_v4.into(), proxy.intercept_v6.into()],
        version: env!("CARGO_PKG_VERSION").into(),
        keep_alive: tunnel.keep_alive,
        tcp_carrier: tunnel.tcp_carrier,
        mark: Some(proxy.socket_mark),
        limits: limits(&tunnel.limits),
        timing: Timing {
            dial: proxy.dial_timeout,
            udp_idle: proxy.udp_idle_timeout + EXIT_OUTLIVES_ENTRY,
            ..Timing::default()
        },
        ..Settings::of(node.clone())
    }
}

fn relay_nodes(tunnel: &EdgeTunnelConfig) -> Vec<RelayNode> {
    let relay_port = tunnel.relay_port();
    let relay_node = |relay: &config::RelayNode| RelayNode {
        node: NodeName::new(relay.node_name.as_str()),
        addresses: relay
            .advertise_address
            .iter()
            .filter_map(|address| RelayAddress::new(address.with_port(relay_port)))
            .collect(),
    };
    tunnel.relay_nodes.iter().map(relay_node).collect()
}

fn relay_settings(tunnel: &EdgeTunnelConfig) -> RelaySettings {
    let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    RelaySettings {
        listen: everywhere(tunnel.relay_port()),
        discovery: everywhere(tunnel.address_discovery_port),
        ..RelaySettings::default()
    }
}

fn limits(limits: &TunnelLimits) -> Limits {
    let limit = |number| if limits.enable { number } else { UNLIMITED };
    Limits {
        streams_in: limit(limits.streams_in),
        streams_in_per_peer: limit(limits.streams_in_per_peer),
        streams_out: limit(limits.streams_out),
        streams_out_per_peer: limit(limits.streams_out_per_peer),
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_wrote_reaches_the_tunnel() {
        let mut config = Config::without_file();
        config.edge_tunnel.listen_port = 30_006;
        config.edge_tunnel.keep_alive = true;
        config.edge_tunnel.tcp_carrier = true;
        config.edge_tunnel.limits.streams_in_per_peer = 7;
        config.edge_proxy.dial_timeout = Duration::from_secs(9);
        let settings = settings(&config, &NodeName::new("edge-1"));
        assert_eq!(settings.node, NodeName::new("edge-1"));
        assert_eq!(settings.listen_port, 30_006);
        assert!(settings.keep_alive && settings.tcp_carrier);
        assert_eq!(settings.limits.streams_in_per_peer, 7);
        assert_eq!(settings.limits.streams_out, 10_240);
        assert_eq!(settings.timing.dial, Duration::from_secs(9));
        assert_eq!(settings.mark, Some(config.edge_proxy.socket_mark));
    }

    #[test]
    fn a_node_that_is_named_as_one_is_a_relay_at_the_ports_told() {
        let mut config = Config::without_file();
        config.edge_tunnel.listen_port = 30_006;
        config.edge_tunnel.relay_nodes = vec![config::RelayNode {
            node_name: "cloud".to_owned(),
            advertise_address: vec![config::AdvertisedAddress {
                ip: [203, 0, 113, 5].into(),
                port: None,
            }],
        }];
        let of = |node| settings(&config, &NodeName::new(node));
        assert!(of("edge-1").relay.is_none());
        let cloud = of("cloud");
        let relay = cloud.relay.unwrap();
        assert_eq!(
            (relay.listen.port(), relay.discovery.port()),
            (30_006, 20_009)
        );
        let at = cloud.relay_nodes[0].addresses[0].to_string();
        assert_eq!(at, "http://203.0.113.5:30006/");
    }

    #[test]
    fn a_flow_ends_at_its_entry_first() {
        let config = Config::without_file();
        let settings = settings(&config, &NodeName::new("edge-1"));
        assert!(settings.timing.udp_idle > config.edge_proxy.udp_idle_timeout);
    }

    #[test]
    fn limits_that_are_switched_off_limit_nothing() {
        let mut config = Config::without_file();
        config.edge_tunnel.limits.enable = false;
        let Limits {
            streams_in,
            streams_in_per_peer,
            streams_out,
            streams_out_per_peer,
            handshakes,
        } = settings(&config, &NodeName::new("edge-1")).limits;
        for limit in [
            streams_in,
            streams_in_per_peer,
            streams_out,
            streams_out_per_peer,
        ] {
            assert_eq!(limit, UNLIMITED);
        }
        assert_eq!(handshakes, Limits::default().handshakes);
    }
}
