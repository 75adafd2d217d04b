//! A large cluster in motion: what endpoints that come and go cost, and whether the agent grows.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use edgemesh_lab::{
    Agent, ClusterService, Endpoint, Flavour, Lab, leave_kubelets_signs, manifests,
};

use super::services::named;
use super::{Effort, Found};
use crate::contender::{Backend, agent_start, sum_of_samples};
use crate::load::pause;
use crate::processes::{Memory, Processes};
use crate::results::{Better, Comparison};
use crate::stage::OneNode;

/// Endpoints of each Service.
const ENDPOINTS: usize = 10;
/// Nodes that they are on, each with a MeshNode.
const NODES: usize = 2000;
/// Endpoints that are replaced, each second.
const CHANGES_PER_SECOND: u32 = 200;
/// How many at a time: 20 ms apart.
const AT_ONCE: u32 = 4;
/// For how many windows it goes on: a minute by default.
const WINDOWS: u32 = 60;
/// How long nothing happens before, and after: the last change is to be in the kernel. (Longer
/// after all have changed at once.)
const CALM: Duration = Duration::from_secs(2);

const MEASURES: [(&str, Better); 8] = [
    ("CPU, ms/s", Better::Low),
    ("changes/s", Better::High),
    ("syncs/s", Better::Low),
    ("rules, chains and elements told per change", Better::Low),
    ("RSS before, MiB", Better::Low),
    ("RSS after, MiB", Better::Low),
    ("own (RssAnon) grown, MiB", Better::Low),
    ("of it in the second half, MiB", Better::Low),
];

/// The largest number of Services, with both backends in turn.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let count = effort.services.iter().copied().max().unwrap_or(1);
    let title = format!(
        "{count} Services with {ENDPOINTS} endpoints each on {NODES} nodes, {CHANGES_PER_SECOND} \
         endpoints replaced each second"
    );
    let mut comparison = Comparison::new("scale", &title, &MEASURES);
    for backend in Backend::ALL {
        let name = format!("agent, {}", backend.name());
        if effort.takes(&name) {
            let figures = in_motion(lab, effort, backend, count);
            found.note(&mut comparison, &name, figures);
        }
    }
    found.keep(comparison);
    Ok(())
}

fn in_motion(
    lab: &Lab,
    effort: &Effort,
    backend: Backend,
    count: usize,
) -> Result<Vec<Option<f64>>> {
    let stage = OneNode::create(lab, &format!("scale-{}", backend.name()))?;
    leave_kubelets_signs(&stage.node, Flavour::Nft)?;
    let mut agent = Agent::prepare(lab, &stage.node, &effort.agent)?;
    agent.configure(&agent_start::by_default(backend))?;
    let mut services: Vec<ClusterService> = (0..count).map(service).collect();
    agent.publish(&services)?;
    manifests::put(&agent.manifests_folder(), "nodes.yaml", &mesh_nodes())?;
    agent.start()?;
    pause(CALM);

    let mut changes = Changes::new(&agent, &mut services);
    changes.once_each()?;
    pause(CALM * 5);
    let processes = Processes::of(&[agent.process().context("the agent has ended")?.pid()]);
    let before = State::of(&agent, &processes)?;
    let began = Instant::now();
    let mut changes = Changes::new(&agent, &mut services);
    let mut made = changes.go_on_for(effort.window * WINDOWS / 2)?;
    let halfway = processes.memory()?.own;
    made += changes.go_on_for(effort.window * WINDOWS / 2)?;
    let took = began.elapsed().as_secs_f64();
    pause(CALM);
    let after = State::of(&agent, &processes)?;
    agent.stop()?;
    stage.clear()?;

    let cpu = after.cpu.saturating_sub(before.cpu);
    Ok(vec![
        Some(cpu.as_secs_f64() * 1e3 / took),
        Some(f64::from(made) / took),
        Some((after.syncs - before.syncs) / took),
        Some((after.lines - before.lines) / f64::from(made)),
        Some(before.memory.resident as f64 / 1024.0),
        Some(after.memory.resident as f64 / 1024.0),
        Some((after.memory.own as f64 - before.memory.own as f64) / 1024.0),
        Some((after.memory.own as f64 - halfway as f64) / 1024.0),
    ])
}

/// What an agent has done and has so far.
struct State {
    cpu: Duration,
    syncs: f64,
    lines: f64,
    memory: Memory,
}

