//! Puts a status report together from what the parts of the agent publish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use edgemesh_catalog::NodeName;
use edgemesh_forward::{EndpointHealth, Sample};
use edgemesh_plan::{Datapath, LeftAlone, Target};
use edgemesh_watch::{Origin, SourceState};
use tokio::sync::watch;

use super::own_process::own_process;
use super::{
    ConditionReport, FamilyReport, LeftOutEndpoint, LeftOutReport, MOST_NAMED, ServicesReport,
    SourceReport, StatusReport, TcpReport, UdpReport,
};
use crate::explain::{self, AgentAnswer, Query};
use crate::health::Health;
use crate::in_force::{FamilyInForce, InForce, Planned};
use crate::moment::Moment;
use crate::tunnel::TunnelObserver;

/// Sees every part of the agent, and changes none.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    pub(crate) node: NodeName,
    pub(crate) started: SystemTime,
    pub(crate) health: Health,
    pub(crate) in_force: watch::Receiver<InForce>,
    pub(crate) source: watch::Receiver<SourceState>,
    pub(crate) source_counters: Arc<edgemesh_watch::Counters>,
    pub(crate) forward_counters: Arc<edgemesh_forward::Counters>,
    /// None where nothing is forwarded.
    pub(crate) endpoint_health: Option<EndpointHealth>,
    /// None where there is no tunnel.
    pub(crate) tunnel: Option<TunnelObserver>,
}

impl Observer {
    /// The observer of an agent that is told to intercept nothing.
    pub(crate) fn of_idle(node: NodeName, health: Health) -> Self {
        Self {
            node,
            started: SystemTime::now(),
            health,
            in_force: watch::channel(InForce::default()).1,
            source: watch::channel(SourceState::default()).1,
            source_counters: Arc::default(),
            forward_counters: Arc::default(),
            endpoint_health: None,
            tunnel: None,
        }
    }

    /// The state of this moment.
    pub(crate) fn status(&self) -> StatusReport {
        let now = SystemTime::now();
        let in_force = self.in_force.borrow().clone();
        let samples = self.forward_counters.samples();
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.to_string(),
            ready: self.health.ready().0,
            conditions: conditions(&self.health),
            process: own_process(self.started, now),
            source: self.source(now),
            families: in_force
                .families
                .iter()
                .map(|family| family_report(family, now))
                .collect(),
            services: in_force.planned.as_ref().map(services).unwrap_or_default(),
            tcp: tcp(&samples),
            udp: udp(&samples),
            endpoints_left_out: self.left_out(),
            tunnel: self.tunnel.as_ref().map(TunnelObserver::report),
        }
    }

    /// What is planned for whatever `query` names.
    pub(crate) fn explain(&self, query: &Query) -> AgentAnswer {
        let in_force = self.in_force.borrow().clone();
        explain::answer(query, in_force.planned.as_ref(), &|frontend| {
            self.endpoint_health
                .as_ref()
                .map(|health| health.left_out_of(frontend, Instant::now()))
                .unwrap_or_default()
        })
    }

    fn source(&self, now: SystemTime) -> SourceReport {
        let state = self.source.borrow();
        let counters = &self.source_counters;
        SourceReport {
            origin: state.origin.to_string(),
            complete: state.complete,
            saved: match state.origin {
                Origin::LastGood { saved_at } => Some(Moment::seen(saved_at, now)),
                Origin::Nothing | Origin::Api | Origin::Manifests => None,
            },
            last_change: counters.last_event().map(|at| Moment::seen(at, now)),
            failing_since: counters.failing_since().map(|at| Moment::seen(at, now)),
            bad_objects: state.problems.objects,
            bad_files: state.problems.files,
            services: state.catalog.services().count(),
            endpoint_slices: state.catalog.slices().count(),
            nodes: state.catalog.nodes().count(),
        }
    }

    fn left_out(&self) -> LeftOutReport {
        let all = self
            .endpoint_health
            .as_ref()
            .map(|health| health.left_out(Instant::now()))
            .unwrap_or_default();
        LeftOutReport {
            count: all.len(),
            first: all
                .iter()
                .take(MOST_NAMED)
                .map(|left_out| LeftOutEndpoint {
                    service_port: left_out.name.to_string(),
                    endpoint: left_out.endpoint.to_string(),
                    failures: left_out.failures,
                    seconds_left: left_out.remaining.as_millis().div_ceil(1000) as u64,
                })
                .collect(),
        }
    }
}

