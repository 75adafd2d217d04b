//! What the tunnel is told at its start, from what the operator wrote. Pure.

use std::time::Duration;

use edgemesh_catalog::NodeName;
use edgemesh_tunnel::{Limits, Settings, Timing};

use crate::config::{Config, TunnelLimits};

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
        keep_alive: tunnel.keep_alive,
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
        config.edge_tunnel.limits.streams_in_per_peer = 7;
        config.edge_proxy.dial_timeout = Duration::from_secs(9);
        let settings = settings(&config, &NodeName::new("edge-1"));
        assert_eq!(settings.node, NodeName::new("edge-1"));
        assert_eq!(settings.listen_port, 30_006);
        assert!(settings.keep_alive);
        assert_eq!(settings.limits.streams_in_per_peer, 7);
        assert_eq!(settings.limits.streams_out, 10_240);
        assert_eq!(settings.timing.dial, Duration::from_secs(9));
        assert_eq!(settings.mark, Some(config.edge_proxy.socket_mark));
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
