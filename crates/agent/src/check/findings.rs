//! What is said of the facts: each line ok, a warning or a failure, with what to do. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use edgemesh_rules::{BackendKind, Flavour};

use super::agent_finding::agent_finding;
use super::datapath_findings::datapath_findings;
use super::facts::{AgentFact, Facts, PortFact, PortUse, SourceFact};
use super::finding::{CheckReport, Finding, Grade, fails, ok, warning};
use super::kube_proxy::Mode;
use super::tunnel_findings::tunnel_findings;
use crate::moment::{length, utc};

/// Fewer files than this leave room for some hundreds of connections only.
const FEW_FILES: u64 = 16_384;

/// A clock that differs from the API server's by more makes certificates doubtful.
const CLOCK_MAY_DIFFER: Duration = Duration::from_secs(60);

/// 2025-01-01: no node of ours is older, only clocks are.
const OLDEST_NOW: Duration = Duration::from_secs(1_735_689_600);

/// All findings.
pub(crate) fn findings(facts: &Facts) -> CheckReport {
    let mut all = vec![rights(facts)];
    all.push(programs(facts));
    all.extend(rules(facts));
    all.extend(kernel(facts));
    all.extend(datapath_findings(facts));
    all.extend(kube_proxy(facts));
    all.extend(others(facts));
    all.extend(addresses(facts));
    all.extend(
        facts
            .ports
            .iter()
            .filter_map(|port| self::port(port, facts)),
    );
    all.push(files(facts));
    all.push(clock(facts));
    all.extend(source(facts));
    let runs = !matches!(facts.agent, AgentFact::NotRunning);
    all.extend(tunnel_findings(facts.tunnel.as_ref(), runs));
    all.push(agent_finding(&facts.agent, facts.is_configured));
    CheckReport {
        verdict: all
            .iter()
            .map(|finding| finding.grade)
            .max()
            .unwrap_or(Grade::Ok),
        findings: all,
    }
}

fn rights(facts: &Facts) -> Finding {
    const TOPIC: &str = "rights";
    match &facts.lacking {
        Some(lacking) if lacking.is_empty() => ok(TOPIC, "NET_ADMIN and NET_RAW"),
        Some(lacking) => {
            let list: Vec<String> = lacking
                .iter()
                .map(|(name, why)| format!("{name} is lacking, needed {why}"))
                .collect();
            fails(
                TOPIC,
                list.join("; "),
                "run as root, or grant it: securityContext.capabilities.add in Kubernetes, \
                 AmbientCapabilities= with systemd",
            )
        }
        None => warning(
            TOPIC,
            "/proc/self/status does not tell this process's capabilities",
            "mount /proc; NET_ADMIN and NET_RAW are needed",
        ),
    }
}

fn programs(facts: &Facts) -> Finding {
    let found: Vec<String> = facts
        .tools
        .iter()
        .filter_map(|tool| {
            let version = tool.version.as_ref()?;
            Some(match version {
                Ok(version) => version_of(tool.name, version),
                Err(_) => format!("{} (does not run)", tool.name),
            })
        })
        .collect();
    let broken = facts
        .tools
        .iter()
        .find_map(|tool| tool.version.as_ref()?.as_ref().err());
    match (broken, found.is_empty()) {
        (Some(problem), _) => warning("programs", problem, "repair or reinstall it"),
        (None, true) => warning(
            "programs",
            "neither iptables nor nft is installed",
            "install the package iptables, unless the nftables backend is used; it needs none",
        ),
        (None, false) => ok("programs", found.join(", ")),
    }
}

/// `iptables v1.8.9 (nf_tables)` of `iptables-nft` is `iptables-nft 1.8.9`.
fn version_of(name: &str, version: &str) -> String {
    let number = version.split([' ', ',', '-']).find(|word| {
        word.trim_start_matches('v')
            .starts_with(|c: char| c.is_ascii_digit())
    });
    match number {
        Some(number) => format!("{name} {}", number.trim_start_matches('v')),
        None => name.to_owned(),
    }
}

