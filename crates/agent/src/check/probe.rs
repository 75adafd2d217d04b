//! Looks at this host. Nothing is changed: no table is made by looking, no port is bound.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgemesh_catalog::NodeName;
use edgemesh_rules::{
    Backend, BackendChoice, Family, HostForwarding, HostSupport, OwnChain, find_tools,
    host_supports,
};
use edgemesh_watch::{Counters, ManifestsSource, reach};
use nix::sys::resource::{Resource, getrlimit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::facts::{AgentFact, Facts, Others, PortFact, PortUse, SourceFact};
use super::kube_proxy::Signs;
use super::listeners::{is_taken, listeners};
use super::tunnel_facts::tunnel_facts;
use crate::api_way::{CLOUD_VARIABLE, api_settings};
use crate::ask::{self, NoAnswer};
use crate::assembly::backend_setting;
use crate::config::Config;
use crate::explain::{KUBE_PROXY_TABLE, Kernel};
use crate::privileges;
use crate::tunnel::TunnelReport;

/// Where kube-proxy tells its mode (`--metrics-bind-address`, kubernetes
/// `cmd/kube-proxy/app/server.go`).
const KUBE_PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// How long kube-proxy may take to tell.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// How long manifests may take to be read.
const MANIFESTS_TIMEOUT: Duration = Duration::from_secs(10);

/// iptables' matches and targets that the agent's rules are made of, by module.
const MODULES: [&str; 4] = ["xt_comment", "xt_mark", "xt_nat", "xt_tcpudp"];

/// Where Cilium pins its socket load-balancing (cilium `pkg/socketlb`), newer versions first.
const CILIUM_PINS: [&str; 2] = [
    "/sys/fs/bpf/cilium/socketlb/links/cgroup/cil_sock4_connect",
    "/sys/fs/bpf/tc/globals/cilium_lb4_reverse_sk",
];

/// What the agent would be started with.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its configuration.
    pub(crate) config: Config,
    /// Whether that was given, and is not merely what goes without one.
    pub(crate) is_configured: bool,
    /// The folder of manifests that replaces the Kubernetes API.
    pub(crate) manifests: Option<PathBuf>,
    /// The name of the node.
    pub(crate) node: NodeName,
    /// Where it keeps its state.
    pub(crate) state_dir: PathBuf,
}

/// Looks at everything.
pub(crate) async fn probe(wanted: &Wanted) -> Facts {
    let config = &wanted.config;
    let intercepts = [
        IpAddr::from(config.common.intercept_v4),
        IpAddr::from(config.edge_proxy.intercept_v6),
    ];
    let kernel = Kernel::read().await;
    let (agent, tunnel) = agent();
    Facts {
        kernel: kernel_release(),
        lacking: privileges::lacking(),
        tools: find_tools().await,
        legacy_tables: Family::BOTH
            .map(|family| (family, legacy_tables(family)))
            .to_vec(),
        families: families(config).await,
        missing_modules: missing_modules(),
        conntrack: conntrack(),
        datapath: config.edge_proxy.datapath,
        host: HostForwarding::open().facts().clone(),
        kube_proxy: signs(&kernel),
        rule_problems: kernel.problems.clone(),
        others: others(&kernel),
        intercepts: intercepts.map(|ip| (ip, devices_with(ip))).to_vec(),
        ports: ports(config, &intercepts),
        now: SystemTime::now(),
        file_limit: getrlimit(Resource::RLIMIT_NOFILE).ok(),
        is_configured: wanted.is_configured,
        source: source(wanted).await,
        tunnel: config
            .edge_tunnel
            .enable
            .then(|| tunnel_facts(config, &wanted.node, &wanted.state_dir, tunnel)),
        agent,
    }
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// The kernel's own list: asking iptables-legacy would make a table.
fn legacy_tables(family: Family) -> Vec<String> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn families(config: &Config) -> Vec<(Family, Result<BackendChoice, String>)> {
    let setting = backend_setting(config);
    let mut families = Vec::new();
    for family in Family::BOTH {
        let choice = match host_supports(family, setting).await {
            HostSupport::Unavailable(why) => Err(why),
            HostSupport::Available => Backend::open(family, setting)
                .await
                .map(|backend| backend.choice().clone())
                .map_err(|error| error.to_string()),
        };
        families.push((family, choice));
    }
    families
}

/// None when neither list of modules can be read, as in most containers.
fn missing_modules() -> Option<Vec<&'static str>> {
    let folder = Path::new("/lib/modules").join(kernel_release());
    let loaded = fs::read_to_string("/proc/modules").unwrap_or_default();
    let installed = fs::read_to_string(folder.join("modules.dep")).ok()?;
    let built_in = fs::read_to_string(folder.join("modules.builtin")).ok()?;
    let is_there = |module: &str| {
        let file = format!("/{module}.ko");
        installed.contains(&file)
            || built_in.contains(&file)
            || loaded
                .lines()
                .any(|line| line.split(' ').next() == Some(module))
    };
    Some(
        MODULES
            .into_iter()
            .filter(|module| !is_there(module))
            .collect(),
    )
}

