//! What stands on the playground: a node, its pods, their Services, and requests to them.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Family, Flavour, KubeProxy, Lab, Node, Place, Pod, RuleList, Serve,
    Server, Table,
};

use super::way::{Count, Way};

/// The label that leaves a Service to kube-proxy.
pub(super) const ADDED_LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

const CHAINS: [&str; 2] = ["EDGEMESH-PORTALS-CONTAINER", "EDGEMESH-PORTALS-HOST"];

/// A node with three pods, two of which answer for the Services.
pub(super) struct Site {
    pub(super) flavour: Flavour,
    pub(super) node: Node,
    pub(super) client: Pod,
    pub(super) web: [Pod; 2],
    pub(super) agent: Agent,
    services: Vec<ClusterService>,
    kube_proxy: Option<KubeProxy>,
    _servers: Vec<Server>,
}

/// One request, from somewhere to a Service.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    from: From,
    protocol: Protocol,
    to: &'static str,
    port: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Pod,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

/// All requests there are: each protocol and family, from pod and host.
const REQUESTS: [Request; 6] = [
    Request::new(
        From::Pod,
        Protocol::Tcp,
        "10.96.10.1:80",
        "default/web:http",
    ),
    Request::new(
        From::Host,
        Protocol::Tcp,
        "10.96.10.1:80",
        "default/web:http",
    ),
    Request::new(
        From::Pod,
        Protocol::Tcp,
        "[fd00:96::1]:80",
        "default/web:http",
    ),
    Request::new(
        From::Host,
        Protocol::Tcp,
        "[fd00:96::1]:80",
        "default/web:http",
    ),
    Request::new(From::Pod, Protocol::Udp, "10.96.10.2:53", "default/dns:dns"),
    Request::new(
        From::Host,
        Protocol::Udp,
        "10.96.10.2:53",
        "default/dns:dns",
    ),
];

impl Request {
    const fn new(from: From, protocol: Protocol, to: &'static str, port: &'static str) -> Self {
        Self {
            from,
            protocol,
            to,
            port,
        }
    }

    pub(super) fn is_to_web(&self) -> bool {
        self.port == "default/web:http"
    }

    fn family(&self) -> Family {
        if self.to.starts_with('[') {
            Family::V6
        } else {
            Family::V4
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = match self.from {
            From::Pod => "pod ",
            From::Host => "host",
        };
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(formatter, "{from} -> {protocol} {:<16}", self.to)
    }
}

impl Site {
    /// Builds everything; neither kube-proxy nor the agent runs yet.
    pub(super) fn build(lab: &Lab, flavour: Flavour) -> Result<Self> {
        let node = lab.node("edge-1").create()?;
        let client = node.pod("client").create()?;
        let web = [node.pod("web-1").create()?, node.pod("web-2").create()?];
        let mut servers = Vec::new();
        for pod in &web {
            servers.push(pod.serve(8080, Serve::Identity)?);
            servers.push(pod.serve(5353, Serve::UdpIdentity)?);
        }
        let executable = std::env::current_exe().context("cannot find this executable")?;
        let site = Self {
            flavour,
            agent: Agent::prepare(lab, &node, executable)?,
            services: services(&web),
            kube_proxy: None,
            node,
            client,
            web,
            _servers: servers,
        };
        site.agent.publish(&site.services)?;
        Ok(site)
    }

    pub(super) fn start_kube_proxy(&mut self) -> Result<()> {
        let proxy = KubeProxy::start(&self.node, self.flavour, &self.services)?;
        self.kube_proxy = Some(proxy);
        Ok(())
    }

    /// `iptables -t nat -F` in both families; then kube-proxy does what it always does when
    /// it finds its chains gone.
    pub(super) fn flush_and_restart_kube_proxy(&self) -> Result<()> {
        for family in Family::ALL {
            self.flavour
                .command(&self.node, family, ["-t", "nat", "-F"])?;
        }
        match &self.kube_proxy {
            Some(proxy) => proxy.restart(),
            None => Ok(()),
        }
    }

    /// Puts the label on `default/web`, as the agent's manifests show it, or takes it away.
    /// kube-proxy does not look at it.
    pub(super) fn set_label(&self, present: bool) -> Result<()> {
        let mut services = self.services.clone();
        if present {
            services[0] = services[0].clone().label(ADDED_LABEL, "");
        }
        self.agent.publish(&services)
    }

    pub(super) fn requests(&self) -> [Request; 6] {
        REQUESTS
    }

