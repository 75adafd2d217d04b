//! What is said about files with mistakes.

use super::{errors, good, warnings};

#[test]
fn every_mistake_is_reported_at_once_in_the_order_of_lines() {
    let text = "\
apiVersion: v1
kind: EdgeMeshGateway
kubeAPIConfig:
  master: https://admin:secret@10.0.0.1:6443
  qps: fast
  kubeConfig: config
commonConfig:
  bridgeDeviceIP: 127.0.0.1
  log: {level: loud}
  colour: blue
modules:
  edgeProxy:
    enabled: true
    listenPort: 70000
    socketMark: 0x4000
    dialTimeout: 2
    iptables:
      checkPeriod: 5s
  edgeTunnel:
    relayNodes:
    - nodeName: [a]
      advertiseAddres: [1.1.1.1]
    - relay
  socketMark: 1
  edgeDNS: on
";
    assert_eq!(
        errors(text),
        [
            "agent.yaml:1:13: apiVersion: must be agent.edgemesh.config.kubeedge.io/v1alpha1; found \"v1\"",
            "agent.yaml:2:7: kind: must be EdgeMeshAgent; found \"EdgeMeshGateway\", which configures EdgeMesh's gateway, another program",
            "agent.yaml:4:11: kubeAPIConfig.master: must be an address like https://10.0.0.1:6443, without user and password, or \"\" for none; found \"https://…@10.0.0.1:6443\"",
            "agent.yaml:5:8: kubeAPIConfig.qps: must be a number of requests a second, -1 to 2147483647; found \"fast\"",
            "agent.yaml:6:15: kubeAPIConfig.kubeConfig: must be the path of a file, beginning with /, or \"\" for none; found \"config\"",
            "agent.yaml:8:19: commonConfig.bridgeDeviceIP: must be an IPv4 address for this agent alone, not in 0.0.0.0/8 or 127.0.0.0/8; found \"127.0.0.1\"",
            "agent.yaml:9:16: commonConfig.log.level: must be off, error, warn, info, debug or trace; found \"loud\"",
            "agent.yaml:10:3: commonConfig.colour: unknown key; known here are admin, bridgeDeviceIP, bridgeDeviceName, log, pprofConfig, terminationGracePeriod",
            "agent.yaml:13:5: modules.edgeProxy.enabled: unknown key; did you mean enable?",
            "agent.yaml:14:17: modules.edgeProxy.listenPort: must be a port, 1 to 65535; found the number 70000",
            "agent.yaml:15:17: modules.edgeProxy.socketMark: must be a mark of a single bit, as 0x2000, but not kube-proxy's 0x4000 or 0x8000; found the number 16384",
            "agent.yaml:16:18: modules.edgeProxy.dialTimeout: must be a duration with its unit (h, m, s or ms), 10ms to 1m; found the number 2",
            "agent.yaml:18:20: modules.edgeProxy.iptables.checkPeriod: must be a duration with its unit (h, m, s or ms), 100ms to 2s; found \"5s\"",
            "agent.yaml:21:17: modules.edgeTunnel.relayNodes[0].nodeName: must be the name of a node; found a list",
            "agent.yaml:22:7: modules.edgeTunnel.relayNodes[0].advertiseAddres: unknown key; did you mean advertiseAddress?",
            "agent.yaml:23:7: modules.edgeTunnel.relayNodes[1]: must be a mapping of keys; found \"relay\"",
            "agent.yaml:24:3: modules.socketMark: unknown key here; it belongs at modules.edgeProxy.socketMark",
            "agent.yaml:25:12: modules.edgeDNS: must be a mapping of keys; found \"on\"",
        ]
    );
}

#[test]
fn text_that_is_no_yaml_is_reported_with_its_line() {
    assert_eq!(
        errors("modules:\n  edgeProxy: [\n"),
        ["agent.yaml:3:1: while parsing a node, did not find expected node content"]
    );
}

