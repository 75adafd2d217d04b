//! The life of the agent: what starts in which order, what ends it, and how.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use edgemesh_catalog::NodeName;
use edgemesh_forward::{Forwarder, Limits, Settings};
use edgemesh_plan::Policy;
use edgemesh_rules::{
    Backend, BackendSetting, Family, FlavourSetting, HostNetwork, HostSupport, Mark, Pulse,
    host_supports,
};
use edgemesh_watch::{
    ApiSource, ApiTiming, Counters, LastGoodFile, LastGoodSaver, ManifestsSource, SourceState,
};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::answers;
use crate::api_way::{CLOUD_VARIABLE, api_settings};
use crate::config::{self, Config, Flavour, Parsed};
use crate::health::{Condition, Health};
use crate::metrics::Metrics;
use crate::node_lock::NodeLock;
use crate::pulse::keep_open;
use crate::reload::{Reason, Reload};
use crate::status::Observer;
use crate::sync::{FamilyParts, Inputs, Parts, Sync};
use crate::sync_figures::SyncFigures;
use crate::termination::Termination;

/// What an agent is started with.
pub(crate) struct Start {
    pub(crate) config: Config,
    /// Where the configuration came from, to be read again when it changes.
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) node: NodeName,
    /// Folder of manifests that replaces the Kubernetes API.
    pub(crate) manifests: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    /// How many files this process may have open.
    pub(crate) open_files: u64,
    /// When the agent was started.
    pub(crate) at: SystemTime,
}

