//! Every key of the file, in the order of the reference page. The table is the one place
//! where a key is described.

use std::time::Duration;

use edgemesh_forward::Strategy;
use edgemesh_plan::{DatapathMode, FilterMode};

use super::key::{FOUND_OUT, Key, honoured, not_honoured};
use super::keys_of_absent_modules::{EDGE_CNI, EDGE_DNS};
use super::keys_of_tunnel::EDGE_TUNNEL;
use super::reachability::Overrides;
use super::readers::{
    AbsolutePath, InterceptV4, InterceptV6, Limit, Listen, MarkBit, OrNone, PORT, Span, Url,
};
use super::settings::{Backend, Flavour};
use super::values::{AtLeast, Bool, OneOf, Text, Whole};
use crate::log_output::Form;

/// What `apiVersion` must be where it is given.
pub(super) const API_VERSION: &str = "agent.edgemesh.config.kubeedge.io/v1alpha1";

/// What `kind` must be where it is given.
pub(super) const KIND: &str = "EdgeMeshAgent";

const NO_PPROF: &str = "there is no pprof; see /metrics at commonConfig.admin.address";
const NO_SOCKS5: &str = "there is no SOCKS5 proxy";
const NO_HASHING: &str = "endpoints are chosen by loadBalancer.strategy, \
                          and by the Service's own sessionAffinity";

static KUBE_API: &[Key] = &[
    honoured!(EdgeMesh Restart "kubeAPIConfig.master", kube_api.master = OrNone(Url),
        "Address of the API server; it overrides the one in `kubeConfig`."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.kubeConfig",
        kube_api.kube_config = OrNone(AbsolutePath),
        "The kubeconfig file. With neither this nor `master` the agent uses its pod's ServiceAccount, \
         and on an edge node, where KubeEdge gives a pod no `KUBERNETES_PORT`, the metaServer."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.qps",
        kube_api.qps = Whole { what: "a number of requests a second", least: -1, most: i32::MAX },
        "How many requests a second the agent may send to the API server on average; further \
         ones wait. With 0 or -1 none does."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.burst",
        kube_api.burst = Whole { what: "a number of requests", least: 1, most: i32::MAX.unsigned_abs() },
        "How many requests may go at once after a quiet time, before `qps` slows them down."),
    not_honoured!("kubeAPIConfig.contentType",
        OneOf(&[("application/json", "application/json"),
            ("application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf")]),
        "application/vnd.kubernetes.protobuf",
        "the API server is asked for application/json",
        unless "\"application/json\""),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.server", kube_api.meta_server.server = Url,
        "Address of the metaServer, KubeEdge's API server on an edge node. With \
         `security.requireAuthorization` an `http://` is read as `https://`."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.security.requireAuthorization",
        kube_api.meta_server.security.require_authorization = Bool,
        "Whether the metaServer wants TLS and authorization, as KubeEdge 1.12 and later can."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.security.insecureSkipTLSVerify",
        kube_api.meta_server.security.insecure_skip_tls_verify = Bool,
        "Whether to accept any certificate of the metaServer. The files below are then not used."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.security.tlsCaFile",
        kube_api.meta_server.security.tls_ca_file = AbsolutePath,
        "Certificate of the authority that signed the metaServer's; PEM."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.security.tlsCertFile",
        kube_api.meta_server.security.tls_cert_file = AbsolutePath,
        "The agent's certificate; PEM."),
    honoured!(EdgeMesh Restart "kubeAPIConfig.metaServer.security.tlsPrivateKeyFile",
        kube_api.meta_server.security.tls_private_key_file = AbsolutePath,
        "Its private key; PEM."),
    not_honoured!("kubeAPIConfig.deleteKubeConfig", Bool, "false",
        "the file named by kubeConfig is left where it is", unless "false"),
    not_honoured!("kubeAPIConfig.mode", Text("text"), "", FOUND_OUT),
];

