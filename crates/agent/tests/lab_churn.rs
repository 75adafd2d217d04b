//! Endpoints that come and go by the hundreds: the kernel is told what changed and nothing else,
//! what comes together is taken together, and the agent does not grow. `make soak` does it for
//! an hour, with ten thousand Services.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_bench::processes::Processes;
use edgemesh_lab::{
    Agent, ClusterService, Endpoint, Flavour, Lab, Signal, await_ok, leave_kubelets_signs,
    manifests, test,
};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const SOON: Duration = Duration::from_secs(60);
/// Endpoints of each Service.
const ENDPOINTS: usize = 4;
/// How many Services change together: one file has them.
const TOGETHER: usize = 40;
/// So much memory an agent that holds the same may have taken more: its allocator has an arena
/// for each thread, which fill one after the other. Each plan that is not let go is a megabyte.
const MOST_GROWN_KIB: u64 = 12 * 1024;

/// So many files may be open for a moment; one for each change would be hundreds.
const FEW_FILES: usize = 10;

/// A way into the kernel.
struct Way {
    backend: &'static str,
    services: usize,
    /// Rules, chains and elements that one replaced endpoint takes.
    lines: usize,
}

#[test]
fn endpoints_that_are_replaced_by_the_hundreds_cost_two_elements_each_with_nftables() -> Result<()>
{
    test(|lab| {
        let way = Way {
            backend: "nftables",
            services: 200,
            // The element that goes, and the one that comes.
            lines: 2,
        };
        in_motion(lab, &way)
    })
}

#[test]
fn endpoints_that_are_replaced_by_the_hundreds_cost_their_portals_chain_with_iptables() -> Result<()>
{
    test(|lab| {
        let way = Way {
            backend: "iptables",
            services: 80,
            // The chain, and its rules.
            lines: 1 + ENDPOINTS,
        };
        in_motion(lab, &way)
    })
}

fn in_motion(lab: &Lab, way: &Way) -> Result<()> {
    let mut cluster = Cluster::start(lab, way)?;
    let files = way.services / TOGETHER;
    // What happens to memory the first time only is no growth.
    cluster.replace_all_endpoints()?;
    let before = cluster.state()?;
    cluster.replace_all_endpoints()?;
    cluster.replace_all_endpoints()?;
    let after = cluster.state()?;

    let changes = 2 * way.services * ENDPOINTS;
    let told = after.lines - before.lines;
    ensure!(
        told <= way.lines * changes,
        "for {changes} replaced endpoints the kernel was told {told} times"
    );
    let syncs = after.syncs - before.syncs;
    ensure!(
        syncs <= 2 * files * ENDPOINTS,
        "{syncs} syncs for {} files",
        2 * files * ENDPOINTS
    );
    ensure!((before.failures, before.repairs) == (after.failures, after.repairs));
    ensure!(
        after.own_kib <= before.own_kib + MOST_GROWN_KIB,
        "it grew from {} to {} KiB",
        before.own_kib,
        after.own_kib
    );
    ensure!(
        after.files < before.files + FEW_FILES,
        "{} open files instead of {}",
        after.files,
        before.files
    );
    cluster.check_taken_together()
}

/// A node with an agent, and Services whose endpoints exist as addresses only.
struct Cluster<'l> {
    agent: Agent,
    services: Vec<ClusterService>,
    way: &'l Way,
    /// Which of two addresses the endpoints of each place have.
    turns: [bool; ENDPOINTS],
    syncs: usize,
}

/// What the agent did so far, and what it has.
#[derive(Debug)]
struct State {
    syncs: usize,
    lines: usize,
    failures: usize,
    repairs: usize,
    own_kib: u64,
    files: usize,
}

impl<'l> Cluster<'l> {
    fn start(lab: &Lab, way: &'l Way) -> Result<Self> {
        let node = lab.node("edge-1").create()?;
        leave_kubelets_signs(&node, Flavour::Nft)?;
        let agent = Agent::prepare(lab, &node, AGENT)?;
        agent.configure(&format!(
            "modules:\n  edgeProxy:\n    enable: true\n    backend: {}\n",
            way.backend
        ))?;
        let mut cluster = Self {
            services: (0..way.services).map(service).collect(),
            way,
            turns: [false; ENDPOINTS],
            syncs: 0,
            agent,
        };
        for file in 0..way.services / TOGETHER {
            cluster.write(file)?;
        }
        cluster.agent.start()?;
        cluster.syncs = cluster.state()?.syncs;
        Ok(cluster)
    }