fn rules(facts: &Facts) -> Vec<Finding> {
    let none = facts.families.iter().all(|(_, choice)| choice.is_err());
    let mut all: Vec<Finding> = facts
        .families
        .iter()
        .map(|(family, choice)| {
            let topic = format!("rules {family}");
            match choice {
                Ok(choice) => {
                    let way = match choice.kind {
                        BackendKind::Iptables(flavour) => format!("{}-{flavour}", family.tool()),
                        BackendKind::Nftables => choice.kind.to_string(),
                    };
                    ok(&topic, format!("{way}: {}", choice.reason))
                }
                Err(why) if none => fails(
                    &topic,
                    why,
                    "without rules of at least one family nothing can be intercepted",
                ),
                Err(why) => warning(
                    &topic,
                    format!("not intercepted: {why}"),
                    "nothing, if this node needs no Services of this family",
                ),
            }
        })
        .collect();
    let has = |name: &str| {
        let mut tools = facts.tools.iter();
        tools.any(|tool| tool.name == name && tool.version.is_some())
    };
    for (family, tables) in &facts.legacy_tables {
        let legacy = format!("{}-legacy", family.tool());
        if tables.iter().any(|table| table == "nat") && !has(&legacy) && !has(family.tool()) {
            all.push(warning(
                &format!("rules {family}"),
                "somebody uses iptables-legacy's nat table here, and it can't be read",
                &format!("install {legacy} (package iptables), which kube-proxy may be using"),
            ));
        }
    }
    for problem in &facts.rule_problems {
        all.push(warning(
            "rules",
            format!("what is there can't be read: {problem}"),
            "run as root in the host's network namespace",
        ));
    }
    all
}

fn kernel(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    match facts.conntrack {
        Some((count, most)) if count.saturating_mul(10) >= most.saturating_mul(9) => {
            all.push(warning(
                "conntrack",
                format!("{count} of {most} connections are tracked: new ones will soon be dropped"),
                "raise the sysctl net.netfilter.nf_conntrack_max",
            ));
        }
        Some((count, most)) => all.push(ok(
            "kernel",
            format!("{}; {count} of {most} connections tracked", facts.kernel),
        )),
        None => all.push(ok(
            "kernel",
            format!(
                "{}; connection tracking begins with the first NAT rule",
                facts.kernel
            ),
        )),
    }
    let missing = facts
        .missing_modules
        .as_ref()
        .filter(|list| !list.is_empty());
    let iptables = facts.families.iter().any(|(_, choice)| {
        choice
            .as_ref()
            .is_ok_and(|choice| matches!(choice.kind, BackendKind::Iptables(_)))
    });
    if let Some(missing) = missing.filter(|_| iptables) {
        all.push(warning(
            "kernel",
            format!(
                "neither built in nor installed for it: {}",
                missing.join(", ")
            ),
            "install the kernel's modules, or set modules.edgeProxy.backend: nftables",
        ));
    }
    all
}

fn kube_proxy(facts: &Facts) -> Vec<Finding> {
    const TOPIC: &str = "kube-proxy";
    let signs = &facts.kube_proxy;
    let Some(mode) = signs.mode() else {
        return vec![ok(
            TOPIC,
            "no trace of one: what the agent leaves alone is handled by nobody",
        )];
    };
    let mut all = vec![ok(
        TOPIC,
        format!(
            "{mode} mode; recognised by: {}",
            signs.in_words().join(", ")
        ),
    )];
    let left_over = signs.left_over();
    if !left_over.is_empty() {
        all.push(warning(
            TOPIC,
            format!("left over from another mode: {}", left_over.join(", ")),
            "run `kube-proxy --cleanup` of the old mode, or restart the node",
        ));
    }
    all.extend(facts.families.iter().filter_map(|(family, choice)| {
        let kind = choice.as_ref().ok()?.kind;
        let flavours: Vec<Flavour> = signs
            .chains
            .iter()
            .filter(|(of, _)| of == family)
            .map(|(_, flavour)| *flavour)
            .collect();
        match kind {
            BackendKind::Iptables(flavour)
                if mode == Mode::Iptables
                    && !flavours.is_empty()
                    && !flavours.contains(&flavour) =>
            {
                Some(fails(
                    TOPIC,
                    format!(
                        "{family}: it uses the other flavour of iptables than {flavour}, so \
                         that precedence over it can't be had"
                    ),
                    "set modules.edgeProxy.iptables.flavour: auto and install both flavours",
                ))
            }
            BackendKind::Iptables(_) if mode == Mode::Nftables => Some(warning(
                TOPIC,
                format!(
                    "{family}: it uses nftables, the agent would use iptables; which of them is \
                     first depends on which was loaded first"
                ),
                "set modules.edgeProxy.backend: auto or nftables",
            )),
            BackendKind::Iptables(_) | BackendKind::Nftables => None,
        }
    }));
    all
}