static COMMON: &[Key] = &[
    honoured!(EdgeMesh Restart "commonConfig.bridgeDeviceIP", common.intercept_v4 = InterceptV4,
        "The IPv4 intercept address: the agent puts it on `lo` with host scope, and its rules \
         send intercepted connections there. The same on every node."),
    not_honoured!(
        "commonConfig.bridgeDeviceName",
        Text("the name of a network device"),
        "edgemesh0",
        "no device is made; the address of bridgeDeviceIP is put on lo"
    ),
    honoured!(Own Restart "commonConfig.terminationGracePeriod",
        common.termination_grace_period =
            Span { least: Duration::ZERO, most: Duration::from_secs(3600) },
        "How long connections may go on after SIGTERM, when the rules are already gone. Keep it a \
         few seconds below the pod's `terminationGracePeriodSeconds` (30 by default)."),
    honoured!(Own Restart "commonConfig.admin.address", common.admin = OrNone(Listen),
        "Where `/healthz`, `/readyz` and `/metrics` are served, without authentication: an address \
         that isn't loopback gives a warning."),
    honoured!(Own Restart "commonConfig.log.format",
        common.log_form = OneOf(&[("human", Form::Human), ("json", Form::Json)]),
        "Form of a log line: for people, or one JSON object each."),
    honoured!(Own Restart "commonConfig.log.level",
        common.log_level = OneOf(&[("off", "off"), ("error", "error"), ("warn", "warn"),
            ("info", "info"), ("debug", "debug"), ("trace", "trace")]),
        "The least important lines that are logged."),
    not_honoured!("commonConfig.pprofConfig.enableProfiling",
        Bool, "false", NO_PPROF, unless "false"),
    not_honoured!(
        "commonConfig.pprofConfig.profilingAddress",
        Text("an IP address"),
        "",
        NO_PPROF
    ),
    not_honoured!("commonConfig.pprofConfig.profilingPort", PORT, "", NO_PPROF),
];

