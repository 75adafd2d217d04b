//! `modules.edgeProxy.reachability`.

use edgemesh_plan::Way;
use edgemesh_reach::Selection;

use super::{errors, good};
use crate::config::Config;

fn file(tunnel: bool, reachability: &str) -> String {
    format!(
        "modules:\n  edgeTunnel: {{enable: {tunnel}}}\n  edgeProxy:\n    enable: true\n    \
         reachability:\n{reachability}"
    )
}

fn mistakes(reachability: &str) -> Vec<String> {
    errors(&file(true, reachability))
}

const ALL: &str = "      probe: false
      probePort: 30010
      overrides:
      - nodeSelector: {matchLabels: {example.org/site: north, vpn: 1}}
        way: direct
      - cidrs: [10.244.0.0/16, 'fd00:10::/32']
        way: tunnel
";

#[test]
fn peers_are_probed_at_port_20010_by_default_and_nothing_is_overridden() {
    let reachability = Config::default().edge_proxy.reachability;
    assert!(reachability.probe);
    assert_eq!(reachability.probe_port, 20010);
    assert!(reachability.overrides.is_empty() && reachability.node_labels().is_empty());
}

#[test]
fn every_key_is_taken_and_shown_as_it_can_be_read_again() {
    let config = good(&file(true, ALL)).config;
    let reachability = &config.edge_proxy.reachability;
    assert!(!reachability.probe);
    assert_eq!(reachability.probe_port, 30010);
    let labels: Vec<_> = reachability.node_labels().into_iter().collect();
    assert_eq!(labels, ["example.org/site".into(), "vpn".into()]);
    let [nodes, networks] = &reachability.overrides[..] else {
        panic!("two are two");
    };
    assert_eq!((nodes.way, networks.way), (Way::Native, Way::Tunnel));
    assert!(matches!(&nodes.of, Selection::Labels(labels) if &*labels["vpn"] == "1"));
    assert!(matches!(&networks.of, Selection::Networks(networks) if networks.len() == 2));
    assert_eq!(good(&config.to_string()).config, config);
}

#[test]
fn what_is_wrong_with_an_override_is_said_with_its_place() {
    for (overrides, mistake) in [
        (
            "direct",
            "agent.yaml:6:18: modules.edgeProxy.reachability.overrides: must be a list; \
                    found \"direct\"",
        ),
        (
            "[{way: direct}]",
            "agent.yaml:6:19: modules.edgeProxy.reachability.overrides[0]: says \
                             of nobody how they are reached; set nodeSelector or cidrs",
        ),
        (
            "[{cidrs: [], way: direct}]",
            "agent.yaml:6:19: \
         modules.edgeProxy.reachability.overrides[0]: says of nobody how they are reached; set \
         nodeSelector or cidrs",
        ),
        (
            "[{cidrs: [10.0.0.0/8]}]",
            "agent.yaml:6:19: \
         modules.edgeProxy.reachability.overrides[0]: says no way; set way to direct or tunnel",
        ),
        (
            "[{cidrs: [10.0.0.1/8], way: direct}]",
            "agent.yaml:6:28: \
         modules.edgeProxy.reachability.overrides[0].cidrs[0]: must be a network, as \
         10.244.0.0/16 or fd00:10::/32, with nothing behind its prefix; found \"10.0.0.1/8\"",
        ),
        (
            "[{cidrs: [10.0.0.0/8], way: native}]",
            "agent.yaml:6:46: \
         modules.edgeProxy.reachability.overrides[0].way: must be direct or tunnel; found \
         \"native\"",
        ),
        (
            "[{nodeSelector: {}, way: direct}]",
            "agent.yaml:6:34: \
         modules.edgeProxy.reachability.overrides[0].nodeSelector: selects by no label; set \
         matchLabels, or for all nodes cidrs of all addresses, 0.0.0.0/0 and ::/0",
        ),
        (
            "[{nodeSelector: {matchLabels: {a: b}}, cidrs: [10.0.0.0/8], way: direct}]",
            "agent.yaml:6:19: modules.edgeProxy.reachability.overrides[0]: has both nodeSelector \
          and cidrs; make two items of it",
        ),
    ] {
        assert_eq!(
            mistakes(&format!("      overrides: {overrides}\n")),
            [mistake]
        );
    }
    let matched =
        mistakes("      overrides: [{nodeSelector: {matchExpressions: []}, way: direct}]\n");
    assert!(matched[0].contains("unknown key"), "{matched:?}");
}

#[test]
fn no_tunnel_no_way_through_it() {
    let text = file(
        false,
        "      overrides: [{cidrs: [10.0.0.0/8], way: tunnel}]\n",
    );
    let found = errors(&text);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("but modules.edgeTunnel.enable is not true"),
        "{found:?}"
    );
    // It changes nothing there, for all is reached natively.
    good(&file(
        false,
        "      overrides: [{cidrs: [10.0.0.0/8], way: direct}]\n",
    ));
}

#[test]
fn ports_of_the_tunnel_are_taken() {
    let found = mistakes("      probePort: 20006\n");
    assert_eq!(
        found,
        [
            "agent.yaml:6:18: modules.edgeProxy.reachability.probePort: is the UDP port of \
          modules.edgeTunnel.listenPort; use another port"
        ]
    );
    good(&file(true, "      probe: false\n      probePort: 20006\n"));
}
