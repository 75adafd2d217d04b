//! One cluster: a control plane and a node with pods, Services, kube-proxy and the agent.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Answer, Background, ClusterService, Family, Flavour, Lab, Node, Place, Pod, Serve, Server,
    await_ok,
};

use crate::agent::{AgentSetup, Datapath, FilterMode};
use crate::api::KubeApi;
use crate::control_plane::ControlPlane;
use crate::kube_proxy::{KubeProxySetup, Mode};
use crate::kube_proxy_table::KubeProxyTable;
use crate::logs::{Logs, show};
use crate::portals::{CONTAINER, Entry, HOST, Portals, foreign_rules};
use crate::programs::Programs;

/// The bound of every wait. What was promised is much less; it is measured and shown, not
/// asserted, so that a busy machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// kube-proxy is at rest when its rules have been the same for so long: many times the
/// pause between the first two times it writes them.
const AT_REST: Duration = Duration::from_millis(1500);

/// Within this time the agent's rules shall stand (again).
pub(crate) const REPAIRED: Duration = Duration::from_secs(2);

/// A Service port that pods answer for with their names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    /// As it stands in rules.
    pub(crate) name: &'static str,
    /// Address and port.
    pub(crate) address: &'static str,
    /// TCP or UDP.
    pub(crate) udp: bool,
}

impl Port {
    /// The family of its address.
    fn family(self) -> Family {
        if self.address.starts_with('[') {
            Family::V6
        } else {
            Family::V4
        }
    }
}

/// Two pods answer for it.
pub(crate) const WEB: Port = Port {
    name: "default/web:http",
    address: "10.96.10.1:80",
    udp: false,
};
/// One number, two protocols.
pub(crate) const DNS: Port = Port {
    name: "default/dns:dns",
    address: "10.96.10.2:53",
    udp: true,
};
/// The other half of [`DNS`].
pub(crate) const DNS_TCP: Port = Port {
    name: "default/dns:dns-tcp",
    address: "10.96.10.2:53",
    udp: false,
};
/// A Service nobody answers for.
pub(crate) const LONELY: Port = Port {
    name: "default/lonely:http",
    address: "10.96.10.3:80",
    udp: false,
};
/// All that have a rule of the agent's, and the API server's own.
pub(crate) const PORT_NAMES: [&str; 5] = [
    "default/kubernetes:https",
    WEB.name,
    DNS.name,
    DNS_TCP.name,
    LONELY.name,
];

/// See the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The control plane.
    pub(crate) control_plane: ControlPlane,
    /// The node.
    pub(crate) node: Node,
    /// A pod that asks.
    pub(crate) client: Pod,
    /// Pods that answer.
    pub(crate) servers: [Pod; 2],
    /// The flavour of kube-proxy and kubelet.
    pub(crate) flavour: Flavour,
    /// How agents are started.
    pub(crate) agent: AgentSetup,
    kube_proxy: KubeProxySetup,
    _listening: Vec<Server>,
    logs: Logs,
}

impl Cluster {
    /// Runs `scenario` in a new cluster whose Services exist, but where neither kube-proxy
    /// nor the agent has been started yet.
    pub(crate) fn with(
        lab: &Lab,
        flavour: Flavour,
        scenario: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut cluster = Self::start(lab, flavour)?;
        cluster.say(&format!("cluster up after {:.1?}", start.elapsed()));
        scenario(&mut cluster)?;
        cluster.say(&format!("scenario over after {:.1?}", start.elapsed()));
        cluster.logs.discard();
        Ok(())
    }

    fn start(lab: &Lab, flavour: Flavour) -> Result<Self> {
        let logs = Logs::new()?;
        let programs = Programs::find()?;
        let node = lab.node("node1").create()?;
        let client = node.pod("client").create()?;
        let servers = [node.pod("web-1").create()?, node.pod("web-2").create()?];
        let control_plane = ControlPlane::start(lab, &programs, logs.folder()?)?;
        let kubeconfig = control_plane.kubeconfig()?;
        let folder = lab.new_folder("node1")?;
        let cluster = Self {
            agent: AgentSetup::new(&folder, kubeconfig.clone()),
            kube_proxy: KubeProxySetup::new(&programs, &folder, flavour, kubeconfig)?,
            _listening: listen(&servers)?,
            control_plane,
            node,
            client,
            servers,
            flavour,
            logs,
        };
        cluster.leave_kubelets_mark()?;
        cluster.populate(&cluster.api()?)?;
        Ok(cluster)
    }

