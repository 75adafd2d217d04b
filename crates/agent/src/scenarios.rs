//! The folders of `scenarios/`: cluster objects in, plan and rule text out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgemesh_catalog::{Catalog, NodeName, Protocol};
use edgemesh_forward::Destinations;
use edgemesh_plan::{OwnPods, Plan, Policy, PortalEndpoint, Reachability, Target, Way, plan};
use edgemesh_rules::{Gate, Mark, Ruleset, render, render_nftables};
use edgemesh_watch::{Counters, ManifestsSource};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::wanted::{self, Basis};

/// The node that every scenario is told from.
const NODE: &str = "edge1";
const REFUSAL_PORT: u16 = 20_009;
const FIRST_UDP_PORT: u16 = 40_001;

#[tokio::test]
async fn scenarios_come_out_as_written_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "no scenarios in {}", root.display());
    for folder in folders {
        let outputs = play(&folder).await;
        for (name, text) in outputs {
            compare(&folder.join(name), &text);
        }
    }
}

async fn play(folder: &Path) -> Vec<(&'static str, String)> {
    let config = match fs::read_to_string(folder.join("config.yaml")) {
        Ok(text) => crate::config::parse(&text, "config.yaml").unwrap().config,
        Err(_) => Config::without_file(),
    };
    let catalog = read(folder).await;
    let policy = Policy {
        filter: config.edge_proxy.filter,
        datapath: config.edge_proxy.datapath,
        ..Policy::of(NodeName::new(NODE))
    };
    let plan = plan(&catalog, &reachability(folder), &policy);
    let destinations = destinations(&plan);
    let [v4, v6] = [
        IpAddr::from(config.common.intercept_v4),
        IpAddr::from(config.edge_proxy.intercept_v6),
    ]
    .map(|intercept| {
        let pods = catalog
            .node(&policy.node)
            .map_or(&[][..], |node| &node.pod_cidrs);
        let empty =
            Ruleset::new(intercept, REFUSAL_PORT, Mark::AGENT).with_pods(pods.iter().copied());
        let basis = Basis {
            plan: &plan,
            own_pods: OwnPods::of(&catalog, &policy),
            destinations: &destinations,
        };
        wanted::ruleset(empty, basis, None)
    });
    let tables = [&v4, &v6].map(render_nftables).join("\n");
    vec![
        ("plan.txt", describe(&plan)),
        ("rules.iptables", render(&v4.clone().gated(Gate::KubeProxy))),
        (
            "rules.ip6tables",
            render(&v6.clone().gated(Gate::KubeProxy)),
        ),
        ("rules.nft", tables),
    ]
}

/// The peers of the tunnel by `peers.txt`, one in each line; without it there is no tunnel.
/// In each line of `direct.txt` a peer and a network of it that is proved to be reached
/// without the tunnel.
fn reachability(folder: &Path) -> Reachability {
    let Ok(names) = fs::read_to_string(folder.join("peers.txt")) else {
        return Reachability::default();
    };
    let direct = fs::read_to_string(folder.join("direct.txt")).unwrap_or_default();
    let mut verified: BTreeMap<NodeName, Arc<[_]>> = BTreeMap::new();
    for line in direct.lines() {
        let (node, network) = line.split_once(' ').unwrap();
        verified.insert(NodeName::new(node), [network.parse().unwrap()].into());
    }
    Reachability::with_peers(names.lines().map(NodeName::new)).with_verified(Arc::new(verified))
}

async fn read(folder: &Path) -> Catalog {
    let (source, mut states) =
        ManifestsSource::new(folder.to_owned(), Arc::new(Counters::default())).unwrap();
    let stop = CancellationToken::new();
    let catalog = async {
        let state = states.wait_for(|state| state.complete).await.unwrap();
        assert_eq!(state.problems.files, 0, "{} has mistakes", folder.display());
        state.catalog.clone()
    };
    tokio::select! {
        catalog = catalog => catalog,
        () = source.run(stop) => panic!("the source ended by itself"),
    }
}

/// Ports as a forwarder would hand them out: one for all TCP, one for each UDP portal.
fn destinations(plan: &Plan) -> Destinations {
    let mut destinations = Destinations::default();
    let mut next_udp = FIRST_UDP_PORT;
    for (_, portal) in plan.intercepted() {
        let port = match (&portal.target, portal.frontend.protocol) {
            (Target::Refuse(_), _) => REFUSAL_PORT,
            (_, Protocol::Udp) => {
                next_udp += 1;
                next_udp - 1
            }
            (_, Protocol::Tcp | Protocol::Sctp) => 20_007,
        };
        destinations.ports.insert(portal.frontend, port);
    }
    destinations
}

fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    for port in plan.ports() {
        if let Some(reason) = &port.left_alone {
            writeln!(
                text,
                "{}/{}: left alone: {reason}",
                port.name, port.name.protocol
            )
            .unwrap();
        }
        for portal in &port.portals {
            write!(text, "{} at {}: ", port.name, portal.frontend).unwrap();
            match &portal.target {
                Target::Forward {
                    endpoints,
                    choice,
                    datapath,
                } => {
                    let endpoints: Vec<_> = endpoints.iter().map(describe_endpoint).collect();
                    let endpoints = endpoints.join(", ");
                    write!(text, "forwarded to {endpoints} ({choice}) {datapath}").unwrap();
                }
                Target::Refuse(reason) => write!(text, "refused: {reason}").unwrap(),
                Target::LeaveAlone(reason) => write!(text, "left alone: {reason}").unwrap(),
            }
            if let Some(timeout) = port.affinity {
                write!(text, "; clients stay for {} s", timeout.as_secs()).unwrap();
            }
            text.push('\n');
        }
    }
    text
}

fn describe_endpoint(endpoint: &PortalEndpoint) -> String {
    match (&endpoint.node, endpoint.way) {
        (Some(node), Way::Native) => format!("{} on {node}", endpoint.address),
        (Some(node), way @ Way::Tunnel) => format!("{} on {node} {way}", endpoint.address),
        (None, _) => endpoint.address.to_string(),
    }
}

fn compare(path: &Path, text: &str) {
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, text).unwrap();
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        text,
        written,
        "{} is not what comes out; `make bless` writes it anew",
        path.display()
    );
}
