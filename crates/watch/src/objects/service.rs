//! Reading a core/v1 Service.

use std::net::IpAddr;
use std::time::Duration;

use edgemesh_catalog::{FILTER_LABEL, Service, ServiceKind, ServicePort, TrafficPolicy};
use serde_json::Value;

use super::field::{Field, Problem};
use super::{KnownNames, Reading, object_name, port_number, protocol};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where none is given
/// (`DefaultClientIPServiceAffinitySeconds`, kubernetes `pkg/apis/core/types.go`).
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// The longest affinity that the API server admits, in seconds
/// (`MaxClientIPServiceAffinitySeconds`, same place).
const LONGEST_AFFINITY: i64 = 86_400;

/// Reads a Service, filling in what the API server would.
pub(crate) fn read_service(value: &Value, names: &mut KnownNames) -> Reading<Service> {
    let mut problems = Vec::new();
    let root = Field::root(value);
    let object = object_name(&root, names, &mut problems).map(|name| {
        let spec = root.get("spec");
        if !spec.is_mapping(&mut problems) && spec.is_absent() {
            problems.push(spec.problem("is missing".to_owned()));
        }
        let kind = kind(&spec, &mut problems);
        let (cluster_ips, headless) = cluster_ips(&spec, kind, &mut problems);
        let labels = root.get("metadata");
        Service {
            name,
            kind,
            cluster_ips,
            headless,
            filter_label: labels.get("labels").has_key(FILTER_LABEL, &mut problems),
            session_affinity: session_affinity(&spec, &mut problems),
            internal_traffic_policy: internal_traffic_policy(&spec, &mut problems),
            ports: ports(&spec, kind, headless, names, &mut problems),
        }
    });
    Reading { object, problems }
}

fn kind(spec: &Field<'_, '_>, problems: &mut Vec<Problem>) -> ServiceKind {
    let field = spec.get("type");
    match field.text(problems) {
        None | Some("ClusterIP") => ServiceKind::ClusterIp,
        Some("NodePort") => ServiceKind::NodePort,
        Some("LoadBalancer") => ServiceKind::LoadBalancer,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            problems.push(field.problem(format!(
                "{other:?} is none of ClusterIP, NodePort, LoadBalancer, ExternalName; write one \
                 of these (taken for ClusterIP)"
            )));
            ServiceKind::ClusterIp
        }
    }
}

/// The ClusterIPs, and whether there are none on purpose.
///
/// `clusterIPs` counts where it is given; servers before 1.20 have `clusterIP` alone.
fn cluster_ips(
    spec: &Field<'_, '_>,
    kind: ServiceKind,
    problems: &mut Vec<Problem>,
) -> (Vec<IpAddr>, bool) {
    // An ExternalName Service may carry a stale ClusterIP from the time before its
    // type was changed (kube-proxy's ShouldSkipService, pkg/proxy/util/utils.go).
    if kind == ServiceKind::ExternalName {
        return (Vec::new(), false);
    }
    let single = spec.get("clusterIP");
    let list = spec.get("clusterIPs");
    let mut given: Vec<Field<'_, '_>> = list.items(problems).collect();
    if given.is_empty() {
        given.push(single);
    }
    let mut ips = Vec::with_capacity(given.len());
    for field in given {
        if field.text(&mut Vec::new()) == Some("None") {
            return (Vec::new(), true);
        }
        if let Some(ip) = field.ip(problems)
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    (ips, false)
}

fn session_affinity(spec: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Option<Duration> {
    let field = spec.get("sessionAffinity");
    match field.text(problems) {
        None | Some("None" | "") => None,
        Some("ClientIP") => {
            let config = spec.get("sessionAffinityConfig");
            let client_ip = config.get("clientIP");
            Some(affinity_timeout(&client_ip.get("timeoutSeconds"), problems))
        }
        Some(other) => {
            problems.push(field.problem(format!(
                "{other:?} is none of ClientIP, None; write one of these (taken for None)"
            )));
            None
        }
    }
}

fn affinity_timeout(field: &Field<'_, '_>, problems: &mut Vec<Problem>) -> Duration {
    let Some(seconds) = field.integer(problems) else {
        return DEFAULT_AFFINITY;
    };
    match u64::try_from(seconds) {
        Ok(valid) if (1..=LONGEST_AFFINITY).contains(&seconds) => Duration::from_secs(valid),
        Ok(_) | Err(_) => {
            problems.push(field.problem(format!(
                "{seconds} is no affinity timeout; write seconds from 1 to {LONGEST_AFFINITY} \
                 (taken for {})",
                DEFAULT_AFFINITY.as_secs()
            )));
            DEFAULT_AFFINITY
        }
    }
}

fn internal_traffic_policy(spec: &Field<'_, '_>, problems: &mut Vec<Problem>) -> TrafficPolicy {
    let field = spec.get("internalTrafficPolicy");
    match field.text(problems) {
        None | Some("Cluster" | "") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.push(field.problem(format!(
                "{other:?} is none of Cluster, Local; write one of these (taken for Cluster)"
            )));
            TrafficPolicy::Cluster
        }
    }
}

fn ports(
    spec: &Field<'_, '_>,
    kind: ServiceKind,
    headless: bool,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Vec<ServicePort> {
    let list = spec.get("ports");
    if list.is_absent() && !spec.is_absent() && !headless && kind != ServiceKind::ExternalName {
        problems.push(list.problem("is missing; a Service with a ClusterIP needs a port".into()));
    }
    let mut ports = Vec::new();
    for port in list.items(problems) {
        ports.extend(service_port(&port, names, problems));
    }
    ports.shrink_to_fit();
    ports
}

fn service_port(
    port: &Field<'_, '_>,
    names: &mut KnownNames,
    problems: &mut Vec<Problem>,
) -> Option<ServicePort> {
    let number = port.get("port");
    if number.is_absent() {
        problems.push(number.problem("is missing; write one from 1 to 65535".to_owned()));
    }
    let number = port_number(&number, problems);
    let protocol = protocol(port, problems);
    let name = port.get("name").text(problems).unwrap_or_default();
    Some(ServicePort {
        name: names.get(name),
        protocol: protocol?,
        port: number?,
    })
}
