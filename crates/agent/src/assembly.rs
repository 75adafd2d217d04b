//! What an agent is made of, put together in the order in which one thing needs the other.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use edgemesh_forward::{DialReports, Forwarder, Limits, Settings, Wanted};
use edgemesh_plan::Policy;
use edgemesh_rules::{
    Backend, BackendSetting, Family, FlavourSetting, HostNetwork, HostSupport, Mark, Pulse,
    host_supports,
};
use edgemesh_tunnel::Running;
use edgemesh_watch::{
    ApiSettings, ApiSource, ApiTiming, Counters, LastGoodFile, LastGoodSaver, ManifestsSource,
    SourceState,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api_way::{CLOUD_VARIABLE, api_settings};
use crate::config::{self, Config, Flavour};
use crate::health::{Condition, Health};
use crate::holding::Outside;
use crate::metrics::{Figures, Metrics};
use crate::pulse::keep_open;
use crate::status::Observer;
use crate::supervisor::Start;
use crate::sync::{FamilyParts, Inputs, Parts, Sync};
use crate::sync_figures::SyncFigures;
use crate::tunnel::{self, Around, WriteTo};

/// How often the last good catalog is saved at the most: writing wears flash out.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Whether another agent holds the node while this one is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// None does; what one has left is nobody's.
    Nobody,
    /// One serves until this one is ready, with rules and an address that are on the node.
    Predecessor,
}

/// An agent that is ready to follow its catalog. Nothing leads to it yet.
pub(crate) struct Assembled {
    pub(crate) sync: Sync,
    /// What a reloaded configuration changes.
    pub(crate) policy: watch::Sender<Policy>,
    /// The catalog.
    pub(crate) source: watch::Receiver<SourceState>,
    /// The tunnel's tasks, where there is one.
    pub(crate) tunnel: Option<Running>,
    /// What belongs to the one agent that holds the node.
    pub(crate) outside: Outside,
}

/// Makes everything but what only the holder of the node may have.
///
/// # Errors
///
/// When something can't be had, with what to do.
pub(crate) async fn assemble(
    start: &Start,
    beside: Beside,
    health: &Health,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<Assembled> {
    let config = &start.config;
    let mark = mark(config)?;
    let figures = Arc::new(SyncFigures::default());
    let mut families = open_families(config, beside).await?;
    let intercepts: Vec<IpAddr> = families.iter().map(|family| family.intercept).collect();

    // Before anything is changed on the node: a wrong folder, kubeconfig or key ends here.
    let (source, watch_counters, saver) = start_source(start, tasks, stop)?;
    let (policy, policy_seen) = watch::channel(policy(config, start, &intercepts));
    let key = tunnel::key(start)?;
    let pulses = pulses(&families, beside);
    for family in &mut families {
        // Listeners need their address first; routes come with the catalog.
        family.host.ensure_address().await?;
    }
    let opened = async {
        // Addresses that come later make the transport open its sockets anew.
        let around = Around {
            start,
            source: &source,
            policy: &policy_seen,
            health,
            write_to: write_to(start),
        };
        let tunnel = tunnel::open(key, around, tasks, stop).await?;
        let forwarder = bind_forwarder(start, beside, &intercepts, tunnel.as_ref())?;
        anyhow::Ok((tunnel, forwarder))
    };
    let (tunnel, forwarder) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            if beside == Beside::Nobody {
                remove_addresses(families).await;
            }
            return Err(error);
        }
    };
    health.set(Condition::Listener, Ok(()));
    let beating = keep_open(pulses, health.clone(), forwarder.liveness(), stop.clone());
    tasks.spawn(async move {
        beating.await;
        "the keeper of the gates"
    });
    let through = tunnel.as_ref().map(|opened| opened.tunnel.clone());
    let mut told: Vec<Box<dyn Figures>> = vec![
        Box::new(Arc::clone(&figures)),
        Box::new(forwarder.counters()),
        Box::new(Arc::clone(&watch_counters)),
    ];
    told.extend(through.clone().map(|tunnel| Box::new(tunnel) as _));
    let reach = tunnel.as_ref().map(|opened| opened.reach.clone());
    told.extend(reach.clone().map(|reach| Box::new(reach) as _));
    let metrics = Metrics::new(told);
    let (forward_counters, endpoint_health) = (forwarder.counters(), forwarder.endpoint_health());
    let sync = Sync::new(Parts {
        inputs: Inputs {
            source: source.clone(),
            has_tunnel: through.is_some(),
            reachability: reach.map_or_else(tunnel::no_peers, |reach| reach.reachability()),
            policy: policy_seen,
        },
        forwarder,
        families,
        mark,
        health: health.clone(),
        figures,
        check_period: config.edge_proxy.iptables_check_period,
    });
    let observer = Observer {
        node: start.node.clone(),
        started: start.at,
        health: health.clone(),
        in_force: sync.in_force(),
        source: source.clone(),
        source_counters: watch_counters,
        forward_counters,
        endpoint_health: Some(endpoint_health),
        tunnel: tunnel.as_ref().map(|opened| opened.observer.clone()),
    };
    let (running, in_public) = tunnel
        .map(|opened| (opened.running, opened.in_public))
        .unzip();
    Ok(Assembled {
        sync,
        policy,
        source,
        tunnel: running,
        outside: Outside {
            admin: config.common.admin,
            health: health.clone(),
            metrics,
            observer,
            saver,
            in_public,
        },
    })
}

