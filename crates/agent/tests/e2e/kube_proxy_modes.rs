//! Every mode of kube-proxy beside every backend of the agent, whoever starts first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use edgemesh_lab::{Background, Family, await_ok, await_turn, test_each_flavour};

use crate::agent::{Backend, Datapath};
use crate::cluster::{
    Cluster, DNS, DNS_TCP, LONELY, PATIENCE, Port, REPAIRED, WEB, ask, refused, same_text,
    sorted_lines,
};
use crate::dual_stack::{self, BOTH_V6, V6_ALONE};
use crate::kube_proxy::Mode;
use crate::kube_proxy_table::{KubeProxyTable, agents_tables};
use crate::logs::show;
use crate::portals::ENTRIES;
use crate::programs::Programs;
use crate::status::{Status, Way};

#[test]
fn beside_kube_proxy_in_iptables_mode_every_backend_comes_first() -> Result<()> {
    test_each_flavour(|lab, flavour| {
        Cluster::with(lab, flavour, |cluster| {
            let iptables = Way::Iptables(flavour);
            let mut stage = Stage::new(cluster, Mode::Iptables)?;
            stage.in_every_order(Backend::Auto, iptables, iptables)?;
            stage.in_every_order(Backend::Iptables, iptables, iptables)?;
            stage.in_every_order(Backend::Nftables, Way::Nftables, Way::Nftables)
        })
    })
}

#[test]
fn beside_kube_proxy_in_nftables_mode_the_agent_comes_first() -> Result<()> {
    if !has_nftables_mode()? {
        return Ok(());
    }
    test_each_flavour(|lab, flavour| {
        Cluster::with(lab, flavour, |cluster| {
            let iptables = Way::Iptables(flavour);
            let mut stage = Stage::new(cluster, Mode::Nftables)?;
            stage.in_every_order(Backend::Auto, iptables, Way::Nftables)?;
            stage.in_every_order(Backend::Nftables, Way::Nftables, Way::Nftables)
        })
    })
}

#[test]
fn an_explicit_iptables_beside_nftables_mode_is_warned_of_and_everybody_is_answered() -> Result<()>
{
    if !has_nftables_mode()? {
        return Ok(());
    }
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, iptables_beside_nftables_mode))
}

#[test]
fn a_kube_proxy_that_changes_its_mode_is_followed_and_nobody_is_refused() -> Result<()> {
    if !has_nftables_mode()? {
        return Ok(());
    }
    test_each_flavour(|lab, flavour| Cluster::with(lab, flavour, there_and_back))
}

fn has_nftables_mode() -> Result<bool> {
    let programs = Programs::find()?;
    if !programs.have_nftables_mode() {
        show("not tried: kube-proxy before 1.31 has no nftables mode without a feature gate");
    }
    Ok(programs.have_nftables_mode())
}

/// A cluster whose kube-proxy runs in one mode.
#[derive(Debug)]
struct Stage<'a> {
    cluster: &'a mut Cluster,
    mode: Mode,
    ports: Vec<Port>,
}

impl<'a> Stage<'a> {
    fn new(cluster: &'a mut Cluster, mode: Mode) -> Result<Self> {
        // The agent counts what it takes itself: by that it is told from kube-proxy.
        cluster.agent.datapath = Datapath::User;
        let mut ports = vec![WEB, DNS, DNS_TCP];
        if cluster.kube_proxys_families().contains(&Family::V6) {
            dual_stack::make_services(cluster)?;
            ports.extend([BOTH_V6, V6_ALONE]);
        }
        Ok(Self {
            cluster,
            mode,
            ports,
        })
    }

    /// Both orders of starting, and kube-proxy again; begins and ends with neither running
    /// and none of their rules there. The agent goes the way `alone` where kube-proxy has
    /// left no sign, else the way `beside`.
    fn in_every_order(&mut self, backend: Backend, alone: Way, beside: Way) -> Result<()> {
        self.cluster.agent.backend = backend;
        let kube_proxy = self.agent_first(alone, beside)?;
        let kube_proxy = self.kube_proxy_first(kube_proxy, beside)?;
        end(self.cluster, kube_proxy)
    }