static EDGE_PROXY: &[Key] = &[
    honoured!(EdgeMesh Restart "modules.edgeProxy.enable", edge_proxy.enable = Bool,
        "Whether Services are intercepted at all. If not, the agent makes no rule, no address and \
         no listener. The default is EdgeMesh's; a file that leaves it out gives a warning."),
    honoured!(EdgeMesh Live "modules.edgeProxy.serviceFilterMode",
        edge_proxy.filter = OneOf(&[("FilterIfLabelExists", FilterMode::IfLabelExists),
            ("FilterIfLabelDoesNotExists", FilterMode::IfLabelDoesNotExist)]),
        "Which Services are left to kube-proxy: those with the label \
         `service.edgemesh.kubeedge.io/service-proxy-name` (whatever its value), or those without it."),
    honoured!(Own Live "modules.edgeProxy.datapath",
        edge_proxy.datapath = OneOf(&[("hybrid", DatapathMode::Hybrid),
            ("user", DatapathMode::User)]),
        "Who takes connections to endpoints: with `hybrid` the kernel, as kube-proxy would, wherever \
         this node reaches an endpoint natively, and the agent where it takes the tunnel; with `user` \
         the agent everywhere. `edgemesh-agent explain` says \
         for each port who does, and why."),
    honoured!(Own Restart "modules.edgeProxy.reachability.probe",
        edge_proxy.reachability.probe = Bool,
        "Whether peers are asked to prove, without the tunnel, that they are reached natively, and \
         answer when asked. An endpoint takes the tunnel unless its node's agent has proved its key \
         over the pod network (for endpoints with the node's own address: at that address). Has no \
         effect without `modules.edgeTunnel`."),
    honoured!(Own Restart "modules.edgeProxy.reachability.probePort",
        edge_proxy.reachability.probe_port = PORT,
        "UDP port at which they answer, on the node's own addresses in its pod networks and on those \
         of its Node. Who is no peer gets no answer. Nodes may use different ones."),
    honoured!(Own Restart "modules.edgeProxy.reachability.overrides",
        edge_proxy.reachability.overrides = Overrides,
        "How endpoints on peers are reached, without any probe, for networks that let none \
         pass; the first item that fits an endpoint counts. `nodeSelector` is about the nodes with all \
         the labels, `cidrs` about addresses of endpoints. `direct` trusts that nobody else has the \
         same address. Endpoints on this node, on nodes without a tunnel and on no node of the \
         cluster are always reached natively."),
    honoured!(Own Restart "modules.edgeProxy.listenPort", edge_proxy.listen_port = PORT,
        "Port of the TCP listener on each intercept address."),
    honoured!(Own Restart "modules.edgeProxy.interceptAddressIPv6",
        edge_proxy.intercept_v6 = InterceptV6,
        "The IPv6 intercept address, beside `commonConfig.bridgeDeviceIP`. The same on every node."),
    honoured!(Own Restart "modules.edgeProxy.socketMark", edge_proxy.socket_mark = MarkBit,
        "Firewall mark (`SO_MARK`) of the agent's own sockets, by which the first rule of each chain \
         lets its traffic pass. Calico uses 0xffff0000, Cilium 0x0f00."),
    honoured!(Own Restart "modules.edgeProxy.loadBalancer.strategy",
        edge_proxy.strategy = OneOf(&[("RoundRobin", Strategy::RoundRobin),
            ("Random", Strategy::Random)]),
        "How an endpoint is chosen where the Service has no `sessionAffinity`."),
    not_honoured!(
        "modules.edgeProxy.loadBalancer.consistentHash.partitionCount",
        Whole {
            what: "a number of partitions",
            least: 1,
            most: i32::MAX
        },
        "100",
        NO_HASHING
    ),
    not_honoured!(
        "modules.edgeProxy.loadBalancer.consistentHash.replicationFactor",
        Whole {
            what: "a number of replicas",
            least: 1,
            most: i32::MAX
        },
        "10",
        NO_HASHING
    ),
    not_honoured!(
        "modules.edgeProxy.loadBalancer.consistentHash.load",
        AtLeast(1.0),
        "1.25",
        NO_HASHING
    ),
    not_honoured!(
        "modules.edgeProxy.loadBalancer.caller",
        Text("text"),
        "",
        FOUND_OUT
    ),
    not_honoured!(
        "modules.edgeProxy.loadBalancer.nodeName",
        Text("text"),
        "",
        "the node's name is that of --node-name, NODE_NAME or the host"
    ),
    honoured!(Own Restart "modules.edgeProxy.maxConnections",
        edge_proxy.max_connections = Limit { most: 1_000_000 },
        "TCP connections forwarded at a time. Beyond it new ones wait a moment and are then \
         refused. 0: as many as the limit on open files has room for, at two files each."),
    honoured!(Own Restart "modules.edgeProxy.maxUDPFlows",
        edge_proxy.max_udp_flows = Limit { most: 1_000_000 },
        "UDP flows, one for each client address and port, kept at a time; one more puts the longest \
         silent one out. 0: as many as the limit on open files has room for, at one file each, \
         because no fixed number suits both a small edge device and a cloud node."),
    honoured!(Own Restart "modules.edgeProxy.udpIdleTimeout",
        edge_proxy.udp_idle_timeout =
            Span { least: Duration::from_secs(1), most: Duration::from_secs(86_400) },
        "When a UDP flow without a datagram in either direction is forgotten."),
    honoured!(Own Restart "modules.edgeProxy.dialTimeout",
        edge_proxy.dial_timeout =
            Span { least: Duration::from_millis(10), most: Duration::from_secs(60) },
        "How long one endpoint may take to accept a connection before the next is tried."),
    honoured!(Own Restart "modules.edgeProxy.dialDeadline",
        edge_proxy.dial_deadline =
            Span { least: Duration::from_millis(10), most: Duration::from_secs(300) },
        "How long all endpoints tried for one connection may take together; `dialTimeout` or more."),
    honoured!(Own Restart "modules.edgeProxy.backend",
        edge_proxy.backend = OneOf(&[("auto", Backend::Auto),
            ("iptables", Backend::Iptables), ("nftables", Backend::Nftables)]),
        "How the rules are put into the kernel: `iptables` puts chains before kube-proxy's, `nftables` \
         makes a table of its own before everybody's, which vanishes with the agent. `auto` is \
         nftables where kube-proxy runs in nftables mode or no iptables is installed, else iptables, \
         and follows kube-proxy when its mode changes."),
    honoured!(Own Restart "modules.edgeProxy.iptables.flavour",
        edge_proxy.iptables_flavour = OneOf(&[("auto", Flavour::Auto),
            ("nft", Flavour::Nft), ("legacy", Flavour::Legacy)]),
        "Which iptables holds the rules: `auto` is the one that kube-proxy or kubelet uses, else nft. \
         The two don't see each other's rules."),
    honoured!(Own Restart "modules.edgeProxy.iptables.checkPeriod",
        edge_proxy.iptables_check_period =
            Span { least: Duration::from_millis(100), most: Duration::from_secs(2) },
        "How often the rules in the kernel are compared with the wanted ones and repaired."),
    not_honoured!(
        "modules.edgeProxy.listenInterface",
        Text("the name of a network device"),
        "",
        FOUND_OUT
    ),
    not_honoured!("modules.edgeProxy.socks5Proxy.enable", Bool, "false", NO_SOCKS5, unless "false"),
    not_honoured!(
        "modules.edgeProxy.socks5Proxy.listenPort",
        PORT,
        "10800",
        NO_SOCKS5
    ),
    not_honoured!(
        "modules.edgeProxy.socks5Proxy.nodeName",
        Text("text"),
        "",
        NO_SOCKS5
    ),
    not_honoured!(
        "modules.edgeProxy.socks5Proxy.namespace",
        Text("text"),
        "",
        NO_SOCKS5
    ),
];

