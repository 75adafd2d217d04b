//! `modules.edgeTunnel`.

use super::{errors, good, warnings};
use crate::config::{EdgeTunnelConfig, TunnelLimits};

fn tunnel(text: &str) -> EdgeTunnelConfig {
    good(&format!(
        "modules: {{edgeProxy: {{enable: true}}, edgeTunnel: {{enable: true, {text}}}}}"
    ))
    .config
    .edge_tunnel
}

fn mistakes(text: &str) -> Vec<String> {
    errors(&format!(
        "modules:\n  edgeProxy: {{enable: true}}\n  edgeTunnel:\n    enable: true\n{text}"
    ))
}

#[test]
fn limits_and_ports_are_edgemeshs_by_default() {
    let tunnel = tunnel("");
    assert_eq!(tunnel.listen_port, 20006);
    assert_eq!(tunnel.relay_port(), 20006);
    assert!(!tunnel.keep_alive && tunnel.relay_nodes.is_empty());
    assert!(tunnel.tcp_carrier);
    assert_eq!(
        tunnel.limits,
        TunnelLimits {
            enable: true,
            streams_in: 10_240,
            streams_out: 10_240,
            streams_in_per_peer: 1024,
            streams_out_per_peer: 1024,
        }
    );
}

#[test]
fn every_key_is_taken() {
    let tunnel = tunnel(
        "listenPort: 30006, keepAlive: true, tcpCarrier: off, relayListenPort: 443, addressDiscoveryPort: 30009, \
         advertiseAddress: [203.0.113.5, '[2001:db8::5]:40000'], \
         tunnelLimitConfig: {enable: no, tunnelBaseStreamIn: 1, tunnelBaseStreamOut: 2, \
         tunnelPeerBaseStreamIn: 3, tunnelPeerBaseStreamOut: 0}",
    );
    assert_eq!(
        (
            tunnel.listen_port,
            tunnel.relay_port(),
            tunnel.address_discovery_port
        ),
        (30006, 443, 30009)
    );
    assert!(tunnel.keep_alive && !tunnel.tcp_carrier);
    let advertised: Vec<String> = tunnel.advertised().map(|at| at.to_string()).collect();
    assert_eq!(advertised, ["203.0.113.5:30006", "[2001:db8::5]:40000"]);
    assert_eq!(
        tunnel.limits,
        TunnelLimits {
            enable: false,
            streams_in: 1,
            streams_out: 2,
            streams_in_per_peer: 3,
            streams_out_per_peer: 0,
        }
    );
}

#[test]
fn a_relay_is_reached_by_its_addresses_at_its_own_port_or_another() {
    let tunnel = tunnel(
        "relayListenPort: 443, relayNodes: [{nodeName: cloud1, advertiseAddress: [203.0.113.5, \
         '203.0.113.5:80', '2001:db8::5', '[2001:db8::5]:80', 'http://203.0.113.5:8080/', \
         'http://203.0.113.5', 'http://[2001:db8::5]']}]",
    );
    let relay = &tunnel.relay_nodes[0];
    let addresses: Vec<String> = relay
        .advertise_address
        .iter()
        .map(|address| address.with_port(tunnel.relay_port()).to_string())
        .collect();
    assert_eq!(
        addresses,
        [
            "203.0.113.5:443",
            "203.0.113.5:80",
            "[2001:db8::5]:443",
            "[2001:db8::5]:80",
            "203.0.113.5:8080",
            "203.0.113.5:80",
            "[2001:db8::5]:80",
        ]
    );
    assert!(tunnel.is_relay("cloud1") && !tunnel.is_relay("cloud2"));
}