    /// A client of the API server.
    pub(crate) fn api(&self) -> Result<KubeApi> {
        self.control_plane.api()
    }

    /// The Service behind [`WEB`].
    pub(crate) fn web(&self) -> ClusterService {
        let [first, second] = &self.servers;
        ClusterService::new("default/web")
            .cluster_ip("10.96.10.1")
            .tcp("http", 80, 8080)
            .endpoint(first)
            .endpoint(second)
    }

    /// Starts kube-proxy in its usual mode and waits until it serves all Services.
    pub(crate) fn start_kube_proxy(&self) -> Result<Background> {
        self.start_kube_proxy_in(Mode::Iptables)
    }

    /// Starts kube-proxy and waits until it serves all Services.
    pub(crate) fn start_kube_proxy_in(&self, mode: Mode) -> Result<Background> {
        let log = self.logs.folder()?.join("kube-proxy.log");
        let running = self.kube_proxy.run(&self.node, mode).start(log)?;
        await_ok(
            PATIENCE,
            "kube-proxy has programmed its rules",
            || match mode {
                Mode::Iptables => self.kube_proxys_chains_are_written(),
                Mode::Nftables => self.kube_proxys_tables_are_written(),
            },
        )?;
        Ok(running)
    }

    /// The families that kube-proxy has rules for.
    pub(crate) fn kube_proxys_families(&self) -> &'static [Family] {
        self.kube_proxy.families()
    }

    /// Starts the agent in its usual filter mode.
    pub(crate) fn start_agent(&self) -> Result<Background> {
        self.start_agent_with(FilterMode::IfLabelExists)
    }

    /// Starts the agent.
    pub(crate) fn start_agent_with(&self, mode: FilterMode) -> Result<Background> {
        let log = self.logs.folder()?.join("agent.log");
        self.agent.run(&self.node, mode)?.start(log)
    }

    /// Starts the agent's next process, which takes over from one that runs. Each has a log
    /// of its own.
    pub(crate) fn start_next_agent(&self, number: usize) -> Result<Background> {
        let log = self.logs.folder()?.join(format!("agent-{number}.log"));
        let run = self.agent.run(&self.node, FilterMode::IfLabelExists)?;
        run.arg("--take-over").start(log)
    }

    /// The agent's rules as they are now, IPv4.
    pub(crate) fn portals(&self) -> Result<Portals> {
        self.portals_of(Family::V4)
    }

    /// The agent's rules as they are now.
    pub(crate) fn portals_of(&self, family: Family) -> Result<Portals> {
        Portals::read(&self.node, self.flavour, family)
    }

    /// All rules that are not the agent's.
    pub(crate) fn foreign_rules(&self) -> Result<String> {
        foreign_rules(&self.node, self.flavour)
    }

    /// Runs an iptables command on the node.
    pub(crate) fn iptables<const N: usize>(&self, arguments: [&str; N]) -> Result<()> {
        self.flavour
            .command(&self.node, Family::V4, arguments)
            .map(|_| ())
    }

    /// As [`Self::foreign_rules`], once kube-proxy has come to rest: at its start it writes
    /// all rules more than once, 1.20 in another order each time.
    pub(crate) fn settled_foreign_rules(&self) -> Result<String> {
        let mut seen = (String::new(), Instant::now());
        await_ok(PATIENCE, "kube-proxy leaves its rules alone", || {
            let now = self.foreign_rules()?;
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            ensure!(seen.1.elapsed() > AT_REST, "they changed just now");
            Ok(())
        })?;
        Ok(seen.0)
    }

    /// Fails unless all rules that are not the agent's are still as `before`, byte for byte.
    pub(crate) fn foreign_rules_are(&self, before: &str) -> Result<()> {
        same_text(before, &self.foreign_rules()?).context("rules of others changed")
    }

    /// As [`Self::foreign_rules_are`], across a restart of kube-proxy, which may order its
    /// rules anew.
    pub(crate) fn foreign_rules_are_in_any_order(&self, before: &str) -> Result<()> {
        same_text(&sorted_lines(before), &sorted_lines(&self.foreign_rules()?))
            .context("rules of others changed")
    }

    /// Waits until the agent stands before kube-proxy and serves.
    pub(crate) fn await_in_force(&self) -> Result<()> {
        await_ok(PATIENCE, "the agent serves", || {
            self.in_force()?;
            self.answered_by_agent()
        })
    }

    /// Fails unless the agent stands before kube-proxy, with one rule for each Service port
    /// in each chain.
    pub(crate) fn in_force(&self) -> Result<()> {
        let portals = self.portals()?;
        portals.come_first()?;
        portals.are_unique()?;
        PORT_NAMES
            .iter()
            .try_for_each(|name| portals.intercept(name))
    }

    /// Fails unless pod and host are answered through the agent, by TCP and UDP, and
    /// refused at once where nobody answers.
    pub(crate) fn answered_by_agent(&self) -> Result<()> {
        for port in [WEB, DNS, DNS_TCP] {
            self.port_answered_by_agent(port)?;
        }
        refused(&self.client, LONELY).context("from a pod")?;
        refused(&self.node, LONELY).context("from the host")
    }

    /// Fails unless pod and host are answered through the agent on this port.
    pub(crate) fn port_answered_by_agent(&self, port: Port) -> Result<()> {
        self.through_agent(&self.client, CONTAINER, port)
            .context("from a pod")?;
        self.through_agent(&self.node, HOST, port)
            .context("from the host")
    }

    /// Fails unless pod and host are answered through kube-proxy alone.
    pub(crate) fn answered_by_kube_proxy(&self, ports: &[Port]) -> Result<()> {
        let before = self.portals()?.caught_in_all();
        for port in ports {
            let answer = ask(&self.client, *port).context("from a pod")?;
            let pod = self.client.ipv4();
            ensure!(
                answer.client.ip() == pod,
                "{}: the server saw {} instead of the client, {pod}",
                port.name,
                answer.client
            );
            ask(&self.node, *port).context("from the host")?;
        }
        let caught = self.portals()?.caught_in_all() - before;
        ensure!(caught == 0, "the agent caught {caught} connections");
        Ok(())
    }

    /// Waits until `check` succeeds, and shows how long that took since `since` beside what
    /// was promised.
    pub(crate) fn measure(
        &self,
        since: Instant,
        promised: Duration,
        what: &str,
        check: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        await_ok(PATIENCE, what, check)?;
        let took = since.elapsed();
        let verdict = if took <= promised { "" } else { "  <- LATE" };
        self.say(&format!(
            "{what}: after {:.2} s (promised: {} s){verdict}",
            took.as_secs_f64(),
            promised.as_secs()
        ));
        Ok(())
    }

    /// Tells whoever runs the test.
    pub(crate) fn say(&self, text: &str) {
        show(&format!("[{}] {text}", self.flavour));
    }

    fn kube_proxys_chains_are_written(&self) -> Result<()> {
        for family in self.kube_proxys_families() {
            self.portals_of(*family)?.stand_beside_kube_proxy()?;
        }
        let portals = self.portals()?;
        portals.kube_proxy_serves(WEB.name)?;
        portals.kube_proxy_serves(DNS_TCP.name)
    }

    fn kube_proxys_tables_are_written(&self) -> Result<()> {
        for family in self.kube_proxys_families() {
            KubeProxyTable::read(&self.node, *family)?;
        }
        let table = KubeProxyTable::read(&self.node, Family::V4)?;
        table.serves(WEB)?;
        table.serves(DNS_TCP)
    }

    fn through_agent(&self, from: &impl Place, entry: Entry, port: Port) -> Result<()> {
        let before = self.portals_of(port.family())?.caught(entry, port.name);
        let answer = ask(from, port)?;
        let after = self.portals_of(port.family())?.caught(entry, port.name);
        ensure!(
            after > before,
            "{} in {} caught nothing: {before} and still {after}",
            port.name,
            entry.to
        );
        self.came_from(entry, &answer)
            .with_context(|| port.name.to_owned())
    }

    /// Fails unless the server saw whom it would see behind kube-proxy: a pod as it is, and
    /// the host, which is not in the pods' network, as the node. In user mode it is the node
    /// in either case.
    fn came_from(&self, entry: Entry, answer: &Answer) -> Result<()> {
        let is_pod = entry == CONTAINER;
        match self.agent.datapath {
            Datapath::Hybrid if is_pod => {
                let seen = answer.client.ip();
                let client = self.client.addresses();
                ensure!(
                    client.contains(&seen),
                    "the server saw {seen}, not {client:?}"
                );
                Ok(())
            }
            Datapath::Hybrid | Datapath::User => self.came_from_node(answer),
        }
    }

    /// Fails unless the server saw an address of the node: the agent connects anew.
    pub(crate) fn came_from_node(&self, answer: &Answer) -> Result<()> {
        let seen = answer.client.ip();
        let uplink = [
            Some(self.node.ipv4().into()),
            self.node.ipv6().map(Into::into),
        ];
        let own = self.node.pod_gateways().contains(&seen) || uplink.contains(&Some(seen));
        ensure!(own, "the server saw {seen}, not the node");
        Ok(())
    }

    /// What kubelet does at its start, so that others find its flavour of iptables
    /// (kubelet `pkg/kubelet/kubelet_network_linux.go`).
    fn leave_kubelets_mark(&self) -> Result<()> {
        let chains = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
        for family in Family::ALL {
            self.flavour.restore(&self.node, family, chains)?;
        }
        Ok(())
    }

    fn populate(&self, api: &KubeApi) -> Result<()> {
        let [first, _] = &self.servers;
        api.apply_node(&self.node)?;
        api.apply_service(&self.web())?;
        api.apply_service(
            &ClusterService::new("default/dns")
                .cluster_ip("10.96.10.2")
                .udp("dns", 53, 5353)
                .tcp("dns-tcp", 53, 5353)
                .endpoint(first),
        )?;
        api.apply_service(
            &ClusterService::new("default/lonely")
                .cluster_ip("10.96.10.3")
                .tcp("http", 80, 8080),
        )
    }
}