fn others(facts: &Facts) -> Vec<Finding> {
    let others = &facts.others;
    let mut all = Vec::new();
    if let Some(pin) = &others.cilium_socket_lb {
        all.push(fails(
            "Cilium",
            format!(
                "its socket load-balancing ({pin}) chooses an endpoint when a program connects, \
                 before there is a packet to intercept"
            ),
            "set socketLB.enabled=false and kubeProxyReplacement=false in Cilium, or leave \
             Services to it on this node",
        ));
    } else if others.cilium {
        all.push(warning(
            "Cilium",
            "it is on this node, without socket load-balancing to be seen from here",
            "make sure of it: `cilium status --verbose` shows KubeProxyReplacement and Socket LB; \
             both must be off (run this check where /sys/fs/bpf is mounted to see for yourself)",
        ));
    }
    if !others.istio_chains.is_empty() {
        all.push(warning(
            "Istio",
            format!(
                "it redirects in this network namespace, before or after us: {}",
                others.istio_chains.join(", ")
            ),
            "its chains belong into pods; connections that they take don't reach the agent",
        ));
    }
    if !others.earlier_nat.is_empty() {
        all.push(warning(
            "other NAT",
            format!(
                "asked before iptables, and the first NAT wins: {}",
                others.earlier_nat.join(", ")
            ),
            "see `nft list ruleset` whether it concerns ClusterIPs",
        ));
    }
    if others.edgemesh_device {
        all.push(fails(
            "EdgeMesh",
            "the device edgemesh0 of EdgeMesh's own agent is here: both would answer for the \
             same Services",
            "remove EdgeMesh's DaemonSet, then `ip link delete edgemesh0`",
        ));
    }
    if all.is_empty() {
        all.push(ok("others", "nobody else is seen to do NAT before us"));
    }
    all
}

fn addresses(facts: &Facts) -> Vec<Finding> {
    let free: Vec<String> = facts
        .intercepts
        .iter()
        .filter(|(_, devices)| devices.is_empty())
        .map(|(ip, _)| ip.to_string())
        .collect();
    let taken = facts
        .intercepts
        .iter()
        .filter(|(_, devices)| !devices.is_empty());
    let mut all: Vec<Finding> = taken
        .map(|(ip, devices)| {
            fails(
                "address",
                format!("{ip} is on {} already", devices.join(", ")),
                "remove it there, or set commonConfig.bridgeDeviceIP \
                 (IPv6: modules.edgeProxy.interceptAddressIPv6) to one that is free",
            )
        })
        .collect();
    if all.is_empty() {
        all.push(ok(
            "address",
            format!("on no other device: {}", free.join(", ")),
        ));
    }
    all
}

