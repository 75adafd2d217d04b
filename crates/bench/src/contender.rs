//! Who takes part on one node, and how each is set up.

mod haproxy;
mod nginx;
pub mod wireguard;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{
    Agent, Background, ClusterService, Endpoint, Flavour, KubeProxy, KubeProxyMode, Lab, Namespace,
    Node, Place, await_ok,
};

use crate::load::{Counted, ONCE, connections};
use crate::processes::Processes;
use crate::stage::{CLUSTER_IP, OneNode};

/// How long a contender may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);
/// An address that nobody has.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 245, 255, 254);

/// How rules get into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// By iptables, in the flavour that writes to nf_tables.
    Iptables,
    /// By a table of nf_tables.
    Nftables,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Nftables];

    /// As `modules.edgeProxy.backend` and kube-proxy's `--proxy-mode` have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// `modules.edgeProxy.datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datapath {
    /// The kernel takes what this node reaches by itself.
    Hybrid,
    /// The agent takes everything.
    User,
}

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    /// The server's own address, nobody between.
    Direct,
    /// kube-proxy's rules.
    KubeProxy(Backend),
    /// The agent, beside kube-proxy's rules of the same kind for the same Services.
    Agent(Datapath, Backend),
    /// HAProxy in TCP mode.
    Haproxy {
        /// With splice(2) in both directions, whatever it thinks of that.
        splice: bool,
    },
    /// nginx's stream module.
    Nginx,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.pad("direct"),
            Self::KubeProxy(backend) => write!(f, "kube-proxy's rules, {}", backend.name()),
            Self::Agent(Datapath::Hybrid, backend) => {
                write!(f, "agent, kernel path, {}", backend.name())
            }
            Self::Agent(Datapath::User, backend) => {
                write!(f, "agent, user path, {}", backend.name())
            }
            Self::Haproxy { splice: true } => f.pad("HAProxy, forced splice"),
            Self::Haproxy { splice: false } => f.pad("HAProxy"),
            Self::Nginx => f.pad("nginx stream"),
        }
    }
}

impl Contender {
    /// All, in the order of tables.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Direct];
        all.extend(Backend::ALL.map(Self::KubeProxy));
        all.extend(Backend::ALL.map(|backend| Self::Agent(Datapath::Hybrid, backend)));
        all.extend([
            Self::Haproxy { splice: true },
            Self::Haproxy { splice: false },
            Self::Nginx,
        ]);
        all.extend(Backend::ALL.map(|backend| Self::Agent(Datapath::User, backend)));
        all
    }

    /// Whether datagrams are its business.
    #[must_use]
    pub fn takes_datagrams(self) -> bool {
        !matches!(self, Self::Haproxy { .. })
    }

    /// Whether a process of its own carries the bytes.
    #[must_use]
    pub fn is_in_user_mode(self) -> bool {
        match self {
            Self::Direct | Self::KubeProxy(_) | Self::Agent(Datapath::Hybrid, _) => false,
            Self::Agent(Datapath::User, _) | Self::Haproxy { .. } | Self::Nginx => true,
        }
    }

    /// What has to be installed for it, as `apt-get install` knows it; `None` when it is.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Self::Haproxy { .. } if find("haproxy").is_none() => Some("haproxy"),
            Self::Nginx if find("nginx").is_none() || !Path::new(nginx::STREAM).exists() => {
                Some("nginx libnginx-mod-stream")
            }
            Self::Haproxy { .. }
            | Self::Nginx
            | Self::Direct
            | Self::KubeProxy(_)
            | Self::Agent(..) => None,
        }
    }

    /// A name for namespaces: devices' names are short.
    fn short(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::KubeProxy(Backend::Iptables) => "kp-ipt",
            Self::KubeProxy(Backend::Nftables) => "kp-nft",
            Self::Agent(Datapath::Hybrid, Backend::Iptables) => "ak-ipt",
            Self::Agent(Datapath::Hybrid, Backend::Nftables) => "ak-nft",
            Self::Agent(Datapath::User, Backend::Iptables) => "au-ipt",
            Self::Agent(Datapath::User, Backend::Nftables) => "au-nft",
            Self::Haproxy { splice: true } => "haproxy-s",
            Self::Haproxy { splice: false } => "haproxy",
            Self::Nginx => "nginx",
        }
    }
}

