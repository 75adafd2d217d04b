//! What many Services cost: until all are in the kernel, to add one, while nothing changes,
//! and on each connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, ClusterService, Endpoint, Flavour, Lab, Namespace, Place, leave_kubelets_signs,
    manifests,
};

use super::{Effort, Found};
use crate::contender::{Backend, agent_start, rules};
use crate::histogram::Histogram;
use crate::load::{ONCE, Until, connections, pause};
use crate::processes::Processes;
use crate::results::{Better, Comparison};
use crate::stage::OneNode;

/// The port of every Service.
const PORT: u16 = 80;
/// How many of them answer; the others' endpoints exist as addresses only.
const ANSWERING: usize = 20;
/// From more Services on, iptables-restore takes minutes to load kube-proxy's rules, which
/// then have one turn.
const MANY: usize = 2000;
/// How many are added, one after the other.
const ADDED: usize = 5;
/// A moment in which nothing happens, before each addition.
const BETWEEN: Duration = Duration::from_millis(200);
/// How long nothing happens, to see what that costs.
const IDLE: Duration = Duration::from_secs(2);
/// How long to wait for Services to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one attempt waits, and how long until the next one.
const ATTEMPT: Duration = Duration::from_millis(5);
const NEXT: Duration = Duration::from_millis(1);

const COST: [(&str, Better); 6] = [
    ("all in, s", Better::Low),
    ("CPU until then, s", Better::Low),
    ("one added, ms", Better::Low),
    ("idle CPU, ms/s", Better::Low),
    ("RSS, MiB", Better::Low),
    ("own (RssAnon), MiB", Better::Low),
];
const CONNECTIONS: [(&str, Better); 4] = [
    ("connections/s", Better::High),
    ("p50, ms", Better::Low),
    ("p99, ms", Better::Low),
    ("first connection, ms", Better::Low),
];

/// Who has the Services.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// kube-proxy's rules, loaded at once by iptables-restore or nft.
    Rules(Backend),
    /// The agent, with everything by default but the backend.
    Agent(Backend),
}

impl Who {
    fn name(self) -> String {
        match self {
            Self::Rules(backend) => format!("kube-proxy's rules, {}", backend.name()),
            Self::Agent(backend) => format!("agent, {}", backend.name()),
        }
    }

    fn backend(self) -> Backend {
        match self {
            Self::Rules(backend) | Self::Agent(backend) => backend,
        }
    }
}

/// Every number of Services with every contender in turn.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    for &count in &effort.services {
        let title = format!("{count} Services with 2 endpoints each");
        let mut cost = Comparison::new(&format!("services-{count}"), &title, &COST);
        let title = format!("New connections to the last of {count} Services");
        let name = format!("connections-at-{count}");
        let mut connecting = Comparison::new(&name, &title, &CONNECTIONS);
        for turn in 0..effort.rounds {
            for who in contenders().filter(|who| effort.takes(&who.name())) {
                if turn > 0 && count > MANY && matches!(who, Who::Rules(_)) {
                    continue;
                }
                let run = Run {
                    lab,
                    effort,
                    who,
                    count,
                    turn,
                };
                let name = who.name();
                match run.measure() {
                    Ok((costs, connections)) => {
                        found.note(&mut cost, &name, Ok(costs));
                        found.note(&mut connecting, &name, Ok(connections));
                    }
                    Err(error) => found.note(&mut cost, &name, Err(error)),
                }
            }
        }
        found.keep(cost);
        found.keep(connecting);
    }
    found.remark(
        "kube-proxy's rules are a stand-in's, written by one run of iptables-restore or nft: what \
         kube-proxy itself takes until then is measured with K8S_BIN only",
    );
    Ok(())
}

fn contenders() -> impl Iterator<Item = Who> {
    let both = |backend| [Who::Rules(backend), Who::Agent(backend)];
    Backend::ALL.into_iter().flat_map(both)
}

struct Run<'r> {
    lab: &'r Lab,
    effort: &'r Effort,
    who: Who,
    count: usize,
    turn: usize,
}

type Figures = Vec<Option<f64>>;

