//! What only several keys together can get wrong, and what deserves a word although it
//! is allowed.

use std::net::IpAddr;

use edgemesh_catalog::MeshNode;
use edgemesh_plan::Way;
use edgemesh_reach::OverrideRule;

use super::duration;
use super::findings::Report;
use super::settings::Config;

const ADMIN: &str = "commonConfig.admin.address";
const ENABLE: &str = "modules.edgeProxy.enable";
const LISTEN_PORT: &str = "modules.edgeProxy.listenPort";
const DIAL_TIMEOUT: &str = "modules.edgeProxy.dialTimeout";
const DIAL_DEADLINE: &str = "modules.edgeProxy.dialDeadline";

const PROBE_PORT: &str = "modules.edgeProxy.reachability.probePort";
const OVERRIDES: &str = "modules.edgeProxy.reachability.overrides";

const TUNNEL: &str = "modules.edgeTunnel.enable";
const TUNNEL_PORT: &str = "modules.edgeTunnel.listenPort";
const RELAY_PORT: &str = "modules.edgeTunnel.relayListenPort";
const DISCOVERY_PORT: &str = "modules.edgeTunnel.addressDiscoveryPort";
const ADVERTISE: &str = "modules.edgeTunnel.advertiseAddress";

/// Reports both.
pub(super) fn check(config: &Config, report: &mut Report) {
    check_dialling(config, report);
    check_admin(config, report);
    if config.edge_tunnel.enable {
        check_tunnel(config, report);
    }
    check_reachability(config, report);
    if !report.is_set(ENABLE) {
        let message = "not set, and its default is false as in EdgeMesh: \
                       no Service is intercepted; set it to true";
        report.warning(report.place_of(&[]), ENABLE, message);
    }
}

fn check_dialling(config: &Config, report: &mut Report) {
    let proxy = &config.edge_proxy;
    if proxy.dial_timeout > proxy.dial_deadline {
        let message = format!(
            "one attempt may not take longer ({}) than all together ({DIAL_DEADLINE}, {})",
            duration::show(proxy.dial_timeout),
            duration::show(proxy.dial_deadline),
        );
        let mark = report.place_of(&[DIAL_TIMEOUT, DIAL_DEADLINE]);
        report.error(mark, DIAL_TIMEOUT, message);
    }
}

fn check_admin(config: &Config, report: &mut Report) {
    let Some(admin) = config.common.admin else {
        return;
    };
    let intercepts = [
        IpAddr::V4(config.common.intercept_v4),
        IpAddr::V6(config.edge_proxy.intercept_v6),
    ];
    let mark = report.place_of(&[ADMIN, LISTEN_PORT]);
    if intercepts.contains(&admin.ip()) {
        let message = "must not be an intercept address, which is there for intercepted \
                       connections alone; use 127.0.0.1:20008";
        report.error(mark, ADMIN, message);
    } else if admin.ip().is_unspecified() && admin.port() == config.edge_proxy.listen_port {
        let message = format!("takes the port of {LISTEN_PORT} on every address; use another port");
        report.error(mark, ADMIN, message);
    } else if !admin.ip().is_loopback() {
        let message = format!(
            "serves /metrics, /healthz and /readyz without authentication to whoever reaches {admin}"
        );
        report.warning(mark, ADMIN, message);
    }
}

fn check_reachability(config: &Config, report: &mut Report) {
    let (reachability, tunnel) = (&config.edge_proxy.reachability, &config.edge_tunnel);
    if !tunnel.enable {
        let to_tunnel = |rule: &OverrideRule| rule.way == Way::Tunnel;
        if reachability.overrides.iter().any(to_tunnel) {
            let message = format!(
                "sends endpoints through the tunnel, but {TUNNEL} is not true; set it, or take \
                 the items with way: tunnel out"
            );
            report.error(report.place_of(&[OVERRIDES]), OVERRIDES, message);
        }
        return;
    }
    let discovery = (!tunnel.relay_nodes.is_empty()).then_some(tunnel.address_discovery_port);
    for (key, taken) in [
        (TUNNEL_PORT, Some(tunnel.listen_port)),
        (DISCOVERY_PORT, discovery),
    ] {
        if reachability.probe && taken == Some(reachability.probe_port) {
            let mark = report.place_of(&[PROBE_PORT, key]);
            let message = format!("is the UDP port of {key}; use another port");
            report.error(mark, PROBE_PORT, message);
        }
    }
}

fn check_tunnel(config: &Config, report: &mut Report) {
    let tunnel = &config.edge_tunnel;
    if !config.edge_proxy.enable {
        let message = format!("has no effect without {ENABLE}: no Service is intercepted");
        report.warning(report.place_of(&[TUNNEL]), TUNNEL, message);
    }
    let advertised = tunnel.advertise.len();
    if advertised > MeshNode::MAX_ADDRESSES {
        let message = format!(
            "other nodes are told at most {} addresses; found {advertised}",
            MeshNode::MAX_ADDRESSES
        );
        report.error(report.place_of(&[ADVERTISE]), ADVERTISE, message);
    }
    if tunnel.relay_nodes.is_empty() {
        return;
    }
    // A relay listens on all addresses.
    if tunnel.address_discovery_port == tunnel.listen_port {
        let mark = report.place_of(&[DISCOVERY_PORT, TUNNEL_PORT]);
        let message = format!("is the UDP port of {TUNNEL_PORT}; use another port");
        report.error(mark, DISCOVERY_PORT, message);
    }
    let relay = tunnel.relay_port();
    let admin = config.common.admin.map(|admin| admin.port());
    for (key, taken) in [
        (LISTEN_PORT, Some(config.edge_proxy.listen_port)),
        (ADMIN, admin),
    ] {
        if taken == Some(relay) {
            let mark = report.place_of(&[RELAY_PORT, TUNNEL_PORT, key]);
            let message = format!("is the TCP port of {key} ({relay}); use another port");
            report.error(mark, RELAY_PORT, message);
        }
    }
}