/// Where a program is, in `PATH` or where Debian puts those of the administrator.
#[must_use]
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// A contender that serves, on a node of its own.
#[derive(Debug)]
pub struct Ready {
    /// Who.
    pub contender: Contender,
    /// Its node.
    pub stage: OneNode,
    address: Ipv4Addr,
    processes: Processes,
    running: Running,
}

#[derive(Debug)]
enum Running {
    Nothing,
    Rules {
        _kube_proxy: KubeProxy,
    },
    Agent {
        agent: Box<Agent>,
        _kube_proxy: KubeProxy,
    },
    Program {
        _program: Background,
    },
}

impl Ready {
    /// Sets a contender up and waits until it serves. `agent` is the program; `turn` tells
    /// apart the nodes of one contender.
    ///
    /// # Errors
    ///
    /// When it does not serve within a minute: says what it said.
    pub fn set_up(contender: Contender, lab: &Lab, agent: &Path, turn: usize) -> Result<Self> {
        let stage = OneNode::create(lab, &format!("{}-{turn}", contender.short()))?;
        let (address, processes, running) = match contender {
            Contender::Direct => (stage.server.ipv4(), Processes::default(), Running::Nothing),
            Contender::KubeProxy(backend) => {
                let kube_proxy = rules(&stage.node, backend, &[stage.service()])?;
                let running = Running::Rules {
                    _kube_proxy: kube_proxy,
                };
                (CLUSTER_IP, Processes::default(), running)
            }
            Contender::Agent(datapath, backend) => {
                let kube_proxy = rules(&stage.node, backend, &[leading_nowhere(stage.service())])?;
                let mut agent = Agent::prepare(lab, &stage.node, agent)?;
                agent.publish(&[stage.service()])?;
                start(&mut agent, datapath, backend)?;
                let pid = agent.process().context("the agent has ended")?.pid();
                let running = Running::Agent {
                    agent: Box::new(agent),
                    _kube_proxy: kube_proxy,
                };
                (CLUSTER_IP, Processes::of(&[pid]), running)
            }
            Contender::Haproxy { splice } => {
                let program = haproxy::start(lab, &stage, splice)?;
                let processes = Processes::of(&[program.pid()]);
                let running = Running::Program { _program: program };
                (stage.node.ipv4(), processes, running)
            }
            Contender::Nginx => {
                let program = nginx::start(lab, &stage)?;
                let processes = Processes::of(&[program.pid()]);
                let running = Running::Program { _program: program };
                (stage.node.ipv4(), processes, running)
            }
        };
        let ready = Self {
            contender,
            stage,
            address,
            processes,
            running,
        };
        ready.await_service()?;
        ready.check_path()?;
        Ok(ready)
    }

    /// Takes it down.
    ///
    /// # Errors
    ///
    /// Those of ip.
    pub fn clear(self) -> Result<()> {
        drop(self.running);
        self.stage.clear()
    }

    /// Where clients connect to.
    #[must_use]
    pub fn to(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// Where clients are.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        self.stage.client.namespace()
    }

    /// What arrives at the server.
    #[must_use]
    pub fn counted(&self) -> &Counted {
        self.stage.load.counted()
    }

    /// The processes that carry the bytes, if any do.
    #[must_use]
    pub fn processes(&self) -> Processes {
        if self.contender.is_in_user_mode() {
            self.processes.clone()
        } else {
            Processes::default()
        }
    }

    fn await_service(&self) -> Result<()> {
        let to = self.to(ONCE);
        let what = format!("{} serves", self.contender);
        await_ok(PATIENCE, &what, || {
            self.client().run(|| connections::once(to))??;
            Ok(())
        })?;
        Ok(())
    }