impl Run<'_> {
    fn measure(&self) -> Result<(Figures, Figures)> {
        let who = match self.who {
            Who::Rules(_) => "r",
            Who::Agent(_) => "a",
        };
        let backend = self.who.backend().name();
        let name = format!("{who}-{backend}-{}-{}", self.count, self.turn);
        let stage = OneNode::create(self.lab, &name)?;
        let services: Vec<ClusterService> = (0..self.count)
            .map(|number| self.service(number, &stage))
            .collect();
        let figures = match self.who {
            Who::Rules(backend) => self.with_rules(&stage, backend, &services)?,
            Who::Agent(backend) => self.with_agent(&stage, backend, &services)?,
        };
        stage.clear()?;
        Ok(figures)
    }

    fn with_rules(
        &self,
        stage: &OneNode,
        backend: Backend,
        services: &[ClusterService],
    ) -> Result<(Figures, Figures)> {
        let began = Instant::now();
        let _kube_proxy = rules(&stage.node, backend, services)?;
        let all_in = began.elapsed().as_secs_f64();
        let mut cost = vec![None; COST.len()];
        cost[0] = Some(all_in);
        Ok((cost, self.connect(stage)?))
    }

    fn with_agent(
        &self,
        stage: &OneNode,
        backend: Backend,
        services: &[ClusterService],
    ) -> Result<(Figures, Figures)> {
        // Where kube-proxy's rules of the same number would be the agent's competitors for
        // nothing but memory, it runs alone.
        leave_kubelets_signs(&stage.node, Flavour::Nft)?;
        let mut agent = Agent::prepare(self.lab, &stage.node, &self.effort.agent)?;
        agent.configure(&agent_start::by_default(backend))?;
        agent.publish(services)?;
        let all_in = until_answered(stage, cluster_ip(self.last()), || agent.start())?;
        let pid = agent.process().context("the agent has ended")?.pid();
        let processes = Processes::of(&[pid]);
        let cpu = processes.processor_time()?;
        let mut added = Histogram::default();
        for number in 0..ADDED {
            pause(BETWEEN);
            let service = answering(
                &format!("default/added-{number}"),
                self.count + number,
                stage,
            );
            let write = || {
                let name = format!("default.added-{number}.yaml");
                let text = manifests::documents(&service);
                manifests::put(&agent.manifests_folder(), &name, &text)
            };
            added.add(until_answered(
                stage,
                cluster_ip(self.count + number),
                write,
            )?);
        }
        let connections = self.connect(stage)?;
        pause(BETWEEN);
        let scheduled = processes.scheduled_time()?;
        pause(IDLE);
        let idle = processes.scheduled_time()?.saturating_sub(scheduled);
        let memory = processes.memory()?;
        let cost = vec![
            Some(all_in.as_secs_f64()),
            Some(cpu.as_secs_f64()),
            Some(added.quantile_ms(0.5)),
            Some(idle.as_secs_f64() * 1e3 / IDLE.as_secs_f64()),
            Some(memory.resident as f64 / 1024.0),
            Some(memory.own as f64 / 1024.0),
        ];
        agent.stop()?;
        Ok((cost, connections))
    }

    /// First one to each Service that answers, then many to the last.
    fn connect(&self, stage: &OneNode) -> Result<Figures> {
        let client = stage.client.namespace();
        // Attempts from before the rules were there are remembered as untranslated for two
        // minutes: a connection from the same port would go the same way, nowhere.
        stage.node.program("conntrack").arg("--flush").run()?;
        let mut first = Histogram::default();
        for number in (0..self.count).filter(|number| self.answers(*number)) {
            let to = cluster_ip(number);
            let took = client.run(|| -> io::Result<Duration> {
                let began = Instant::now();
                connections::once(to)?;
                Ok(began.elapsed())
            })?;
            first.add(took.with_context(|| format!("no first connection to {to}"))?);
        }
        let many = connections::run(
            client,
            cluster_ip(self.last()),
            4,
            Until::Over(self.effort.window),
            &Processes::default(),
        )?;
        Ok(vec![
            Some(many.per_second()),
            Some(many.took.quantile_ms(0.5)),
            Some(many.took.quantile_ms(0.99)),
            Some(first.quantile_ms(0.5)),
        ])
    }

    fn last(&self) -> usize {
        self.count - 1
    }

    /// Evenly spread, the last one among them.
    fn answers(&self, number: usize) -> bool {
        let every = self.count.div_ceil(ANSWERING);
        (self.last() - number).is_multiple_of(every)
    }

    fn service(&self, number: usize, stage: &OneNode) -> ClusterService {
        if self.answers(number) {
            return answering(&format!("default/service-{number:05}"), number, stage);
        }
        bulk(number)
    }
}

/// Service `number`, with two endpoints that exist as addresses only.
pub(super) fn bulk(number: usize) -> ClusterService {
    let mut service = named(&format!("default/service-{number:05}"), number);
    for endpoint in [2 * number, 2 * number + 1] {
        service.endpoints.push(Endpoint {
            addresses: vec![IpAddr::V4(nth([10, 245], endpoint))],
            node: Some(format!("other-{}", endpoint % 100)),
            ready: true,
        });
    }
    service
}

fn answering(name: &str, number: usize, stage: &OneNode) -> ClusterService {
    named(name, number).endpoint(&stage.server)
}

pub(super) fn named(name: &str, number: usize) -> ClusterService {
    ClusterService::new(name)
        .cluster_ip(&cluster_ip(number).ip().to_string())
        .tcp("http", PORT, ONCE)
}

fn cluster_ip(number: usize) -> SocketAddr {
    (nth([10, 96], number), PORT).into()
}

/// Address `number` of a /16, but for the first ones.
fn nth([a, b]: [u8; 2], number: usize) -> Ipv4Addr {
    let number = u16::try_from(number + 256).unwrap_or(u16::MAX);
    let [c, d] = number.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// Runs `event` and returns how long after its beginning the first connection was answered.
fn until_answered(
    stage: &OneNode,
    to: SocketAddr,
    event: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let client = stage.client.namespace();
    thread::scope(|scope| {
        let watching = scope.spawn(|| first_answer(client, to));
        let began = Instant::now();
        event()?;
        let answered = watching
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answered >= began, "{to} answered before it should");
        Ok(answered - began)
    })
}

fn first_answer(client: &Namespace, to: SocketAddr) -> Result<Instant> {
    client.run(|| {
        let began = Instant::now();
        loop {
            match connections::once_within(to, ATTEMPT) {
                Ok(()) => return Ok(Instant::now()),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error).with_context(|| format!("{to} never answered"));
                }
                Err(_) => pause(NEXT),
            }
        }
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_addresses_of_their_own() {
        assert_eq!(cluster_ip(0).to_string(), "10.96.1.0:80");
        assert_eq!(cluster_ip(9_999).to_string(), "10.96.40.15:80");
        assert_ne!(nth([10, 245], 19_999), nth([10, 245], 20_000));
    }
}
