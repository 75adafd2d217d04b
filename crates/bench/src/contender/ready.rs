//! A contender that serves.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Agent, Background, ClusterService, Endpoint, KubeProxy, Lab, Namespace, Place, await_ok,
};

use super::{Backend, Contender, Datapath, PATIENCE, agent_start, haproxy, nginx, rules};
use crate::load::{Counted, ONCE, connections};
use crate::processes::Processes;
use crate::stage::{CLUSTER_IP, OneNode};

/// An address that nobody has.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 245, 255, 254);

/// A contender that serves, on a node of its own.
#[derive(Debug)]
pub struct Ready {
    /// Who.
    pub contender: Contender,
    /// Its node.
    pub stage: OneNode,
    address: Ipv4Addr,
    running: Running,
}

/// What runs for a contender, and ends with it.
#[derive(Debug)]
enum Running {
    Nothing,
    /// kube-proxy's rules.
    Rules(#[expect(dead_code, reason = "it is told to stay")] KubeProxy),
    /// An agent beside such rules.
    Agent {
        agent: Box<Agent>,
        pid: u32,
        _kube_proxy: KubeProxy,
    },
    /// Another proxy beside such rules.
    Program {
        program: Background,
        _kube_proxy: KubeProxy,
    },
}

impl Running {
    fn start(contender: Contender, lab: &Lab, stage: &OneNode, agent: &Path) -> Result<Self> {
        Ok(match contender {
            Contender::Direct => Self::Nothing,
            Contender::KubeProxy(backend) => {
                Self::Rules(rules(&stage.node, backend, &[stage.service()])?)
            }
            Contender::Agent(datapath, backend) => {
                let services = [leading_nowhere(stage.service())];
                let kube_proxy = rules(&stage.node, backend, &services)?;
                let mut agent = Agent::prepare(lab, &stage.node, agent)?;
                agent.publish(&[stage.service()])?;
                agent_start::start(&mut agent, datapath, backend)?;
                Self::Agent {
                    pid: agent.process().context("the agent has ended")?.pid(),
                    agent: Box::new(agent),
                    _kube_proxy: kube_proxy,
                }
            }
            Contender::Haproxy { splice } => {
                Self::beside_kube_proxy(stage, || haproxy::start(lab, stage, splice))?
            }
            Contender::Nginx => Self::beside_kube_proxy(stage, || nginx::start(lab, stage))?,
        })
    }

    /// No node of a cluster is without kube-proxy's rules, and what passes through such a node
    /// pays for them, whoever serves it: connection tracking above all.
    fn beside_kube_proxy(
        stage: &OneNode,
        start: impl FnOnce() -> Result<Background>,
    ) -> Result<Self> {
        let services = [leading_nowhere(stage.service())];
        let kube_proxy = rules(&stage.node, Backend::Nftables, &services)?;
        Ok(Self::Program {
            program: start()?,
            _kube_proxy: kube_proxy,
        })
    }
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
        let running = Running::start(contender, lab, &stage, agent)?;
        let address = match &running {
            Running::Nothing => stage.server.ipv4(),
            Running::Rules(_) | Running::Agent { .. } => CLUSTER_IP,
            Running::Program { .. } => stage.node.ipv4(),
        };
        let ready = Self {
            contender,
            stage,
            address,
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
        match &self.running {
            Running::Agent { pid, .. } if self.contender.is_in_user_mode() => {
                Processes::of(&[*pid])
            }
            Running::Program { program, .. } => Processes::of(&[program.pid()]),
            Running::Nothing | Running::Rules(_) | Running::Agent { .. } => Processes::default(),
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
        let accepted = sum_of_samples(&metrics, "edgemesh_forward_connections_accepted");
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

/// The sum of all samples of a page for Prometheus whose names begin like this.
pub(crate) fn sum_of_samples(metrics: &str, name: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    let values = samples.filter_map(|line| line.rsplit_once(' '));
    values
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_summed() {
        let page = "# TYPE a counter\na_total{b=\"c\"} 2\na_total 0.5\nb_total 7\n";
        assert_eq!(sum_of_samples(page, "a_total"), 2.5);
        assert_eq!(sum_of_samples(page, "c"), 0.0);
    }
}