async fn open_families(config: &Config, beside: Beside) -> anyhow::Result<Vec<FamilyParts>> {
    let mut families = Vec::new();
    let mut unavailable = Vec::new();
    for intercept in [
        IpAddr::from(config.common.intercept_v4),
        IpAddr::from(config.edge_proxy.intercept_v6),
    ] {
        match open_family(intercept, config).await? {
            Ok(parts) => families.push(parts),
            Err(reason) => unavailable.push(reason),
        }
    }
    if families.is_empty() {
        bail!(
            "this host can intercept neither family: {}",
            unavailable.join("; ")
        );
    }
    if beside == Beside::Predecessor {
        families
            .iter_mut()
            .for_each(|family| family.backend.succeed());
    }
    Ok(families)
}

/// Makes ready to program one family; or says why this host does not have it.
async fn open_family(
    intercept: IpAddr,
    config: &Config,
) -> anyhow::Result<Result<FamilyParts, String>> {
    let family = Family::of(intercept);
    let setting = backend_setting(config);
    if let HostSupport::Unavailable(reason) = host_supports(family, setting).await {
        tracing::info!(%family, reason, "this family is not intercepted");
        return Ok(Err(format!("{family}: {reason}")));
    }
    let backend = Backend::open(family, setting).await?;
    tracing::info!(%family, backend = %backend.choice(), "the rules' way into the kernel");
    Ok(Ok(FamilyParts {
        intercept,
        host: HostNetwork::open(intercept)?,
        backend,
    }))
}

/// Signs of life for the gates that let new connections through while an agent lives.
fn pulses(families: &[FamilyParts], beside: Beside) -> Vec<Pulse> {
    let mut pulses: Vec<Pulse> = families
        .iter()
        .map(|family| family.backend.pulse())
        .collect();
    if beside == Beside::Nobody {
        // What an agent before this one left leads to listeners that are no more.
        for pulse in &mut pulses {
            if let Err(error) = pulse.close_found_gate() {
                // It closes by itself, only later.
                tracing::debug!(%error, family = %pulse.family(), "the gate is not closed");
            }
        }
    }
    pulses
}

fn bind_forwarder(
    start: &Start,
    beside: Beside,
    intercepts: &[IpAddr],
    tunnel: Option<&tunnel::Opened>,
) -> anyhow::Result<Forwarder> {
    let settings = Settings {
        tunnel: tunnel.map(|opened| opened.tunnel.clone()),
        dial_reports: tunnel.map_or_else(DialReports::default, |opened| {
            DialReports::to(opened.not_reached.clone())
        }),
        ..forwarder_settings(start, beside, intercepts)
    };
    let mut forwarder = Forwarder::bind(&settings).context("start the forwarder")?;
    forwarder.start();
    Ok(forwarder)
}

async fn remove_addresses(families: Vec<FamilyParts>) {
    for mut family in families {
        if let Err(left) = family.host.remove().await {
            tracing::error!(error = &left as &dyn std::error::Error, "address is left");
        }
    }
}

fn mark(config: &Config) -> anyhow::Result<Mark> {
    let value = config.edge_proxy.socket_mark;
    u8::try_from(value.trailing_zeros())
        .ok()
        .and_then(Mark::new)
        .filter(|mark| mark.value() == value)
        .with_context(|| format!("modules.edgeProxy.socketMark {value:#x} is not a single bit"))
}