    /// Ends with kube-proxy running and the agent stopped.
    fn agent_first(&self, alone: Way, beside: Way) -> Result<Background> {
        let mut agent = self.cluster.start_agent()?;
        self.await_served("no kube-proxy", alone)?;
        let kube_proxy = self.cluster.start_kube_proxy_in(self.mode)?;
        self.await_served("kube-proxy came later", beside)?;
        let kube_proxy = self.on_top_again(kube_proxy)?;
        self.await_served("kube-proxy restarted on top", beside)?;
        let status = agent.stop(PATIENCE)?;
        ensure!(status.success(), "the agent ended with {status}");
        self.cluster.portals()?.are_gone()?;
        no_table_of_agents(self.cluster)?;
        self.cluster.answered_by_kube_proxy(&[WEB, DNS, DNS_TCP])?;
        Ok(kube_proxy)
    }

    /// Begins and ends with kube-proxy running and the agent stopped.
    fn kube_proxy_first(&self, kube_proxy: Background, way: Way) -> Result<Background> {
        self.cluster.settled_foreign_rules()?;
        let before = self.foreign_rules()?;
        let mut agent = self.cluster.start_agent()?;
        self.await_served("kube-proxy was there", way)?;
        same_text(&before, &self.foreign_rules()?).context("rules of others changed")?;
        let status = agent.stop(PATIENCE)?;
        ensure!(status.success(), "the agent ended with {status}");
        same_text(&before, &self.foreign_rules()?).context("rules of others changed")?;
        Ok(kube_proxy)
    }

    /// Starts kube-proxy again so that it gets before all others of its kind. What it finds
    /// stays where it is; jumps that it misses it puts on top, and a table that it misses it
    /// makes anew, which the kernel puts before its equals.
    fn on_top_again(&self, mut kube_proxy: Background) -> Result<Background> {
        let Self { cluster, mode, .. } = self;
        kube_proxy.kill()?;
        match mode {
            Mode::Iptables => {
                for entry in ENTRIES {
                    let place = cluster.portals()?.place(entry, "KUBE-SERVICES");
                    let number = place.map_or_else(String::new, |place| (place + 1).to_string());
                    cluster.iptables(["-t", "nat", "-D", entry.from, &number])?;
                }
            }
            Mode::Nftables => {
                for family in cluster.kube_proxys_families() {
                    KubeProxyTable::remove(&cluster.node, *family)?;
                }
            }
        }
        cluster.start_kube_proxy_in(*mode)
    }

    /// Waits until the agent serves all by this way.
    fn await_served(&self, situation: &str, way: Way) -> Result<()> {
        let Self { cluster, mode, .. } = self;
        let backend = cluster.agent.backend;
        let start = Instant::now();
        let what = format!("{mode} mode, backend {backend}, {situation}: it serves by {way}");
        cluster.measure(start, REPAIRED, &what, || {
            goes_by(cluster, way)?;
            answered_by_agent(cluster, &self.ports)
        })
    }

    /// All rules that are not the agent's, whichever way kube-proxy's go.
    fn foreign_rules(&self) -> Result<String> {
        let mut text = self.cluster.foreign_rules()?;
        if self.mode == Mode::Nftables {
            for family in self.cluster.kube_proxys_families() {
                let table = KubeProxyTable::read(&self.cluster.node, *family)?;
                text += &sorted_lines(table.text());
            }
        }
        Ok(text)
    }
}

/// Fails unless the agent's rules are in force by this way, and by no other.
fn goes_by(cluster: &Cluster, way: Way) -> Result<()> {
    Status::of(cluster)?.goes_by(way, cluster.kube_proxys_families())?;
    if way != Way::Nftables {
        no_table_of_agents(cluster)?;
        return cluster.in_force();
    }
    cluster.portals()?.are_gone()?;
    let tables = agents_tables(&cluster.node)?;
    ensure!(!tables.is_empty(), "the agent has no table");
    Ok(())
}

fn no_table_of_agents(cluster: &Cluster) -> Result<()> {
    let tables = agents_tables(&cluster.node)?;
    ensure!(tables.is_empty(), "there is still {tables:?}");
    Ok(())
}

/// Fails unless pod and host are answered through the agent, which must have caught just as
/// many as were sent, and refused at once where nobody answers.
fn answered_by_agent(cluster: &Cluster, ports: &[Port]) -> Result<()> {
    let before = Status::of(cluster)?.caught()?;
    let mut asked = 0;
    for port in ports {
        let answer = ask(&cluster.client, *port).context("from a pod")?;
        cluster
            .came_from_node(&answer)
            .with_context(|| port.name.to_owned())?;
        ask(&cluster.node, *port).context("from the host")?;
        asked += 2;
    }
    let caught = Status::of(cluster)?.caught()? - before;
    ensure!(caught == asked, "the agent caught {caught} of {asked}");
    refused(&cluster.client, LONELY).context("from a pod")?;
    refused(&cluster.node, LONELY).context("from the host")
}

