//! The life of the agent: what starts in which order, what ends it, and how.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::bail;
use edgemesh_catalog::NodeName;
use edgemesh_plan::Policy;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::assembly::{Assembled, Beside, assemble};
use crate::config::{self, Config, Parsed};
use crate::hand_over::Successor;
use crate::health::{Condition, Health};
use crate::holding::{Holding, News, Outside};
use crate::metrics::Metrics;
use crate::node_lock::{NodeLock, Place};
use crate::reload::{Reason, Reload};
use crate::status::Observer;
use crate::succession::{LetIn, drain, let_in, outlive, take_over};
use crate::sync::{Sync, Withdrawn};
use crate::termination::{EndedAtOnce, Termination};
use crate::tunnel::Serving;

/// What an agent is started with.
pub(crate) struct Start {
    pub(crate) config: Config,
    /// Where the configuration came from, to be read again when it changes.
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) node: NodeName,
    /// Folder of manifests that replaces the Kubernetes API.
    pub(crate) manifests: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    /// Whether to take over from an agent that holds the node, instead of not starting.
    pub(crate) take_over: bool,
    /// How many files this process may have open.
    pub(crate) open_files: u64,
    /// When the agent was started.
    pub(crate) at: SystemTime,
}

/// What ended the agent.
enum End {
    Signal(&'static str),
    Task(String),
}

impl End {
    fn of(ended: Result<&'static str, JoinError>) -> Self {
        Self::Task(ended.map_or_else(|panic| panic.to_string(), str::to_owned))
    }

