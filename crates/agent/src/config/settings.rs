//! The configuration as the agent uses it: typed, complete, checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use edgemesh_forward::Strategy;
use edgemesh_plan::{DatapathMode, FilterMode};

use super::edge_tunnel::EdgeTunnelConfig;
use super::reachability::ReachabilityConfig;
use crate::log_output::Form;

/// What the agent is told to do. The value of a key that the file doesn't set is its
/// default.
///
/// Printed with `{}` it is the effective configuration as YAML, which read again gives the
/// same value. Nothing in it is secret: certificates, keys and tokens are named by their
/// files, and addresses with a password in them are refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Config {
    /// How to reach the Kubernetes API (`kubeAPIConfig`).
    pub(crate) kube_api: KubeApiConfig,
    /// What isn't one module's (`commonConfig`).
    pub(crate) common: CommonConfig,
    /// Interception and forwarding (`modules.edgeProxy`).
    pub(crate) edge_proxy: EdgeProxyConfig,
    /// The way to other nodes (`modules.edgeTunnel`).
    pub(crate) edge_tunnel: EdgeTunnelConfig,
}

/// `kubeAPIConfig`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KubeApiConfig {
    /// Address of the API server, with or without scheme; overrides that of the kubeconfig.
    pub(crate) master: Option<String>,
    /// The kubeconfig file; absolute.
    pub(crate) kube_config: Option<PathBuf>,
    /// Requests a second on average; 0 or less: no limit.
    pub(crate) qps: i32,
    /// Requests at once after a quiet time.
    pub(crate) burst: u32,
    /// KubeEdge's API server on the edge node.
    pub(crate) meta_server: MetaServer,
}

/// `kubeAPIConfig.metaServer`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MetaServer {
    /// Its address as configured; [`MetaServer::url`] is the one to use.
    pub(crate) server: String,
    /// How to be let in.
    pub(crate) security: MetaServerSecurity,
}

impl MetaServer {
    /// The address to connect to: with authorization an `http://` address becomes an
    /// `https://` one (EdgeMesh, `cmd/edgemesh-agent/app/server.go`).
    #[must_use]
    pub(crate) fn url(&self) -> String {
        match self.server.strip_prefix("http://") {
            Some(rest) if self.security.require_authorization => format!("https://{rest}"),
            Some(_) | None => self.server.clone(),
        }
    }
}

/// `kubeAPIConfig.metaServer.security`; all but the first are used only with it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MetaServerSecurity {
    /// Whether to use TLS.
    pub(crate) require_authorization: bool,
    /// Whether to trust whatever certificate the server shows; the three files are then
    /// not used.
    pub(crate) insecure_skip_tls_verify: bool,
    /// The certificate authority of the server; PEM.
    pub(crate) tls_ca_file: PathBuf,
    /// Our certificate; PEM.
    pub(crate) tls_cert_file: PathBuf,
    /// Its private key; PEM.
    pub(crate) tls_private_key_file: PathBuf,
}

/// `commonConfig`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommonConfig {
    /// The IPv4 intercept address (`bridgeDeviceIP`).
    pub(crate) intercept_v4: Ipv4Addr,
    /// How long connections may go on after SIGTERM.
    pub(crate) termination_grace_period: Duration,
    /// Where `/healthz`, `/readyz` and `/metrics` are served; none: nowhere.
    pub(crate) admin: Option<SocketAddr>,
    /// Form of a log line.
    pub(crate) log_form: Form,
    /// The least important lines that are logged: `error` to `trace`, or `off`.
    pub(crate) log_level: &'static str,
}