#[test]
fn a_key_given_twice_with_different_values_is_an_error() {
    assert_eq!(
        errors("modules:\n  edgeProxy:\n    enable: true\n    enable: false\n"),
        ["agent.yaml:4:5: the key 'enable' is given twice; it is first on line 3"]
    );
    assert_eq!(
        errors("modules:\n  edgeProxy:\n    enable: true\n    Enable: true\n"),
        ["agent.yaml:4:5: modules.edgeProxy.enable: is already on line 3 in another case"]
    );
}

#[test]
fn a_config_map_is_recognised() {
    let text =
        "apiVersion: v1\nkind: ConfigMap\ndata:\n  edgemesh-agent.yaml: |\n    modules: {}\n";
    let errors = errors(text);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("this is a ConfigMap"), "{}", errors[0]);
}

#[test]
fn a_second_document_is_an_error() {
    let errors = errors("modules: {}\n---\nmodules: {}\n");
    assert_eq!(
        errors,
        ["agent.yaml:3:1: a second document begins here; a configuration is a single one"]
    );
}

#[test]
fn keys_of_former_versions_say_what_became_of_them() {
    assert_eq!(
        errors("commonConfig:\n  dummyDeviceIP: 169.254.96.16\n"),
        [
            "agent.yaml:2:3: commonConfig.dummyDeviceIP: unknown key: since EdgeMesh 1.12 it is bridgeDeviceIP"
        ]
    );
}

#[test]
fn a_list_where_a_mapping_belongs_and_the_other_way_round() {
    assert_eq!(
        errors("- a\n"),
        ["agent.yaml:1:1: must be a mapping of keys; found a list"]
    );
    assert_eq!(
        errors("modules: {edgeTunnel: {relayNodes: {a: b}}}\n"),
        ["agent.yaml:1:36: modules.edgeTunnel.relayNodes: must be a list; found a mapping"]
    );
}

#[test]
fn one_dial_longer_than_all_together_is_an_error_at_the_line_that_says_so() {
    assert_eq!(
        errors("modules:\n  edgeProxy:\n    enable: true\n    dialDeadline: 1s\n"),
        [
            "agent.yaml:4:19: modules.edgeProxy.dialTimeout: one attempt may not take longer (2s) \
          than all together (modules.edgeProxy.dialDeadline, 1s)"
        ]
    );
}

#[test]
fn the_admin_address_must_not_meet_the_listener() {
    let with = |address: &str| {
        format!(
            "commonConfig: {{admin: {{address: '{address}'}}}}\nmodules: {{edgeProxy: {{enable: true}}}}\n"
        )
    };
    assert!(errors(&with("169.254.96.16:20008"))[0].contains("intercept address"));
    assert!(errors(&with("0.0.0.0:20007"))[0].contains("use another port"));
    assert!(warnings(&with("[::1]:9000")).is_empty());
    assert!(good(&with("")).config.common.admin.is_none());
    let open = warnings(&with("0.0.0.0:20008"));
    assert_eq!(open.len(), 1);
    assert!(
        open[0].contains("commonConfig.admin.address"),
        "{}",
        open[0]
    );
}

#[test]
fn values_are_taken_in_every_way_they_can_be_written() {
    let text = "\
kubeAPIConfig: {master: \"10.0.0.1:6443\", kubeConfig: ''}
commonConfig: {terminationGracePeriod: 0s, Log: {Level: debug, format: json}}
modules:
  edgeProxy:
    enable: Yes
    socketMark: 8192
    maxUDPFlows: 1e3
    udpIdleTimeout: 1m30s
    loadBalancer: {strategy: Random}
";
    let parsed = good(text);
    let proxy = &parsed.config.edge_proxy;
    assert!(proxy.enable && parsed.warnings.is_empty());
    assert_eq!(
        (proxy.socket_mark, proxy.max_udp_flows),
        (0x2000, Some(1000))
    );
    assert_eq!(proxy.udp_idle_timeout.as_secs(), 90);
    assert_eq!(
        parsed.config.kube_api.master.as_deref(),
        Some("10.0.0.1:6443")
    );
    assert_eq!(parsed.config.common.log_level, "debug");
}