/// Ends kube-proxy and takes its rules away, as a restart of the node would.
fn end(cluster: &Cluster, mut kube_proxy: Background) -> Result<()> {
    kube_proxy.kill()?;
    for family in Family::ALL {
        for table in ["nat", "filter"] {
            for action in ["-F", "-X"] {
                let words = ["-t", table, action];
                cluster.flavour.command(&cluster.node, family, words)?;
            }
        }
        KubeProxyTable::remove(&cluster.node, family)?;
    }
    Ok(())
}

/// The chains of iptables and those of kube-proxy's table have the same priority: who is
/// asked first depends on which of them were made first, so nobody can promise that it is
/// the agent.
fn iptables_beside_nftables_mode(cluster: &mut Cluster) -> Result<()> {
    const WARNING: &str = "the configuration says iptables, but kube-proxy runs in nftables mode";
    let way = Way::Iptables(cluster.flavour);
    cluster.agent.backend = Backend::Iptables;
    let stage = Stage::new(cluster, Mode::Nftables)?;
    let cluster = &*stage.cluster;
    let mut kube_proxy = cluster.start_kube_proxy_in(Mode::Nftables)?;
    let before = stage.foreign_rules()?;
    let mut agent = cluster.start_agent()?;
    agent.await_log(PATIENCE, WARNING)?;
    await_ok(PATIENCE, "the agent's rules are in", || {
        goes_by(cluster, way)
    })?;
    answered_by_either(&stage, "kube-proxy was there")?;
    same_text(&before, &stage.foreign_rules()?).context("rules of others changed")?;
    kube_proxy.kill()?;
    let kube_proxy = cluster.start_kube_proxy_in(Mode::Nftables)?;
    answered_by_either(&stage, "kube-proxy restarted")?;
    let _kube_proxy = stage.on_top_again(kube_proxy)?;
    answered_by_either(&stage, "kube-proxy restarted on top")?;
    goes_by(cluster, way)
}

/// Fails unless pod and host are answered, and tells by whom.
fn answered_by_either(stage: &Stage<'_>, situation: &str) -> Result<()> {
    let cluster = &*stage.cluster;
    let before = Status::of(cluster)?.caught()?;
    for port in &stage.ports {
        ask(&cluster.client, *port).context("from a pod")?;
        ask(&cluster.node, *port).context("from the host")?;
    }
    let caught = Status::of(cluster)?.caught()? - before;
    let asked = stage.ports.len() * 2;
    cluster.say(&format!(
        "nftables mode, backend iptables, {situation}: the agent caught {caught} of {asked}"
    ));
    Ok(())
}

fn there_and_back(cluster: &mut Cluster) -> Result<()> {
    let iptables = Way::Iptables(cluster.flavour);
    let stage = Stage::new(cluster, Mode::Iptables)?;
    let cluster = &*stage.cluster;
    let mut kube_proxy = cluster.start_kube_proxy()?;
    let _agent = cluster.start_agent()?;
    stage.await_served("kube-proxy was there", iptables)?;
    for (mode, way) in [(Mode::Nftables, Way::Nftables), (Mode::Iptables, iptables)] {
        let what = format!("kube-proxy now in {mode} mode: the rules go by {way}");
        kube_proxy = while_asking(cluster, || {
            kube_proxy.kill()?;
            let kube_proxy = cluster.start_kube_proxy_in(mode)?;
            let start = Instant::now();
            cluster.measure(start, REPAIRED, &what, || goes_by(cluster, way))?;
            Ok(kube_proxy)
        })
        .context(what)?;
        answered_by_agent(cluster, &stage.ports)?;
    }
    Ok(())
}

/// Does something while a pod connects again and again; fails if it was not answered once.
fn while_asking<T>(cluster: &Cluster, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut answered = 0_u32;
            while !over.load(Ordering::Relaxed) {
                ask(&cluster.client, WEB).with_context(|| format!("after {answered} answers"))?;
                answered += 1;
                await_turn();
            }
            anyhow::Ok(answered)
        });
        let outcome = act();
        over.store(true, Ordering::Relaxed);
        let Ok(asked) = asking.join() else {
            bail!("the asking thread panicked");
        };
        let answered = asked.context("a request failed meanwhile")?;
        cluster.say(&format!("{answered} requests meanwhile, all answered"));
        outcome
    })
}