    /// That the agent serves does not show by which path.
    fn check_path(&self) -> Result<()> {
        let (Contender::Agent(datapath, _), Running::Agent { agent, .. }) =
            (self.contender, &self.running)
        else {
            return Ok(());
        };
        let metrics = agent.get("/metrics")?;
        let accepted = sum(&metrics, "edgemesh_forward_connections_accepted");
        match datapath {
            Datapath::Hybrid => ensure!(
                accepted == 0.0,
                "the agent takes connections that the kernel was to take"
            ),
            Datapath::User => ensure!(accepted > 0.0, "the agent took no connection"),
        }
        Ok(())
    }
}

/// kube-proxy's rules beside an agent: who gets past the agent finds nobody, so that nothing
/// that kube-proxy serves is taken for the agent's.
fn leading_nowhere(service: ClusterService) -> ClusterService {
    let mut service = service.without_endpoints();
    service.endpoints.push(Endpoint {
        addresses: vec![NOWHERE.into()],
        node: None,
        ready: true,
    });
    service
}

/// Writes kube-proxy's rules.
///
/// # Errors
///
/// Those of iptables and nft.
pub fn rules(node: &Node, backend: Backend, services: &[ClusterService]) -> Result<KubeProxy> {
    let mode = match backend {
        Backend::Iptables => KubeProxyMode::Iptables(Flavour::Nft),
        Backend::Nftables => KubeProxyMode::Nftables,
    };
    KubeProxy::start(node, mode, services)
}

/// The sum of all samples of a page for Prometheus whose names begin like this.
#[must_use]
pub fn sum(metrics: &str, name: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    let values = samples.filter_map(|line| line.rsplit_once(' '));
    values
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// Starts an agent that has the key `datapath`, or, for the user path, one that knows no other.
///
/// # Errors
///
/// When it does not get ready.
pub fn start(agent: &mut Agent, datapath: Datapath, backend: Backend) -> Result<()> {
    let mut outcome = Ok(());
    for text in configurations(datapath, backend) {
        agent.configure(&text)?;
        outcome = agent.start();
        match &outcome {
            Ok(()) => return Ok(()),
            Err(error) if format!("{error:#}").contains("modules.edgeProxy.datapath") => {}
            Err(_) => break,
        }
    }
    outcome
}

/// What to configure an agent with, the best first: one from before the key `datapath` was
/// made knows the user path only.
#[must_use]
pub fn configurations(datapath: Datapath, backend: Backend) -> Vec<String> {
    let text = format!(
        "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
         kind: EdgeMeshAgent\n\
         commonConfig:\n  terminationGracePeriod: 1s\n\
         modules:\n  edgeProxy:\n    enable: true\n    backend: {}\n",
        backend.name()
    );
    match datapath {
        Datapath::Hybrid => vec![format!("{text}    datapath: hybrid\n")],
        Datapath::User => vec![format!("{text}    datapath: user\n"), text],
    }
}

/// Waits until a program listens on `to`.
fn await_listening(program: &mut Background, place: &impl Place, to: SocketAddr) -> Result<()> {
    await_ok(PATIENCE, "it listens", || {
        if program.ended()?.is_some() {
            return Ok(());
        }
        place.connect(to)?;
        Ok(())
    })?;
    if let Some(status) = program.ended()? {
        bail!("it ended ({status}):\n{}", program.log_tail(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_have_names_of_their_own_that_fit_a_device() {
        let all = Contender::all();
        for (place, one) in all.iter().enumerate() {
            assert!(one.short().len() <= 9);
            for other in &all[..place] {
                assert_ne!(one.short(), other.short());
                assert_ne!(one.to_string(), other.to_string());
            }
        }
        assert_eq!(all[0], Contender::Direct, "tables compare with it");
    }

    #[test]
    fn samples_of_one_name_are_summed() {
        let page = "# TYPE a counter\na_total{b=\"c\"} 2\na_total 0.5\nb_total 7\n";
        assert_eq!(sum(page, "a_total"), 2.5);
        assert_eq!(sum(page, "c"), 0.0);
    }

    #[test]
    fn what_is_nowhere_is_not_found() {
        assert!(find("sh").is_some());
        assert!(find("no-program-has-this-name").is_none());
    }
}
