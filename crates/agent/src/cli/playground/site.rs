//! What stands on the playground: a node, its pods, their Services, and requests to them.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Family, Flavour, KubeProxy, Lab, Node, Place, Pod, Protocol, Rule,
    RuleList, Serve, Server, Table,
};

use super::way::{Count, Way};

/// The label that leaves a Service to kube-proxy.
pub(super) const ADDED_LABEL: &str = "service.edgemesh.kubeedge.io/service-proxy-name";

/// The service port of the Service that gets labelled.
pub(super) const WEB_PORT: &str = "default/web:http";

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

/// Where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Pod,
    Host,
}

impl From {
    pub(super) const ALL: [Self; 2] = [Self::Pod, Self::Host];
}

impl fmt::Display for From {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pod => "pod ",
            Self::Host => "host",
        })
    }
}

/// Where a request goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    protocol: Protocol,
    address: &'static str,
    /// The service port behind it.
    port: &'static str,
}

/// The Service that gets labelled, by each of its addresses.
pub(super) const TO_WEB: [To; 2] = [
    To::new(Protocol::Tcp, "10.96.10.1:80", WEB_PORT),
    To::new(Protocol::Tcp, "[fd00:96::1]:80", WEB_PORT),
];

/// Everything there is.
pub(super) const TO_ALL: [To; 3] = [
    TO_WEB[0],
    TO_WEB[1],
    To::new(Protocol::Udp, "10.96.10.2:53", "default/dns:dns"),
];

impl To {
    const fn new(protocol: Protocol, address: &'static str, port: &'static str) -> Self {
        Self {
            protocol,
            address,
            port,
        }
    }

    fn family(&self) -> Family {
        if self.address.starts_with('[') {
            Family::V6
        } else {
            Family::V4
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.protocol.lower(), self.address)
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

    /// Makes a request and returns the name of the pod that answered.
    ///
    /// # Errors
    ///
    /// When nobody answers, or it took another way than the expected one.
    pub(super) fn carry_out(&self, from: From, to: To, expected: Way) -> Result<String> {
        let count = || Ok::<_, anyhow::Error>(Count::of(to.port, &self.nat(to.family())?));
        let before = count()?;
        let answer = match (from, to.protocol) {
            (From::Pod, Protocol::Tcp) => self.client.ask(to.address, "hello"),
            (From::Host, Protocol::Tcp) => self.node.ask(to.address, "hello"),
            (From::Pod, Protocol::Udp) => self.client.ask_udp(to.address, "hello"),
            (From::Host, Protocol::Udp) => self.node.ask_udp(to.address, "hello"),
        }?;
        let way = count()?.way_since(before);
        let server = answer.server;
        match way {
            Some(way) if way == expected => Ok(server),
            Some(way) => bail!("{to}: {server} answered {way}, not {expected}"),
            None => bail!("{to}: {server} answered, but the counters don't tell by whose rule"),
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

    /// The agent's portal rules of both families, in short.
    pub(super) fn portal_rules(&self) -> Result<BTreeSet<String>> {
        let mut rules = BTreeSet::new();
        for family in Family::ALL {
            let nat = self.nat(family)?;
            for chain in CHAINS {
                rules.extend(
                    nat.rules(chain)
                        .iter()
                        .filter_map(|rule| in_short(chain, rule)),
                );
            }
        }
        Ok(rules)
    }

    pub(super) fn iptables(&self, words: &str) -> Result<String> {
        self.flavour
            .command(&self.node, Family::V4, words.split_whitespace())
    }

    fn nat(&self, family: Family) -> Result<RuleList> {
        RuleList::read(&self.node, self.flavour, family, Table::Nat)
    }
}

/// Checks that `rules` has one for each service port with a ClusterIP in each chain, and
/// none for the labelled, headless node-exporter.
pub(super) fn check_complete(rules: &BTreeSet<String>) -> Result<()> {
    let (found, wanted) = (rules.len(), TO_ALL.len() * CHAINS.len());
    ensure!(
        found == wanted,
        "{found} rules instead of {wanted}: {rules:#?}"
    );
    let stray = rules.iter().find(|rule| rule.contains("monitoring/"));
    ensure!(stray.is_none(), "{stray:?} should not be there");
    Ok(())
}

/// `CHAIN  tcp 10.96.10.1:80 -> 169.254.96.16:20007  default/web:http` for a portal's rule;
/// `None` for the chain's own first rules.
fn in_short(chain: &str, rule: &Rule) -> Option<String> {
    let (address, port) = (rule.option("-d")?, rule.option("--dport")?);
    let address = address
        .split_once('/')
        .map_or(address, |(address, _)| address);
    let at = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    Some(format!(
        "{chain:<26}  {}  {} {at} -> {}",
        rule.comment()?,
        rule.option("-p")?,
        rule.option("--to-destination")?
    ))
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