/// Sends a request from a place to a Service port.
pub(crate) fn ask(from: &impl Place, port: Port) -> Result<Answer> {
    let answer = if port.udp {
        from.ask_udp(port.address, "hello")?
    } else {
        from.ask(port.address, "hello")?
    };
    ensure!(
        answer.echo == "hello",
        "{} sent back {:?}",
        port.name,
        answer.echo
    );
    Ok(answer)
}

/// Fails unless a connection is refused, not left to time out.
pub(crate) fn refused(from: &impl Place, port: Port) -> Result<()> {
    match from.connect(port.address) {
        Ok(_) => anyhow::bail!("{} was accepted", port.name),
        Err(error) => ensure!(
            error.kind() == std::io::ErrorKind::ConnectionRefused,
            "{}: {error} instead of a refusal",
            port.name
        ),
    }
    Ok(())
}

/// Fails unless both are the same, naming the lines that are not.
pub(crate) fn same_text(before: &str, now: &str) -> Result<()> {
    let only_in = |text: &str, other: &str| {
        let others: BTreeSet<&str> = other.lines().collect();
        let own = text.lines().filter(|line| !others.contains(line));
        own.collect::<Vec<_>>().join("\n")
    };
    let (gone, new) = (only_in(before, now), only_in(now, before));
    ensure!(
        gone.is_empty() && new.is_empty(),
        "gone:\n{gone}\nnew:\n{new}"
    );
    ensure!(
        before == now,
        "the order of lines; before:\n{before}\nnow:\n{now}"
    );
    Ok(())
}

/// The same lines, in an order that says nothing.
pub(crate) fn sorted_lines(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn listen(servers: &[Pod; 2]) -> Result<Vec<Server>> {
    let mut listening = Vec::new();
    for pod in servers {
        listening.push(pod.serve(8080, Serve::Identity)?);
        listening.push(pod.serve(5353, Serve::Identity)?);
        listening.push(pod.serve(5353, Serve::UdpIdentity)?);
    }
    Ok(listening)
}