fn conntrack() -> Option<(u64, u64)> {
    let number = |name: &str| -> Option<u64> {
        let path = Path::new("/proc/sys/net/netfilter").join(name);
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some((number("nf_conntrack_count")?, number("nf_conntrack_max")?))
}

fn signs(kernel: &Kernel) -> Signs {
    Signs {
        said: kube_proxys_word(),
        chains: kernel
            .nats
            .iter()
            .filter(|inspected| {
                let nat = inspected.nat.as_ref();
                nat.is_ok_and(|nat| nat.has_chain(edgemesh_rules::KUBE_SERVICES))
            })
            .map(|inspected| (inspected.family, inspected.flavour))
            .collect(),
        nft_table: kernel.has_table(KUBE_PROXY_TABLE),
        ipvs_device: has_device("kube-ipvs0"),
        ipvs_services: kernel.ipvs.len(),
    }
}

fn kube_proxys_word() -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&KUBE_PROXY, WORD_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(WORD_TIMEOUT)).ok()?;
    stream.set_write_timeout(Some(WORD_TIMEOUT)).ok()?;
    let request = "GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let good = head.split(' ').nth(1) == Some("200");
    let mode = body.trim();
    (good && matches!(mode, "iptables" | "ipvs" | "nftables")).then(|| mode.to_owned())
}

fn others(kernel: &Kernel) -> Others {
    let nat_chains: BTreeSet<&str> = kernel
        .nats
        .iter()
        .filter_map(|inspected| inspected.nat.as_ref().ok())
        .flat_map(edgemesh_rules::NatView::chain_names)
        .collect();
    let mut earlier: Vec<String> = OwnChain::BOTH
        .into_iter()
        .flat_map(|chain| Family::BOTH.map(|family| (chain, family)))
        .flat_map(|(chain, family)| kernel.earlier_nat(chain, family))
        .collect();
    earlier.sort();
    earlier.dedup();
    Others {
        cilium_socket_lb: CILIUM_PINS
            .into_iter()
            .find(|pin| Path::new(pin).exists())
            .map(str::to_owned),
        cilium: has_device("cilium_host")
            || nat_chains.iter().any(|name| name.starts_with("CILIUM_")),
        istio_chains: nat_chains
            .iter()
            .filter(|name| name.starts_with("ISTIO_"))
            .map(|name| (*name).to_owned())
            .collect(),
        earlier_nat: earlier,
        edgemesh_device: has_device("edgemesh0"),
    }
}

/// `/sys/class/net` shows the network namespace that it was mounted in; this shows ours.
fn has_device(wanted: &str) -> bool {
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    devices
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, _)| name.trim() == wanted)
}

/// The devices, `lo` excepted, that have an address.
fn devices_with(wanted: IpAddr) -> Vec<String> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    addresses
        .filter(|interface| interface.interface_name != "lo")
        .filter(|interface| {
            let address = interface.address.as_ref();
            let v4 = address
                .and_then(|a| a.as_sockaddr_in())
                .map(|a| IpAddr::V4(a.ip()));
            let v6 = address
                .and_then(|a| a.as_sockaddr_in6())
                .map(|a| IpAddr::V6(a.ip()));
            v4.or(v6) == Some(wanted)
        })
        .map(|interface| interface.interface_name)
        .collect()
}

fn ports(config: &Config, intercepts: &[IpAddr]) -> Vec<PortFact> {
    let listening: Vec<SocketAddr> = ["tcp", "tcp6"]
        .iter()
        .filter_map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok())
        .flat_map(|text| listeners(&text))
        .collect();
    let fact = |address, what| PortFact {
        address,
        what,
        taken: is_taken(address, &listening),
    };
    let listen = config.edge_proxy.listen_port;
    intercepts
        .iter()
        .map(|ip| fact(SocketAddr::new(*ip, listen), PortUse::Intercepted))
        .chain(
            config
                .common
                .admin
                .map(|address| fact(address, PortUse::Admin)),
        )
        .collect()
}

async fn source(wanted: &Wanted) -> SourceFact {
    match &wanted.manifests {
        Some(folder) => SourceFact::Manifests(manifests(folder).await),
        None => {
            let in_cloud = std::env::var_os(CLOUD_VARIABLE).is_some();
            SourceFact::Api(reach(&api_settings(&wanted.config, in_cloud)).await)
        }
    }
}

/// How many Services a folder holds, and how many objects and files have mistakes.
async fn manifests(folder: &Path) -> Result<(usize, usize), String> {
    let (source, mut states) =
        ManifestsSource::new(folder.to_owned(), Arc::new(Counters::default()))
            .map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let complete = async {
        let state = states.wait_for(|state| state.complete).await;
        let found = state.map(|state| {
            let problems = state.problems.objects + state.problems.files;
            (state.catalog.services().count(), problems)
        });
        found.map_err(|_| "the folder could not be read to its end".to_owned())
    };
    let reading = async {
        source.run(stop.clone()).await;
        std::future::pending().await
    };
    let first = async {
        tokio::select! {
            found = complete => found,
            never = reading => never,
        }
    };
    timeout(MANIFESTS_TIMEOUT, first).await.unwrap_or_else(|_| {
        Err(format!(
            "reading {} took longer than {} s",
            folder.display(),
            MANIFESTS_TIMEOUT.as_secs()
        ))
    })
}

/// The agent that runs here, and what it says of its tunnel.
fn agent() -> (AgentFact, Option<TunnelReport>) {
    match ask::status() {
        Ok(status) => {
            let not_ready = status
                .conditions
                .into_iter()
                .filter(|condition| !condition.ok)
                .map(|condition| {
                    let why = condition.why.unwrap_or_default();
                    format!("{}: {why}", condition.name)
                })
                .collect();
            let version = status.version;
            (AgentFact::Runs { version, not_ready }, status.tunnel)
        }
        Err(NoAnswer::NotRunning) => (AgentFact::NotRunning, None),
        Err(error) => {
            let error = anyhow::Error::new(error);
            (AgentFact::NoAnswer(format!("{error:#}")), None)
        }
    }
}