#[test]
fn what_is_no_address_of_a_relay_is_an_error_with_its_line() {
    for wrong in [
        "127.0.0.1",
        "0.0.0.0:20006",
        "1.2.3.400",
        "203.0.113.5:0",
        "203.0.113.5:65536",
        "[fe80::1]:443",
        "[2001:db8::5",
        "relay.example.org",
        "https://203.0.113.5",
        "http://admin:secret@203.0.113.5",
        "http://203.0.113.5/path",
        "http://2001:db8::5",
        "\"\"",
    ] {
        let text = format!(
            "    relayNodes:\n    - nodeName: cloud1\n      advertiseAddress: [1.2.3.4, {wrong}]\n"
        );
        let found = if wrong.starts_with('[') {
            text.replace(wrong, &format!("'{wrong}'"))
        } else {
            text
        };
        let mistakes = mistakes(&found);
        assert_eq!(mistakes.len(), 1, "{wrong}: {mistakes:?}");
        let place =
            "agent.yaml:7:35: modules.edgeTunnel.relayNodes[0].advertiseAddress[1]: must be";
        assert!(mistakes[0].starts_with(place), "{wrong}: {mistakes:?}");
        assert!(!mistakes[0].contains("secret"), "{mistakes:?}");
    }
}

#[test]
fn relay_nodes_are_named_and_only_once() {
    assert_eq!(
        mistakes(
            "    relayNodes:\n    - {nodeName: a, advertiseAddress: [1.1.1.1]}\n    \
             - {advertiseAddress: [1.1.1.1]}\n    - {nodeName: a, advertiseAddress: [1.1.1.1]}\n"
        ),
        [
            "agent.yaml:7:7: modules.edgeTunnel.relayNodes[1]: names no node; set nodeName",
            "agent.yaml:8:7: modules.edgeTunnel.relayNodes[2]: node a is item 0 already",
        ]
    );
}

#[test]
fn a_relay_that_nobody_finds_gives_a_warning() {
    let warnings = warnings(
        "modules: {edgeProxy: {enable: true}, edgeTunnel: {enable: true, relayNodes: [{nodeName: a}]}}",
    );
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("relayNodes[0]: has no advertiseAddress"),
        "{warnings:?}"
    );
}

#[test]
fn ports_of_a_relay_must_not_meet_others() {
    let relay = "    relayNodes: [{nodeName: a, advertiseAddress: [1.1.1.1]}]\n";
    let with = |key: &str| mistakes(&format!("{relay}    {key}\n"));
    assert_eq!(
        with("relayListenPort: 20007"),
        [
            "agent.yaml:6:22: modules.edgeTunnel.relayListenPort: is the TCP port of \
          modules.edgeProxy.listenPort (20007); use another port"
        ]
    );
    assert_eq!(
        with("listenPort: 20008"),
        [
            "agent.yaml:6:17: modules.edgeTunnel.relayListenPort: is the TCP port of \
          commonConfig.admin.address (20008); use another port"
        ]
    );
    assert_eq!(
        with("addressDiscoveryPort: 20006"),
        [
            "agent.yaml:6:27: modules.edgeTunnel.addressDiscoveryPort: is the UDP port of \
          modules.edgeTunnel.listenPort; use another port"
        ]
    );
}

#[test]
fn own_addresses_are_checked_and_bounded() {
    assert!(
        mistakes("    advertiseAddress: [cloud.example.org]\n")[0].contains("[0]: must be an IP")
    );
    assert!(mistakes("    advertiseAddress: ['[::1]:20006']\n")[0].contains("must be an IP"));
    let many: Vec<String> = (1..=17).map(|n| format!("203.0.113.{n}")).collect();
    assert_eq!(
        mistakes(&format!("    advertiseAddress: [{}]\n", many.join(", "))),
        [
            "agent.yaml:5:23: modules.edgeTunnel.advertiseAddress: other nodes are told at most 16 \
          addresses; found 17"
        ]
    );
}

#[test]
fn a_tunnel_without_interception_gives_a_warning() {
    let warnings = warnings("modules: {edgeProxy: {enable: false}, edgeTunnel: {enable: true}}");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("modules.edgeTunnel.enable: has no effect"));
}

#[test]
fn what_edgemesh_shares_by_all_nodes_is_not_honoured() {
    let warnings = warnings(
        "modules: {edgeProxy: {enable: true}, edgeTunnel: {psk: {enable: true}, transport: quic}}",
    );
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("each node has a key of its own"));
}