fn port(port: &PortFact, facts: &Facts) -> Option<Finding> {
    let runs = matches!(facts.agent, AgentFact::Runs { .. } | AgentFact::NoAnswer(_));
    let address = port.address;
    match (port.what, port.taken) {
        (_, true) if runs => None,
        (PortUse::Intercepted, true) => Some(warning(
            "port",
            format!("somebody listens on {address}; the agent will take a free port instead"),
            "nothing, or set modules.edgeProxy.listenPort",
        )),
        (PortUse::Admin, true) => Some(fails(
            "port",
            format!("somebody listens on {address}, where /healthz, /readyz and /metrics would be"),
            "set commonConfig.admin.address to another port, or to \"\" for none",
        )),
        (PortUse::Intercepted | PortUse::Admin, false) => None,
    }
}

fn files(facts: &Facts) -> Finding {
    const TOPIC: &str = "open files";
    match facts.file_limit {
        Some((_, hard)) if hard < FEW_FILES => warning(
            TOPIC,
            format!("at most {hard}: a connection takes two"),
            "raise it: LimitNOFILE= with systemd, the container runtime's ulimit in Kubernetes",
        ),
        Some((_, hard)) => ok(TOPIC, format!("at most {hard}")),
        None => warning(
            TOPIC,
            "the limit can't be read; 1024 is assumed",
            "see `ulimit -Hn`",
        ),
    }
}

fn clock(facts: &Facts) -> Finding {
    const TOPIC: &str = "clock";
    const SET_IT: &str = "set it, and keep it right with NTP: certificates are valid for a time";
    if facts.now < UNIX_EPOCH + OLDEST_NOW {
        return fails(TOPIC, format!("it says {}", utc(facts.now)), SET_IT);
    }
    let servers = match &facts.source {
        SourceFact::Api(Ok(reached)) => reached.server_time,
        SourceFact::Api(Err(_)) | SourceFact::Manifests(_) => None,
    };
    match servers.map(|servers| difference(facts.now, servers)) {
        Some(difference) if difference > CLOCK_MAY_DIFFER => warning(
            TOPIC,
            format!(
                "it differs from the API server's by {}: here it is {}",
                length(difference),
                utc(facts.now)
            ),
            SET_IT,
        ),
        Some(_) => ok(TOPIC, format!("{}, as the API server's", utc(facts.now))),
        None => ok(TOPIC, utc(facts.now)),
    }
}

fn difference(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .or_else(|_| other.duration_since(one))
        .unwrap_or_default()
}

fn source(facts: &Facts) -> Vec<Finding> {
    match &facts.source {
        SourceFact::Manifests(Ok((services, 0))) => {
            vec![ok("manifests", format!("{services} Services"))]
        }
        SourceFact::Manifests(Ok((services, problems))) => vec![warning(
            "manifests",
            format!("{services} Services; {problems} objects or files with mistakes"),
            "the log of `edgemesh-agent run` names each with its line",
        )],
        SourceFact::Manifests(Err(problem)) => vec![fails(
            "manifests",
            problem,
            "give a folder that can be read with --manifests",
        )],
        SourceFact::Api(Err(problem)) => vec![fails(
            "API server",
            problem,
            "give the agent's own configuration with --config; in a pod, run this in the \
             agent's pod",
        )],
        SourceFact::Api(Ok(reached)) => {
            let mut all: Vec<Finding> = reached
                .kinds
                .iter()
                .filter_map(|(kind, outcome)| {
                    let problem = outcome.as_ref().err()?;
                    let says = format!("{kind} can't be read: {problem}");
                    const REMEDY: &str = "grant get, list and watch in the agent's ClusterRole";
                    Some(match *kind {
                        // Endpoints take their place; nodes only decide on zones.
                        "EndpointSlices" | "Nodes" => warning("API server", says, REMEDY),
                        // Without them there is no tunnel; all else works.
                        "MeshNodes" => warning(
                            "API server",
                            says,
                            "run `edgemesh-agent crd | kubectl apply -f -`, and grant get, list \
                             and watch in the agent's ClusterRole",
                        ),
                        _ => fails("API server", says, REMEDY),
                    })
                })
                .collect();
            if all.is_empty() {
                all.push(ok("API server", format!("{} answers", reached.url)));
            }
            all
        }
    }
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