    fn announce(&self) {
        match self {
            End::Signal(signal) => {
                tracing::info!(signal, "ending; a second signal ends at once");
            }
            End::Task(name) => tracing::error!("{name} ended unexpectedly; ending in good order"),
        }
    }
}

/// What the loop is left for.
enum Event {
    End(End),
    /// The loop itself has ended.
    NoLoop,
    Successor(Successor),
}

impl From<News> for Event {
    fn from(news: News) -> Self {
        match news {
            News::TaskEnded(ended) => Self::End(End::of(ended)),
            News::TunnelLost(part) => Self::End(End::Task(part)),
            News::Successor(successor) => Self::Successor(successor),
        }
    }
}

/// Runs the agent until a signal, or until a part of it fails for good.
///
/// # Errors
///
/// When it cannot start, with what to do; when a part ended that never should.
pub(crate) async fn run(start: Start) -> anyhow::Result<()> {
    let mut termination = Termination::listen()?;
    let health = Health::new();
    let who = format!(
        "edgemesh-agent {} for node {}, process {}",
        env!("CARGO_PKG_VERSION"),
        start.node,
        std::process::id(),
    );
    // An agent that intercepts nothing has nothing to take over with.
    let enabled = start.config.edge_proxy.enable;
    let place = if start.take_over && enabled {
        NodeLock::take_or_wait(&who, &health).await?
    } else {
        Place::First(NodeLock::take(who.clone(), health.clone()).await?)
    };
    let (beside, lock) = match place {
        Place::First(lock) if !enabled => return idle(&start, health, lock, termination).await,
        Place::First(lock) => (Beside::Nobody, Ok(lock)),
        Place::Behind(predecessor) => (Beside::Predecessor, Err(predecessor)),
    };

    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let Assembled {
        mut sync,
        policy,
        mut source,
        tunnel,
        outside,
    } = tokio::select! {
        assembled = assemble(&start, beside, &health, &mut tasks, &stop) => assembled?,
        signal = termination.next() => {
            tracing::info!(signal, "told to end before the start was complete");
            return Ok(());
        }
    };
    let hold = |lock| Holding {
        lock,
        tasks,
        stop,
        answering: JoinSet::new(),
        tunnel,
    };
    let holding = match lock {
        Ok(lock) => {
            let mut holding = hold(lock);
            if let Err(error) = holding.open(outside).await {
                sync.withdraw().await.host.remove().await;
                return Err(error);
            }
            holding
        }
        Err(before) => {
            let (sync, source) = (&mut sync, &mut source);
            let taken = take_over(before, &who, &health, source, sync, &mut termination);
            let Some(lock) = taken.await? else {
                return Ok(());
            };
            let mut holding = hold(lock);
            holding.open_after_another(outside);
            holding
        }
    };
    hold_node(&start, &health, holding, sync, &policy, &mut termination).await
}

/// Follows the catalog until told to end, or until another agent takes over.
async fn hold_node(
    start: &Start,
    health: &Health,
    mut holding: Holding,
    mut sync: Sync,
    policy: &watch::Sender<Policy>,
    termination: &mut Termination,
) -> anyhow::Result<()> {
    let grace = start.config.common.termination_grace_period;
    let mut reload = start
        .config_file
        .as_deref()
        .map(Reload::watch)
        .transpose()?;
    let end = loop {
        // The loop ends between two steps: a transaction that is under way is finished.
        let turn = holding.stop.child_token();
        let event = {
            let looping = sync.run(&turn);
            tokio::pin!(looping);
            let event = loop {
                tokio::select! {
                    () = &mut looping => break Event::NoLoop,
                    signal = termination.next() => break Event::End(End::Signal(signal)),
                    news = holding.news() => break Event::from(news),
                    reason = next_reload(&mut reload) => apply_reload(start, reason, policy),
                }
            };
            turn.cancel();
            match &event {
                Event::NoLoop => {}
                Event::Successor(_) => looping.await,
                Event::End(end) => {
                    health.stopping();
                    end.announce();
                    tokio::select! {
                        () = &mut looping => {}
                        signal = termination.next() => return Err(EndedAtOnce(signal).into()),
                    }
                }
            }
            event
        };
        let mut successor = match event {
            Event::End(end) => break end,
            Event::NoLoop => {
                health.stopping();
                let end = End::Task("the sync loop".to_owned());
                end.announce();
                break end;
            }
            Event::Successor(successor) => successor,
        };
        let (outcome, told) = let_in(&mut successor, termination).await?;
        match outcome {
            LetIn::Done => {
                let serving = Serving::new(sync.let_go().await, holding.tunnel.take());
                holding.let_go().await;
                successor.yours().await;
                return outlive(serving, told, grace, termination).await;
            }
            LetIn::Failed => sync.resume(),
        }
        if let Some(signal) = told {
            health.stopping();
            break End::Signal(signal);
        }
    };
    holding.stop.cancel();
    let Withdrawn { forwarder, host } = tokio::select! {
        withdrawn = sync.withdraw() => withdrawn,
        signal = termination.next() => return Err(EndedAtOnce(signal).into()),
    };
    let serving = Serving::new(forwarder, holding.tunnel.take());
    if let Some(mut holding) = drain(serving, holding, grace, termination).await? {
        host.remove().await;
        holding.end_tasks().await;
    }
    match end {
        End::Signal(_) => Ok(()),
        End::Task(name) => bail!("{name} ended unexpectedly; see the log"),
    }
}

/// `modules.edgeProxy.enable: false`: nothing is touched, and `/readyz` says why.
async fn idle(
    start: &Start,
    health: Health,
    lock: NodeLock,
    mut termination: Termination,
) -> anyhow::Result<()> {
    tracing::warn!(
        "modules.edgeProxy.enable is not true: nothing is intercepted. Set it and start again"
    );
    for condition in Condition::ALL {
        health.set(
            condition,
            Err("modules.edgeProxy.enable is not true".to_owned()),
        );
    }
    let mut holding = Holding {
        lock,
        tasks: JoinSet::new(),
        stop: CancellationToken::new(),
        answering: JoinSet::new(),
        tunnel: None,
    };
    let outside = Outside {
        admin: start.config.common.admin,
        observer: Observer::of_idle(start.node.clone(), health.clone()),
        health,
        metrics: Metrics::new(vec![]),
        saver: None,
        in_public: None,
    };
    holding.open(outside).await?;
    loop {
        let mut successor = tokio::select! {
            signal = termination.next() => {
                tracing::info!(signal, "ending");
                return Ok(());
            }
            successor = holding.lock.successor() => successor,
        };
        let (outcome, told) = let_in(&mut successor, &mut termination).await?;
        match outcome {
            LetIn::Done => {
                holding.let_go().await;
                successor.yours().await;
                if told.is_none() {
                    termination.next().await;
                }
                return Ok(());
            }
            LetIn::Failed if told.is_some() => return Ok(()),
            LetIn::Failed => {}
        }
    }
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
        let decided = (config.edge_proxy.filter, config.edge_proxy.datapath);
        let before = (policy.filter, policy.datapath);
        (policy.filter, policy.datapath) = decided;
        before != decided
    });
    tracing::info!(?reason, changed, "the configuration was read again");
}