/// Keys of former EdgeMesh versions, with what became of them.
const FORMER: [(&str, &str); 6] = [
    (
        "commonConfig.dummyDeviceIP",
        "since EdgeMesh 1.12 it is bridgeDeviceIP",
    ),
    (
        "commonConfig.dummyDeviceName",
        "since EdgeMesh 1.12 it is bridgeDeviceName",
    ),
    (
        "goChassisConfig",
        "EdgeMesh 1.12 removed it; see modules.edgeProxy.loadBalancer",
    ),
    (
        "kubeAPIConfig.metaServerAddress",
        "since EdgeMesh 1.12 it is metaServer.server",
    ),
    (
        "modules.edgeGateway",
        "edgemesh-gateway is another program with a file of its own",
    ),
    (
        "modules.tunnel",
        "since EdgeMesh 1.12 it is modules.edgeTunnel",
    ),
];

/// All keys but `apiVersion` and `kind`.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    [
        KUBE_API,
        COMMON,
        EDGE_PROXY,
        EDGE_DNS,
        EDGE_TUNNEL,
        EDGE_CNI,
    ]
    .into_iter()
    .flatten()
}

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path == path)
}

/// The names that may stand below `prefix`, which is "" or ends in a dot; each once.
pub(super) fn below(prefix: &str) -> Vec<&'static str> {
    let mut names = if prefix.is_empty() {
        vec!["apiVersion", "kind"]
    } else {
        Vec::new()
    };
    for rest in all().filter_map(|key| key.path.strip_prefix(prefix)) {
        let name = rest.split('.').next().unwrap_or(rest);
        if names.last() != Some(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What became of a key of former versions.
pub(super) fn former(path: &str) -> Option<&'static str> {
    FORMER
        .iter()
        .find(|(key, _)| *key == path)
        .map(|(_, hint)| *hint)
}
