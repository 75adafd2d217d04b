//! Files that were written for EdgeMesh.

use super::{good, warnings};
use crate::config::Config;

/// What EdgeMesh's `build/agent/resources/04-configmap.yaml` holds.
const CONFIG_MAP: &str = "\
modules:
  edgeProxy:
    enable: true
  edgeTunnel:
    enable: true
";

/// What its Helm chart makes of values that set everything the chart knows, in the
/// chart's own way: some keys twice, some without a value, lists indented as they come.
const HELM: &str = "\
kubeAPIConfig:
  burst: 400
  contentType: application/json
  kubeConfig: /root/.kube/config
  master: https://10.1.1.1:6443
  qps: 1e+06
  metaServer:
    server: http://127.0.0.1:10550
    security:
      requireAuthorization: true
      tlsCaFile: /etc/edgemesh/metaserver/rootCA.crt
commonConfig:
  bridgeDeviceName: edgemesh0
  bridgeDeviceIP: 169.254.96.16
modules:
  edgeDNS:
    cacheDNS:
      upstreamServers:
      - 10.96.0.10
      cacheTTL: 30
  edgeProxy:
    enable: true
    serviceFilterMode: FilterIfLabelDoesNotExists
    socks5Proxy:
      listenPort: 10800
    loadBalancer:
      consistentHash:
        load: 1.25
    serviceFilterMode: FilterIfLabelDoesNotExists
  edgeTunnel:
    relayNodes:
    - nodeName: 17
      advertiseAddress:
      - 1.1.1.1
  edgeCNI:
    meshCIDRConfig:
      cloudCIDR:
      edgeCIDR:
        - 10.244.0.0/16
";

/// EdgeMesh's documented example (docs/reference/config-items.md) with its slip in the
/// case of one key.
const DOCUMENTED: &str = "\
apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1
kind: EdgeMeshAgent
kubeAPIConfig:
  contentType: application/vnd.kubernetes.protobuf
  deleteKubeConfig: false
modules:
  edgeDNS:
    enable: false
    listenPort: 53
  edgeProxy:
    enable: no
    socks5Proxy:
      enable: false
  edgeTunnel:
    enable: false
    transport: tcp
    psk:
      enable: true
      path: /etc/edgemesh/psk
    tunnelLimitConfig:
      enable: false
      TunnelPeerBaseStreamIn: 1024
";

#[test]
fn the_config_map_of_edgemesh_works_without_a_warning() {
    let mut expected = Config::without_file();
    expected.edge_tunnel.enable = true;
    assert_eq!(good(CONFIG_MAP).config, expected);
    assert!(warnings(CONFIG_MAP).is_empty());
}

#[test]
fn what_the_helm_chart_makes_works() {
    let config = good(HELM).config;
    let meta_server = &config.kube_api.meta_server;
    assert_eq!(config.kube_api.qps, 1_000_000);
    assert_eq!(meta_server.url(), "https://127.0.0.1:10550");
    assert!(config.edge_tunnel.is_relay("17"));
    let warned: Vec<_> = good(HELM)
        .warnings
        .into_iter()
        .map(|w| (w.mark.line, w.key))
        .collect();
    let expected = [
        (13, "commonConfig.bridgeDeviceName"),
        (18, "modules.edgeDNS.cacheDNS.upstreamServers"),
        (20, "modules.edgeDNS.cacheDNS.cacheTTL"),
        (25, "modules.edgeProxy.socks5Proxy.listenPort"),
        (28, "modules.edgeProxy.loadBalancer.consistentHash.load"),
        (29, "modules.edgeProxy.serviceFilterMode"),
        (38, "modules.edgeCNI.meshCIDRConfig.edgeCIDR"),
    ];
    assert_eq!(warned, expected.map(|(line, key)| (line, key.to_owned())));
}

#[test]
fn the_documented_example_works_and_what_it_turns_off_needs_no_warning() {
    assert!(!good(DOCUMENTED).config.edge_proxy.enable);
    let warned: Vec<_> = good(DOCUMENTED)
        .warnings
        .into_iter()
        .map(|w| w.key)
        .collect();
    assert_eq!(
        warned,
        [
            "kubeAPIConfig.contentType",
            "modules.edgeDNS.listenPort",
            "modules.edgeTunnel.transport",
            "modules.edgeTunnel.psk.enable",
            "modules.edgeTunnel.psk.path",
        ]
    );
}

#[test]
fn a_file_without_content_is_all_defaults_and_warns_that_nothing_is_intercepted() {
    for text in [
        "",
        "# nothing\n",
        "---\n---\n",
        "modules:\n",
        "modules: {edgeProxy: }\n",
    ] {
        assert_eq!(good(text).config, Config::default(), "{text}");
        let warnings = warnings(text);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("agent.yaml:1:1: modules.edgeProxy.enable: not set"));
    }
}

#[test]
fn an_explicit_false_needs_no_warning() {
    assert!(warnings("modules: {edgeProxy: {enable: false}}").is_empty());
}

#[test]
fn json_is_as_good_as_yaml() {
    let text = r#"{"modules": {"edgeProxy": {"enable": true, "listenPort": 30007}}}"#;
    assert_eq!(good(text).config.edge_proxy.listen_port, 30007);
}