fn policy(config: &Config, start: &Start, intercepts: &[IpAddr]) -> Policy {
    Policy {
        filter: config.edge_proxy.filter,
        datapath: config.edge_proxy.datapath,
        ipv4: intercepts.iter().any(IpAddr::is_ipv4),
        ipv6: intercepts.iter().any(IpAddr::is_ipv6),
        ..Policy::of(start.node.clone())
    }
}

fn forwarder_settings(start: &Start, beside: Beside, intercepts: &[IpAddr]) -> Settings {
    let config = &start.config.edge_proxy;
    let wanted = Wanted {
        connections: config.max_connections,
        udp_flows: config.max_udp_flows,
    };
    let limits = Limits::within(start.open_files, wanted);
    let mut settings = Settings {
        listen_port: config.listen_port,
        listen_port_expected_taken: beside == Beside::Predecessor,
        mark: Some(config.socket_mark),
        strategy: config.strategy,
        max_connections: limits.max_connections,
        max_pipes: limits.max_pipes,
        max_udp_flows: limits.max_udp_flows,
        udp_flows_apart: limits.udp_flows_apart,
        udp_idle_timeout: config.udp_idle_timeout,
        dial_timeout: config.dial_timeout,
        dial_deadline: config.dial_deadline,
        seed: RandomState::new().hash_one(std::process::id()),
        ..Settings::default()
    };
    for intercept in intercepts {
        match intercept {
            IpAddr::V4(v4) => settings.intercept_v4 = Some(*v4),
            IpAddr::V6(v6) => settings.intercept_v6 = Some(*v6),
        }
    }
    settings
}

pub(crate) fn backend_setting(config: &Config) -> BackendSetting {
    let flavour = match config.edge_proxy.iptables_flavour {
        Flavour::Auto => FlavourSetting::Auto,
        Flavour::Nft => FlavourSetting::Fixed(edgemesh_rules::Flavour::Nft),
        Flavour::Legacy => FlavourSetting::Fixed(edgemesh_rules::Flavour::Legacy),
    };
    match config.edge_proxy.backend {
        config::Backend::Auto => BackendSetting::Auto(flavour),
        config::Backend::Iptables => BackendSetting::Iptables(flavour),
        config::Backend::Nftables => BackendSetting::Nftables,
    }
}

/// The catalog, what is counted about it, and for the Kubernetes API who saves it.
type Source = (
    watch::Receiver<SourceState>,
    Arc<Counters>,
    Option<LastGoodSaver>,
);

/// Starts the source of the catalog.
fn start_source(
    start: &Start,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<Source> {
    let counters = Arc::new(Counters::default());
    if let Some(directory) = &start.manifests {
        let (source, states) = ManifestsSource::new(directory.clone(), Arc::clone(&counters))?;
        let source = source.keeping_node_labels(node_labels(start));
        let stop = stop.clone();
        tasks.spawn(async move {
            source.run(stop).await;
            "the manifests source"
        });
        return Ok((states, counters, None));
    }
    let file = LastGoodFile::in_dir(&start.state_dir);
    let last_good = match file.load() {
        Ok(last_good) => last_good,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "no last good catalog"
            );
            None
        }
    };
    let loaded = last_good.as_ref().map(|known| known.catalog.clone());
    let (source, states) = ApiSource::new(
        api(start),
        ApiTiming::default(),
        last_good,
        Arc::clone(&counters),
    );
    let source = source.keeping_node_labels(node_labels(start));
    let saver = LastGoodSaver::new(file, SAVE_EVERY, states.clone(), loaded);
    let stop_source = stop.clone();
    tasks.spawn(async move {
        source.run(stop_source).await;
        "the Kubernetes API source"
    });
    Ok((states, counters, Some(saver)))
}

/// The labels of Nodes that are selected by.
fn node_labels(start: &Start) -> BTreeSet<Arc<str>> {
    start.config.edge_proxy.reachability.node_labels()
}

fn api(start: &Start) -> ApiSettings {
    api_settings(&start.config, std::env::var_os(CLOUD_VARIABLE).is_some())
}

/// Where this agent's own word goes: to where the catalog comes from.
fn write_to(start: &Start) -> WriteTo {
    match &start.manifests {
        Some(directory) => WriteTo::Manifests(directory.clone()),
        None => WriteTo::Api(api(start)),
    }
}