fn conditions(health: &Health) -> Vec<ConditionReport> {
    health
        .conditions()
        .into_iter()
        .map(|(name, status)| ConditionReport {
            name: name.to_owned(),
            ok: status.is_ok(),
            why: status.err(),
        })
        .collect()
}

fn family_report(family: &FamilyInForce, now: SystemTime) -> FamilyReport {
    FamilyReport {
        family: family.family.to_string(),
        backend: family.backend.clone(),
        reason: family.reason.clone(),
        precedence: family.precedence.report(now),
    }
}

fn services(planned: &Planned) -> ServicesReport {
    let mut report = ServicesReport::default();
    let mut left_alone = |reason: &LeftAlone| {
        *report.left_alone.entry(in_general(reason)).or_insert(0) += 1;
    };
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for port in planned.plan.ports() {
        report.ports += 1;
        if let Some(reason) = &port.left_alone {
            left_alone(reason);
        }
        for portal in &port.portals {
            if planned.destinations.failed.contains_key(&portal.frontend) {
                report.failed += 1;
                continue;
            }
            match &portal.target {
                Target::Forward { datapath, .. } => {
                    report.forwarded += 1;
                    match datapath {
                        Datapath::Kernel => report.by_kernel += 1,
                        Datapath::KernelAndAgent => report.by_kernel_and_agent += 1,
                        Datapath::User(why) => {
                            *report.user_mode.entry(why.to_string()).or_insert(0) += 1;
                        }
                    }
                }
                Target::Refuse(reason) => *refused.entry(reason.to_string()).or_insert(0) += 1,
                Target::LeaveAlone(reason) => left_alone(reason),
            }
        }
    }
    report.refused = refused;
    report
}

/// A reason without what differs from one Service to the next.
fn in_general(reason: &LeftAlone) -> String {
    match reason {
        LeftAlone::FrontendTaken(_) => {
            "the same address and port belong to another Service".to_owned()
        }
        LeftAlone::FilterLabel
        | LeftAlone::NoFilterLabel
        | LeftAlone::Headless
        | LeftAlone::ExternalName
        | LeftAlone::NoClusterIp
        | LeftAlone::Sctp
        | LeftAlone::NoIpv4
        | LeftAlone::NoIpv6
        | LeftAlone::UnusableClusterIp => reason.to_string(),
    }
}

fn tcp(samples: &[Sample]) -> TcpReport {
    TcpReport {
        active: value(samples, "edgemesh_forward_connections_active"),
        waiting: value(samples, "edgemesh_forward_connections_waiting"),
        accepted: value(samples, "edgemesh_forward_connections_accepted"),
        relayed: value(samples, "edgemesh_forward_connections_relayed"),
        refused: by_reason(samples, "edgemesh_forward_connections_refused"),
        dials_failed: by_reason(samples, "edgemesh_forward_dials_failed"),
    }
}

fn udp(samples: &[Sample]) -> UdpReport {
    UdpReport {
        active: value(samples, "edgemesh_forward_udp_flows_active"),
        opened: value(samples, "edgemesh_forward_udp_flows_opened"),
        dropped: by_reason(samples, "edgemesh_forward_udp_dropped"),
    }
}

fn value(samples: &[Sample], name: &str) -> u64 {
    samples
        .iter()
        .find(|sample| sample.name == name)
        .map_or(0, |sample| sample.value)
}

fn by_reason(samples: &[Sample], name: &str) -> BTreeMap<String, u64> {
    samples
        .iter()
        .filter(|sample| sample.name == name && sample.value > 0)
        .filter_map(|sample| {
            let (_, reason) = sample.labels.first()?;
            Some(((*reason).replace('_', " "), sample.value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Condition;

    #[test]
    fn every_counter_that_is_shown_exists_under_its_name() {
        let samples = edgemesh_forward::Counters::default().samples();
        for name in [
            "edgemesh_forward_connections_active",
            "edgemesh_forward_connections_waiting",
            "edgemesh_forward_connections_accepted",
            "edgemesh_forward_connections_relayed",
            "edgemesh_forward_connections_refused",
            "edgemesh_forward_dials_failed",
            "edgemesh_forward_udp_flows_active",
            "edgemesh_forward_udp_flows_opened",
            "edgemesh_forward_udp_dropped",
        ] {
            assert!(samples.iter().any(|sample| sample.name == name), "{name}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_has_just_begun_can_be_asked() {
        let status = Observer::of_idle(NodeName::new("edge-1"), Health::new()).status();
        assert!(!status.ready);
        assert_eq!(status.services, ServicesReport::default());
        assert_eq!(status.source.origin, "nothing yet");
        assert_eq!(status.conditions.len(), Condition::ALL.len());
    }
}
