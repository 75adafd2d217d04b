//! Taking a node over from the agent that holds it, and handing it over to the next: what
//! both sides do around the words of `hand_over.rs`.

use std::time::Duration;

use anyhow::{Context, bail};
use edgemesh_forward::Drained;
use edgemesh_watch::SourceState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::hand_over::{HandOverError, Predecessor, Successor};
use crate::health::Health;
use crate::holding::Holding;
use crate::node_lock::{NodeLock, Place};
use crate::sync::Sync;
use crate::termination::{EndedAtOnce, Termination};
use crate::tunnel::Serving;

/// How often one that waits shows that it goes round.
const SIGN_EVERY: Duration = Duration::from_secs(1);

/// How often one that has handed over looks whether anybody holds the node.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// So many looks in a row nobody may: then the successor, and whoever would be started in
/// its place, does not come back.
const PATIENCE: u32 = 12;

/// Takes over from `place`'s predecessor as soon as there is a catalog to put in force; none
/// when told to end before.
///
/// # Errors
///
/// When that one does not hand over, or the rules can't be brought in: then it goes on.
pub(crate) async fn take_over(
    mut predecessor: Predecessor,
    who: &str,
    health: &Health,
    source: &mut watch::Receiver<SourceState>,
    sync: &mut Sync,
    termination: &mut Termination,
) -> anyhow::Result<Option<NodeLock>> {
    loop {
        let ready = tokio::select! {
            ready = until_ready(&mut predecessor, health, source) => ready?,
            signal = termination.next() => {
                tracing::info!(signal, "told to end before it was time to take over");
                return Ok(None);
            }
        };
        if ready {
            match sync_in(predecessor, sync).await? {
                Ok(()) => {}
                // The rules of this one are in force all the same.
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the agent that held this node has ended instead of handing it over"
                ),
            }
            let lock = NodeLock::take(who.to_owned(), health.clone()).await?;
            tracing::info!("this agent holds the node now");
            return Ok(Some(lock));
        }
        tracing::info!("the agent that held this node is gone");
        match NodeLock::take_or_wait(who, health).await? {
            Place::First(lock) => return Ok(Some(lock)),
            Place::Behind(next) => predecessor = next,
        }
    }
}

/// Whether it is our turn because both sides are ready; otherwise there is nobody to take
/// over from any more.
async fn until_ready(
    predecessor: &mut Predecessor,
    health: &Health,
    source: &mut watch::Receiver<SourceState>,
) -> anyhow::Result<bool> {
    let mut sign = interval(SIGN_EVERY);
    sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            complete = source.wait_for(|state| state.complete) => {
                complete.context("the source of the catalog has ended; see the log")?;
                break;
            }
            () = predecessor.gone() => return Ok(false),
            _ = sign.tick() => health.tick(),
        }
    }
    match predecessor.ready().await {
        Ok(()) => Ok(true),
        Err(error) if error.is_end() => Ok(false),
        Err(error) => Err(error).context("take over from the agent that holds this node"),
    }
}

/// Brings the rules in, and has everything else handed over.
async fn sync_in(
    predecessor: Predecessor,
    sync: &mut Sync,
) -> anyhow::Result<Result<(), HandOverError>> {
    sync.take_over()
        .await
        .context("bring in the rules; the agent that holds this node goes on with its own")?;
    Ok(predecessor.done().await)
}

/// What became of letting a successor in.
pub(crate) enum LetIn {
    /// Its rules are in force.
    Done,
    /// It did not get through; the node is still ours.
    Failed,
}

/// Lets the successor bring its rules in, while nothing of ours changes any; and the signal
/// that came meanwhile, for it has to wait until it is clear whose the rules are.
///
/// # Errors
///
/// [`EndedAtOnce`] by a second signal.
pub(crate) async fn let_in(
    successor: &mut Successor,
    termination: &mut Termination,
) -> Result<(LetIn, Option<&'static str>), EndedAtOnce> {
    tracing::info!(successor = successor.who(), "handing over");
    let mut told = None;
    let coming = successor.go_on();
    tokio::pin!(coming);
    let outcome = loop {
        tokio::select! {
            outcome = &mut coming => break outcome,
            signal = termination.next() => {
                if told.replace(signal).is_some() {
                    return Err(EndedAtOnce(signal));
                }
            }
        }
    };
    let let_in = match outcome {
        Ok(()) => LetIn::Done,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the agent that was to take over did not get through; going on"
            );
            LetIn::Failed
        }
    };
    Ok((let_in, told))
}

/// Serves those who are connected already, and nobody else, until told to end: it is the
/// successor's rules that lead to endpoints now.
///
/// # Errors
///
/// When nobody holds the node any more, so that this agent is started again; and
/// [`EndedAtOnce`] by a second signal.
pub(crate) async fn outlive(
    mut serving: Serving,
    told: Option<&'static str>,
    grace: Duration,
    termination: &mut Termination,
) -> anyhow::Result<()> {
    tracing::info!("handed over: serving the connections that are left until told to end");
    let orphaned = match told {
        Some(_) => false,
        None => tokio::select! {
            signal = termination.next() => {
                tracing::info!(signal, "ending; a second signal ends at once");
                false
            }
            () = orphaned(&mut serving) => true,
        },
    };
    tokio::select! {
        drained = serving.drain(grace) => report(drained),
        signal = termination.next() => return Err(EndedAtOnce(signal).into()),
    }
    if orphaned {
        bail!(
            "the agent that took this node over is gone and none came after it; ended to be \
             started again"
        );
    }
    Ok(())
}

/// Waits until nobody has held the node for a minute.
async fn orphaned(serving: &mut Serving) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut free = 0;
    while free < PATIENCE {
        tokio::select! {
            _ = look.tick() => free = if NodeLock::is_free() { free + 1 } else { 0 },
            part = serving.part_lost() => tracing::warn!("{part}"),
        }
    }
}

/// Lets connections end for `grace`, the rules being out; and lets a successor in that is
/// ready meanwhile, instead of keeping it waiting. Whether one was.
///
/// # Errors
///
/// [`EndedAtOnce`] by a second signal.
pub(crate) async fn drain(
    serving: Serving,
    mut holding: Holding,
    grace: Duration,
    termination: &mut Termination,
) -> Result<Option<Holding>, EndedAtOnce> {
    let draining = serving.drain(grace);
    tokio::pin!(draining);
    loop {
        let mut successor = tokio::select! {
            drained = &mut draining => {
                report(drained);
                return Ok(Some(holding));
            }
            successor = holding.lock.successor() => successor,
            signal = termination.next() => return Err(EndedAtOnce(signal)),
        };
        let (outcome, again) = let_in(&mut successor, termination).await?;
        if let Some(signal) = again {
            return Err(EndedAtOnce(signal));
        }
        match outcome {
            LetIn::Failed => {}
            LetIn::Done => {
                holding.let_go().await;
                successor.yours().await;
                break;
            }
        }
    }
    tokio::select! {
        drained = &mut draining => report(drained),
        signal = termination.next() => return Err(EndedAtOnce(signal)),
    }
    Ok(None)
}

fn report(drained: Drained) {
    if drained.cut > 0 {
        tracing::warn!(
            connections = drained.cut,
            "reset connections that did not end within the grace period"
        );
    }
}