/// `modules.edgeProxy`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EdgeProxyConfig {
    /// Whether to intercept and forward anything at all.
    pub(crate) enable: bool,
    /// Which Services the filter label exempts.
    pub(crate) filter: FilterMode,
    /// Who may take connections to endpoints.
    pub(crate) datapath: DatapathMode,
    /// How it is found out which peers need no tunnel.
    pub(crate) reachability: ReachabilityConfig,
    /// Port of the TCP listeners on the intercept addresses.
    pub(crate) listen_port: u16,
    /// The IPv6 intercept address.
    pub(crate) intercept_v6: Ipv6Addr,
    /// `SO_MARK` of the agent's own sockets; a single bit.
    pub(crate) socket_mark: u32,
    /// How an endpoint is chosen.
    pub(crate) strategy: Strategy,
    /// TCP connections at a time; none: as many as the file limit has room for.
    pub(crate) max_connections: Option<usize>,
    /// UDP flows at a time; none: as many as the file limit has room for.
    pub(crate) max_udp_flows: Option<usize>,
    /// When a silent UDP flow is forgotten.
    pub(crate) udp_idle_timeout: Duration,
    /// How long one endpoint may take to accept.
    pub(crate) dial_timeout: Duration,
    /// How long all endpoints tried for one connection may take.
    pub(crate) dial_deadline: Duration,
    /// How the rules are put into the kernel.
    pub(crate) backend: Backend,
    /// Which iptables to use.
    pub(crate) iptables_flavour: Flavour,
    /// How often the rules in the kernel are compared with those wanted.
    pub(crate) iptables_check_period: Duration,
}

/// `modules.edgeProxy.backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Backend {
    /// As kube-proxy does; iptables if there is no kube-proxy.
    #[default]
    Auto,
    /// `iptables`, whatever kube-proxy does.
    Iptables,
    /// `nftables`, whatever kube-proxy does.
    Nftables,
}

/// `modules.edgeProxy.iptables.flavour`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// That of kube-proxy or kubelet; nft if there is neither.
    #[default]
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Default for KubeApiConfig {
    fn default() -> Self {
        Self {
            master: None,
            kube_config: None,
            qps: 100,
            burst: 200,
            meta_server: MetaServer::default(),
        }
    }
}

impl Default for MetaServer {
    fn default() -> Self {
        Self {
            server: "http://127.0.0.1:10550".to_owned(),
            security: MetaServerSecurity::default(),
        }
    }
}

impl Default for MetaServerSecurity {
    fn default() -> Self {
        Self {
            require_authorization: false,
            insecure_skip_tls_verify: false,
            tls_ca_file: "/etc/edgemesh/metaserver/rootCA.crt".into(),
            tls_cert_file: "/etc/edgemesh/metaserver/server.crt".into(),
            tls_private_key_file: "/etc/edgemesh/metaserver/server.key".into(),
        }
    }
}

impl Default for CommonConfig {
    fn default() -> Self {
        Self {
            intercept_v4: Ipv4Addr::new(169, 254, 96, 16),
            // Five seconds before Kubernetes would kill the pod, for all other steps.
            termination_grace_period: Duration::from_secs(25),
            admin: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 20008)),
            log_form: Form::Human,
            log_level: "info",
        }
    }
}

impl Default for EdgeProxyConfig {
    fn default() -> Self {
        Self {
            // EdgeMesh's default, and not ours to change: its Helm chart leaves the key
            // out of the file where the operator said false.
            enable: false,
            filter: FilterMode::IfLabelExists,
            datapath: DatapathMode::Hybrid,
            reachability: ReachabilityConfig::default(),
            listen_port: 20007,
            // fd00::/8 (RFC 4193), then "edmesh" in ASCII as far as hexadecimal goes.
            intercept_v6: Ipv6Addr::new(0xfd00, 0xed6e, 0x6d65, 0x7368, 0, 0, 0, 1),
            // Apart from kube-proxy's 0x4000 and 0x8000 and Calico's 0xffff0000.
            socket_mark: 0x2000,
            strategy: Strategy::RoundRobin,
            max_connections: None,
            max_udp_flows: None,
            udp_idle_timeout: Duration::from_secs(60),
            dial_timeout: Duration::from_secs(2),
            dial_deadline: Duration::from_secs(5),
            backend: Backend::Auto,
            iptables_flavour: Flavour::Auto,
            iptables_check_period: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// The configuration of an agent that was started without a file: the defaults, but
    /// with `modules.edgeProxy.enable`, for nobody starts an agent by hand to do nothing.
    #[must_use]
    pub(crate) fn without_file() -> Self {
        let mut config = Self::default();
        config.edge_proxy.enable = true;
        config
    }
}