impl State {
    fn of(agent: &Agent, processes: &Processes) -> Result<Self> {
        let metrics = agent.get("/metrics")?;
        Ok(Self {
            cpu: processes.processor_time()?,
            syncs: sum_of_samples(&metrics, "edgemesh_syncs"),
            lines: sum_of_samples(&metrics, "edgemesh_rule_lines"),
            memory: processes.memory()?,
        })
    }
}

/// Endpoints being replaced, one Service after the other.
struct Changes<'a> {
    agent: &'a Agent,
    services: &'a mut [ClusterService],
    turns: usize,
}

impl<'a> Changes<'a> {
    fn new(agent: &'a Agent, services: &'a mut [ClusterService]) -> Self {
        Self {
            agent,
            services,
            turns: 0,
        }
    }

    /// What happens to a Service's memory the first time only is no growth: that is over then.
    fn once_each(&mut self) -> Result<()> {
        (0..self.services.len()).try_for_each(|_| self.replace())
    }

    /// Returns how many there were.
    fn go_on_for(&mut self, time: Duration) -> Result<u32> {
        let began = Instant::now();
        let mut made = 0;
        while began.elapsed() < time {
            for _ in 0..AT_ONCE {
                self.replace()?;
                made += 1;
            }
            let due = Duration::from_secs(1) * made / CHANGES_PER_SECOND;
            pause(due.saturating_sub(began.elapsed()));
        }
        Ok(made)
    }

    /// Every change meets another Service, until each has had its turn.
    fn replace(&mut self) -> Result<()> {
        let (count, turn) = (self.services.len(), self.turns);
        self.turns += 1;
        let service = &mut self.services[turn % count];
        let place = turn / count % ENDPOINTS;
        if let Some(endpoint) = service.endpoints.get_mut(place) {
            for address in &mut endpoint.addresses {
                *address = other(*address);
            }
        }
        let name = format!("{}.{}.yaml", service.namespace, service.name);
        manifests::put(
            &self.agent.manifests_folder(),
            &name,
            &manifests::documents(service),
        )
    }
}

/// Service `number`, whose endpoints exist as addresses only.
fn service(number: usize) -> ClusterService {
    let mut service = named(&format!("default/service-{number:05}"), number);
    service.endpoints = (number * ENDPOINTS..(number + 1) * ENDPOINTS)
        .map(|endpoint| Endpoint {
            addresses: vec![address(endpoint)],
            node: Some(node(endpoint % NODES)),
            ready: true,
        })
        .collect();
    service
}

/// Addresses of 10.128.0.0/10.
fn address(endpoint: usize) -> IpAddr {
    let [_, b, c, d] = u32::try_from(endpoint).unwrap_or(u32::MAX).to_be_bytes();
    Ipv4Addr::new(10, 128 | b, c, d).into()
}

/// The address of the pod that comes instead: one of 10.192.0.0/10, or the first one again.
fn other(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            Ipv4Addr::new(a, b ^ 64, c, d).into()
        }
        IpAddr::V6(_) => address,
    }
}

fn node(number: usize) -> String {
    format!("edge-{number:04}")
}

fn mesh_nodes() -> String {
    let mut text = String::new();
    for number in 0..NODES {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: edgemesh.kubeedge.io/v1alpha1\nkind: MeshNode\n\
             metadata: {{name: {}}}\nspec: {{publicKey: {}}}\n",
            node(number),
            BASE64_STANDARD.encode(key)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_endpoint_and_whoever_replaces_it_has_an_address_of_its_own() {
        let first: BTreeSet<IpAddr> = (0..100_000).map(address).collect();
        let second: BTreeSet<IpAddr> = first.iter().map(|one| other(*one)).collect();
        assert_eq!((first.len(), second.len()), (100_000, 100_000));
        assert!(first.is_disjoint(&second));
        assert!(first.iter().all(|one| other(other(*one)) == *one));
    }

    #[test]
    fn every_endpoint_is_on_a_node_that_there_is() {
        let nodes = mesh_nodes();
        let service = service(777);
        assert_eq!(service.endpoints.len(), ENDPOINTS);
        for endpoint in service.endpoints {
            let node = endpoint.node.unwrap();
            assert!(nodes.contains(&format!("name: {node}}}")), "{node}");
        }
        assert_eq!(nodes.matches("kind: MeshNode").count(), NODES);
    }
}