/// How often the last good catalog is saved at the most: writing wears flash out.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// How long the last good catalog may take to be saved at the end.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// What ended the agent.
enum End {
    Signal(&'static str),
    Task(String),
}

impl End {
    fn of(ended: Result<&'static str, JoinError>) -> Self {
        Self::Task(ended.map_or_else(|panic| panic.to_string(), str::to_owned))
    }
}

/// Runs the agent until a signal, or until a part of it fails for good.
///
/// # Errors
///
/// When it cannot start, with what to do; when a part ended that never should.
pub(crate) async fn run(start: Start) -> anyhow::Result<()> {
    let mut termination = Termination::listen()?;
    let _lock = NodeLock::take(format!(
        "edgemesh-agent {} for node {}, process {}",
        env!("CARGO_PKG_VERSION"),
        start.node,
        std::process::id(),
    ))
    .await?;
    let health = Health::new();
    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let mut admin: JoinSet<&'static str> = JoinSet::new();
    if !start.config.edge_proxy.enable {
        return idle(&start, &health, &mut admin, &mut termination).await;
    }

    let stop = CancellationToken::new();
    let (mut sync, policy) = tokio::select! {
        assembled = assemble(&start, &health, &mut tasks, &mut admin, &stop) => assembled?,
        signal = termination.next() => {
            tracing::info!(signal, "told to end before the start was complete");
            return Ok(());
        }
    };
    let mut reload = start
        .config_file
        .as_deref()
        .map(Reload::watch)
        .transpose()?;
    let end = {
        let looping = sync.run(&stop);
        tokio::pin!(looping);
        let end = loop {
            tokio::select! {
                () = &mut looping => break End::Task("the sync loop".to_owned()),
                signal = termination.next() => break End::Signal(signal),
                Some(ended) = tasks.join_next() => break End::of(ended),
                Some(ended) = admin.join_next() => break End::of(ended),
                reason = next_reload(&mut reload) => apply_reload(&start, reason, &policy),
            }
        };
        health.stopping();
        match &end {
            End::Signal(signal) => {
                tracing::info!(signal, "ending; a second signal ends at once");
            }
            End::Task(name) => tracing::error!("{name} ended unexpectedly; ending in good order"),
        }
        // The loop ends between two steps: a transaction that is under way is finished.
        stop.cancel();
        tokio::select! {
            () = &mut looping => {}
            signal = termination.next() => return ended_at_once(signal),
        }
        end
    };
    let grace = start.config.common.termination_grace_period;
    tokio::select! {
        () = sync.shut_down(grace) => {}
        signal = termination.next() => return ended_at_once(signal),
    }
    // Sources were told to stop with the loop; the last good catalog is being saved.
    let _ = timeout(LAST_SAVE, async {
        while tasks.join_next().await.is_some() {}
    })
    .await;
    tasks.shutdown().await;
    match end {
        End::Signal(_) => Ok(()),
        End::Task(name) => bail!("{name} ended unexpectedly; see the log"),
    }
}

fn ended_at_once(signal: &str) -> anyhow::Result<()> {
    bail!(
        "told by a second {signal} to end at once: connections are reset, and rules may be left; \
         `edgemesh-agent cleanup` removes them"
    )
}

/// `modules.edgeProxy.enable: false`: nothing is touched, and `/readyz` says why.
async fn idle(
    start: &Start,
    health: &Health,
    tasks: &mut JoinSet<&'static str>,
    termination: &mut Termination,
) -> anyhow::Result<()> {
    tracing::warn!(
        "modules.edgeProxy.enable is not true: nothing is intercepted. Set it and start again"
    );
    for condition in [Condition::Catalog, Condition::Rules, Condition::Listener] {
        health.set(
            condition,
            Err("modules.edgeProxy.enable is not true".to_owned()),
        );
    }
    serve_admin(start, health, Metrics::new(vec![]), tasks).await?;
    serve_answers(Observer::of_idle(start.node.clone(), health.clone()), tasks);
    let signal = termination.next().await;
    tracing::info!(signal, "ending");
    Ok(())
}

/// Makes everything in the order in which one thing needs the other.
async fn assemble(
    start: &Start,
    health: &Health,
    tasks: &mut JoinSet<&'static str>,
    admin: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<(Sync, watch::Sender<Policy>)> {
    let config = &start.config;
    let figures = Arc::new(SyncFigures::default());

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
    let intercepts: Vec<IpAddr> = families.iter().map(|family| family.intercept).collect();

    // Before anything is changed on the node: a wrong folder or kubeconfig ends here.
    let (source, watch_counters) = start_source(start, tasks, stop)?;
    // What an agent before this one left leads to listeners that know no portals yet.
    let pulses = closed_gates(&families);
    for family in &mut families {
        // Without routes: listeners need their address first, portals come with the catalog.
        family.host.apply(&BTreeSet::new()).await?;
    }
    let opened = open_listeners(
        start,
        &intercepts,
        health,
        &figures,
        Arc::clone(&watch_counters),
        admin,
    )
    .await;
    let forwarder = match opened {
        Ok(forwarder) => forwarder,
        Err(error) => {
            for family in &mut families {
                if let Err(left) = family.host.remove().await {
                    tracing::error!(error = &left as &dyn std::error::Error, "address is left");
                }
            }
            return Err(error);
        }
    };
    let (policy, policy_seen) = watch::channel(policy(config, start, &intercepts));
    let beating = keep_open(pulses, health.clone(), forwarder.liveness(), stop.clone());
    tasks.spawn(async move {
        beating.await;
        "the keeper of the gates"
    });
    let (forward_counters, endpoint_health) = (forwarder.counters(), forwarder.endpoint_health());
    let sync = Sync::new(Parts {
        inputs: Inputs {
            source: source.clone(),
            policy: policy_seen,
        },
        forwarder,
        families,
        mark: mark(config)?,
        health: health.clone(),
        figures,
        check_period: config.edge_proxy.iptables_check_period,
    });
    let observer = Observer {
        node: start.node.clone(),
        started: start.at,
        health: health.clone(),
        in_force: sync.in_force(),
        source,
        source_counters: watch_counters,
        forward_counters,
        endpoint_health: Some(endpoint_health),
    };
    serve_answers(observer, admin);
    Ok((sync, policy))
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
        node: start.node.clone(),
        filter: config.edge_proxy.filter,
        ipv4: intercepts.iter().any(IpAddr::is_ipv4),
        ipv6: intercepts.iter().any(IpAddr::is_ipv6),
    }
}

fn forwarder_settings(start: &Start, intercepts: &[IpAddr]) -> Settings {
    let config = &start.config.edge_proxy;
    let limits = Limits::within(start.open_files);
    let mut settings = Settings {
        listen_port: config.listen_port,
        mark: Some(config.socket_mark),
        strategy: config.strategy,
        max_connections: config.max_connections.unwrap_or(limits.max_connections),
        max_udp_flows: config.max_udp_flows.unwrap_or(limits.max_udp_flows),
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

/// Everything that others connect to.
async fn open_listeners(
    start: &Start,
    intercepts: &[IpAddr],
    health: &Health,
    figures: &Arc<SyncFigures>,
    watch_counters: Arc<Counters>,
    admin: &mut JoinSet<&'static str>,
) -> anyhow::Result<Forwarder> {
    let mut forwarder =
        Forwarder::bind(&forwarder_settings(start, intercepts)).context("start the forwarder")?;
    let metrics = Metrics::new(vec![
        Box::new(Arc::clone(figures)),
        Box::new(forwarder.counters()),
        Box::new(watch_counters),
    ]);
    serve_admin(start, health, metrics, admin).await?;
    forwarder.start();
    health.set(Condition::Listener, Ok(()));
    Ok(forwarder)
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

/// The gates that let new connections through while an agent lives, closed.
fn closed_gates(families: &[FamilyParts]) -> Vec<Pulse> {
    families
        .iter()
        .filter_map(|family| {
            let mut pulse = Pulse::new(Family::of(family.intercept)).ok()?;
            if let Err(error) = pulse.stop() {
                // It closes by itself, only later.
                tracing::debug!(%error, family = %pulse.family(), "the gate is not closed");
            }
            Some(pulse)
        })
        .collect()
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

/// Starts the source of the catalog, and for the Kubernetes API the saver of the last good one.
fn start_source(
    start: &Start,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<(watch::Receiver<SourceState>, Arc<Counters>)> {
    let counters = Arc::new(Counters::default());
    if let Some(directory) = &start.manifests {
        let (source, states) = ManifestsSource::new(directory.clone(), Arc::clone(&counters))?;
        let stop = stop.clone();
        tasks.spawn(async move {
            source.run(stop).await;
            "the manifests source"
        });
        return Ok((states, counters));
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
    let settings = api_settings(&start.config, std::env::var_os(CLOUD_VARIABLE).is_some());
    let (source, states) = ApiSource::new(
        settings,
        ApiTiming::default(),
        last_good,
        Arc::clone(&counters),
    );
    let saver = LastGoodSaver::new(file, SAVE_EVERY, states.clone(), loaded);
    let (stop_source, stop_saver) = (stop.clone(), stop.clone());
    tasks.spawn(async move {
        source.run(stop_source).await;
        "the Kubernetes API source"
    });
    tasks.spawn(async move {
        saver.run(stop_saver).await;
        "the saver of the last good catalog"
    });
    Ok((states, counters))
}

async fn serve_admin(
    start: &Start,
    health: &Health,
    metrics: Metrics,
    tasks: &mut JoinSet<&'static str>,
) -> anyhow::Result<()> {
    let Some(address) = start.config.common.admin else {
        return Ok(());
    };
    let admin = Admin::bind(address, health.clone(), metrics).await?;
    tracing::info!(address = %admin.address()?, "serving /healthz, /readyz and /metrics");
    tasks.spawn(async move {
        admin.run().await;
        "the admin listener"
    });
    Ok(())
}

fn serve_answers(observer: Observer, tasks: &mut JoinSet<&'static str>) {
    tasks.spawn(async move {
        answers::serve(observer).await;
        "the socket for status and explain"
    });
}

/// Waits for the next reason to read the configuration again; for ever when there is no file.
async fn next_reload(reload: &mut Option<Reload>) -> Reason {
    match reload {
        Some(reload) => reload.next().await,
        None => std::future::pending().await,
    }
}

/// Reads the configuration again and puts in force what can be changed in a running agent.
/// A file with mistakes changes nothing.
fn apply_reload(start: &Start, reason: Reason, policy: &watch::Sender<Policy>) {
    let Some(path) = &start.config_file else {
        return;
    };
    let Parsed { config, warnings } = match config::read(path) {
        Ok(parsed) => parsed,
        Err(error) => {
            tracing::error!(
                ?reason,
                "the configuration was not reloaded; the last good one stays in force: {error:#}"
            );
            return;
        }
    };
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let later = start.config.needs_restart(&config);
    if !later.is_empty() {
        tracing::warn!(
            keys = later.join(", "),
            "these keys changed and take effect at the next start of the agent"
        );
    }
    let changed = policy.send_if_modified(|policy| {
        let before = std::mem::replace(&mut policy.filter, config.edge_proxy.filter);
        before != policy.filter
    });
    tracing::info!(?reason, changed, "the configuration was read again");
}