    /// Makes a request and tells who answered and which way it took.
    ///
    /// # Errors
    ///
    /// When nobody answers, or it took another way than the expected one.
    pub(super) fn carry_out(&self, request: Request, expected: Way) -> Result<String> {
        let before = Count::of(request.port, &self.nat(request.family())?);
        let answer = match (request.from, request.protocol) {
            (From::Pod, Protocol::Tcp) => self.client.ask(request.to, "hello"),
            (From::Host, Protocol::Tcp) => self.node.ask(request.to, "hello"),
            (From::Pod, Protocol::Udp) => self.client.ask_udp(request.to, "hello"),
            (From::Host, Protocol::Udp) => self.node.ask_udp(request.to, "hello"),
        }
        .with_context(|| request.to_string())?;
        let after = Count::of(request.port, &self.nat(request.family())?);
        match after.way_since(before) {
            Some(way) if way == expected => {
                Ok(format!("{request}  {} answered {way}", answer.server))
            }
            Some(way) => {
                let server = answer.server;
                Err(anyhow::anyhow!(
                    "{request}  {server} answered {way}, not {expected}"
                ))
            }
            None => Err(anyhow::anyhow!(
                "{request}  {} answered, but by whose rule the counters don't tell",
                answer.server
            )),
        }
    }

    /// A connection to `default/web` that has carried something already.
    pub(super) fn open_connection(&self) -> Result<OpenConnection> {
        let stream = self.client.connect("10.96.10.1:80")?;
        let mut connection = OpenConnection { stream };
        connection.read_line()?;
        connection.goes_on()?;
        Ok(connection)
    }

    /// How many rules each chain has for `default/web` in IPv4.
    pub(super) fn rules_per_web_port(&self) -> usize {
        self.services[0].ports.len()
    }

    /// Checks that each of the agent's chains, in both families, has `count` rules for a
    /// dual-stack Service, and still all rules of others.
    pub(super) fn check_rules(&self, service: &str, count: usize) -> Result<()> {
        for family in Family::ALL {
            let nat = self.nat(family)?;
            for chain in CHAINS {
                let found = portals(&nat, chain)
                    .filter(|name| name.starts_with(&format!("{service}:")))
                    .count();
                ensure!(found == count, "{chain} has {found} rules for {service}");
            }
        }
        let dns = portals(&self.nat(Family::V4)?, CHAINS[0])
            .filter(|name| *name == "default/dns:dns")
            .count();
        ensure!(dns == 1, "default/dns:dns has {dns} rules");
        Ok(())
    }

    /// Checks that there is a rule for each port with a ClusterIP, and none for the labelled,
    /// headless node-exporter.
    pub(super) fn check_only_portals_have_rules(&self) -> Result<String> {
        let nat = self.nat(Family::V4)?;
        for chain in CHAINS {
            let mut found: Vec<&str> = portals(&nat, chain).collect();
            found.sort_unstable();
            let wanted = ["default/dns:dns", "default/web:http"];
            ensure!(
                found == wanted,
                "{chain} has rules for {found:?}, not for {wanted:?}"
            );
        }
        Ok(
            "one rule per service port in both chains, none for monitoring/node-exporter"
                .to_owned(),
        )
    }

    pub(super) fn iptables(&self, words: &str) -> Result<String> {
        self.flavour
            .command(&self.node, Family::V4, words.split_whitespace())
    }

    fn nat(&self, family: Family) -> Result<RuleList> {
        RuleList::read(&self.node, self.flavour, family, Table::Nat)
    }
}

/// The `namespace/name:port` of a chain's rules, leaving out rules that are no portal's.
fn portals<'a>(nat: &'a RuleList, chain: &str) -> impl Iterator<Item = &'a str> {
    nat.rules(chain)
        .iter()
        .filter_map(|rule| rule.comment())
        .filter(|comment| comment.contains('/') && !comment.contains(' '))
}

/// `default/web` first: it is the one that gets labelled.
fn services(web: &[Pod; 2]) -> Vec<ClusterService> {
    let served = |service: ClusterService| service.endpoint(&web[0]).endpoint(&web[1]);
    vec![
        served(ClusterService::new("default/web"))
            .cluster_ip("10.96.10.1")
            .cluster_ip("fd00:96::1")
            .tcp("http", 80, 8080),
        served(ClusterService::new("default/dns"))
            .cluster_ip("10.96.10.2")
            .udp("dns", 53, 5353),
        served(ClusterService::new("monitoring/node-exporter"))
            .label(ADDED_LABEL, "")
            .tcp("metrics", 9100, 9100),
    ]
}

/// A TCP connection to an identity server, after its greeting an echo.
pub(super) struct OpenConnection {
    stream: TcpStream,
}

impl OpenConnection {
    /// Says something and hears it back.
    pub(super) fn goes_on(&mut self) -> Result<()> {
        self.stream
            .write_all(b"still there?\n")
            .context("the connection from before broke")?;
        let heard = self
            .read_line()
            .context("the connection from before broke")?;
        ensure!(heard == "still there?\n", "it answered {heard:?}");
        Ok(())
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}