    /// One endpoint of each Service after the other, until all are others.
    fn replace_all_endpoints(&mut self) -> Result<()> {
        for place in 0..ENDPOINTS {
            for file in 0..self.way.services / TOGETHER {
                self.replace(file, place)?;
                self.is_taken_up()?;
            }
            self.turns[place] ^= true;
        }
        Ok(())
    }

    fn replace(&mut self, file: usize, place: usize) -> Result<()> {
        for number in file * TOGETHER..(file + 1) * TOGETHER {
            let to = address(number, place, !self.turns[place]);
            self.services[number].endpoints[place].addresses = vec![to];
        }
        self.write(file)
    }

    fn write(&self, file: usize) -> Result<()> {
        let services = &self.services[file * TOGETHER..(file + 1) * TOGETHER];
        let text: String = services.iter().map(manifests::documents).collect();
        let name = format!("services-{file}.yaml");
        manifests::put(&self.agent.manifests_folder(), &name, &text)
    }

    fn is_taken_up(&mut self) -> Result<()> {
        let syncs = self.syncs;
        self.syncs = await_ok(SOON, "the change is in force", || {
            let now = self.state()?.syncs;
            ensure!(now > syncs, "{now} syncs");
            Ok(now)
        })?;
        Ok(())
    }

    /// While the agent is stopped, each file changes; then a Service more tells when all is in.
    fn check_taken_together(mut self) -> Result<()> {
        let before = self.state()?;
        let files = self.way.services / TOGETHER;
        self.signal(Signal::SIGSTOP)?;
        for place in 0..ENDPOINTS {
            for file in 0..files {
                self.replace(file, place)?;
            }
        }
        let last = manifests::documents(&service(self.way.services));
        manifests::put(&self.agent.manifests_folder(), "last.yaml", &last)?;
        self.signal(Signal::SIGCONT)?;
        let objects = "edgemesh_catalog_objects{kind=\"service\"}";
        await_ok(SOON, "the last Service is there", || {
            let now = sample(&self.agent.get("/metrics")?, objects)?;
            ensure!(now == self.way.services + 1, "{now} Services");
            Ok(())
        })?;
        let syncs = self.state()?.syncs - before.syncs;
        let changed = files * ENDPOINTS;
        ensure!(
            2 * syncs <= changed,
            "{syncs} syncs for {changed} changed files"
        );
        self.agent.stop()?;
        Ok(())
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let process = self.agent.process().context("the agent has ended")?;
        process.signal(signal)
    }

    fn state(&mut self) -> Result<State> {
        let pid = self.agent.process().context("the agent has ended")?.pid();
        let metrics = self.agent.get("/metrics")?;
        let of = |name| sample(&metrics, name);
        let process = Processes::of(&[pid]);
        Ok(State {
            syncs: of("edgemesh_syncs_total")?,
            lines: of("edgemesh_rule_lines_total")?,
            failures: of("edgemesh_sync_failures_total")?,
            repairs: of("edgemesh_repairs_total")?,
            own_kib: process.memory()?.own,
            files: process.open_files()?,
        })
    }
}

fn service(number: usize) -> ClusterService {
    let [high, low] = u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    let mut service = ClusterService::new(&format!("default/service-{number:03}"))
        .cluster_ip(&format!("10.96.{}.{low}", high + 1))
        .tcp("http", 80, 8080);
    service.endpoints = (0..ENDPOINTS)
        .map(|place| Endpoint {
            addresses: vec![address(number, place, false)],
            node: Some("elsewhere".to_owned()),
            ready: true,
        })
        .collect();
    service
}

/// One of the two that an endpoint has in turn. The other one is no neighbour, so that the
/// endpoints of a Service change their order, too.
fn address(number: usize, place: usize, turned: bool) -> IpAddr {
    let number = u16::try_from(number * ENDPOINTS + place).unwrap_or(u16::MAX);
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, if turned { 7 } else { 200 }, high, low).into()
}

fn sample(metrics: &str, name: &str) -> Result<usize> {
    let value = metrics
        .lines()
        .find(|line| line.starts_with(name))
        .and_then(|line| line.rsplit(' ').next())
        .with_context(|| format!("no {name} in the metrics"))?;
    let value: f64 = value.parse()?;
    Ok(value as usize)
}
