//! Finding out which peers need no tunnel: what it is told, and what it is told of.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edgemesh_forward::NotReached;
use edgemesh_plan::Exits;
use edgemesh_reach::{Inputs, NetworkChange, News, Probing, Reach, Settings, Timing};
use edgemesh_rules::{NetworkEvent, NetworkEvents};
use edgemesh_tunnel::{NodeKey, Tunnel};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::run;
use crate::config::Config;
use crate::supervisor::Start;

/// News that wait to be taken up; more of them say nothing new.
const MOST_WAITING: usize = 256;
/// Pause before the kernel is listened to anew.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// It, and where endpoints that are not reached are told to.
pub(super) struct Probed {
    pub(super) reach: Reach,
    pub(super) not_reached: mpsc::Sender<NotReached>,
}

/// Starts it, where there is a tunnel.
///
/// # Errors
///
/// When there are no sockets to be had.
pub(super) fn open(
    start: &Start,
    key: NodeKey,
    exits: watch::Receiver<Arc<Exits>>,
    tunnel: &Tunnel,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<Probed> {
    let (news, seen) = mpsc::channel(MOST_WAITING);
    let (not_reached, to_tell) = mpsc::channel(MOST_WAITING);
    let inputs = Inputs {
        exits,
        peers: tunnel.believed(),
        tunnel: tunnel.reachability(),
        news: seen,
    };
    let settings = settings(&start.config, start, key);
    let probes = settings.probing.is_some();
    let (reach, running) = Reach::new(settings, inputs)
        .context("open sockets for probes (modules.edgeProxy.reachability)")?;
    run(
        tasks,
        "the probes of other nodes",
        running.run(stop.clone()),
    );
    if probes {
        run(
            tasks,
            "the listener for changes of the network",
            tell_of_network(news.clone(), stop.clone()),
        );
        run(
            tasks,
            "the teller of endpoints that are not reached",
            tell_of_endpoints(to_tell, news, stop.clone()),
        );
    }
    Ok(Probed { reach, not_reached })
}

fn settings(config: &Config, start: &Start, key: NodeKey) -> Settings {
    let (proxy, reachability) = (&config.edge_proxy, &config.edge_proxy.reachability);
    Settings {
        node: start.node.clone(),
        probing: reachability.probe.then(|| Probing {
            key,
            port: reachability.probe_port,
            mark: Some(proxy.socket_mark),
            never: vec![config.common.intercept_v4.into(), proxy.intercept_v6.into()],
            timing: Timing::default(),
            seed: RandomState::new().hash_one(std::process::id()),
        }),
        overrides: reachability.overrides.clone(),
    }
}

/// Tells what the kernel tells, until `stop`.
async fn tell_of_network(news: mpsc::Sender<News>, stop: CancellationToken) {
    let mut told = false;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = listen(&news) => ended,
        };
        match ended {
            Ok(()) => return stop.cancelled().await,
            Err(error) if !told => {
                told = true;
                tracing::warn!(
                    %error,
                    "the kernel does not tell of changed routes; peers that are lost are noticed \
                     by their silence, some seconds later. Trying again"
                );
            }
            Err(error) => tracing::debug!(%error, "the kernel does not tell of changed routes"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LISTEN_AGAIN) => {}
        }
    }
}

/// Listens until nobody wants to know any more.
async fn listen(news: &mpsc::Sender<News>) -> std::io::Result<()> {
    let mut events = NetworkEvents::listen()?;
    // Something may have happened before.
    let mut told = BTreeSet::from([NetworkEvent::Anything]);
    loop {
        for event in told {
            if news.send(in_its_words(event)).await.is_err() {
                return Ok(());
            }
        }
        told = events.next().await?;
    }
}

fn in_its_words(event: NetworkEvent) -> News {
    match event {
        NetworkEvent::Route(network) => News::Network(NetworkChange::Route(network)),
        NetworkEvent::Anything => News::Network(NetworkChange::Anything),
        NetworkEvent::Address => News::Addresses,
    }
}

/// Tells of endpoints that are not reached, until `stop`.
async fn tell_of_endpoints(
    mut to_tell: mpsc::Receiver<NotReached>,
    news: mpsc::Sender<News>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(NotReached { node, endpoint }) = to_tell.recv() => {
                // What does not fit comes again.
                let _ = news.try_send(News::DialFailed { node, endpoint });
            }
        }
    }
}
