//! The tunnel as a part of the agent: what it is told, what is told of it, and how it ends.

mod exits_feed;
mod figures;
mod own_record;
mod reach_figures;
mod reachability;
mod refused_peers;
mod report;
mod serving;
mod settings;

use anyhow::Context;
use edgemesh_forward::NotReached;
use edgemesh_plan::{Policy, Reachability};
use edgemesh_reach::Reach;
use edgemesh_tunnel::{NodeKey, Running, Tunnel};
use edgemesh_watch::{
    ApiSettings, MeshNodePublisher, OwnMeshNode, PeerEvent, PeerEvents, PublishTiming, SourceState,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::exits_feed::ExitsFeed;
use self::own_record::keep_saying;
use self::reachability::Probed;
use crate::health::Health;
use crate::supervisor::Start;

#[cfg(test)]
pub(crate) use report::RefusedReport;
pub(crate) use report::{PeerReport, ReachReport, TunnelObserver, TunnelReport};
pub(crate) use serving::{Serving, lost};

/// Where the cluster is written to, as far as the tunnel has something to write.
pub(crate) enum WriteTo {
    /// The Kubernetes API.
    Api(ApiSettings),
    /// The folder of manifests.
    Manifests(std::path::PathBuf),
}

/// What the tunnel has to do with.
pub(crate) struct Around<'a> {
    pub(crate) start: &'a Start,
    /// The catalog, by which it knows its peers.
    pub(crate) source: &'a watch::Receiver<SourceState>,
    pub(crate) policy: &'a watch::Receiver<Policy>,
    /// What the MeshNode says of how the agent fares.
    pub(crate) health: &'a Health,
    pub(crate) write_to: WriteTo,
}

/// A tunnel that is open.
pub(crate) struct Opened {
    pub(crate) tunnel: Tunnel,
    pub(crate) running: Running,
    pub(crate) observer: TunnelObserver,
    /// What only the holder of the node may do.
    pub(crate) in_public: InPublic,
    /// Which peers need no tunnel.
    pub(crate) reach: Reach,
    /// Where endpoints are told that are not reached natively.
    pub(crate) not_reached: mpsc::Sender<NotReached>,
}

/// What the one agent that holds a node says in the cluster.
pub(crate) struct InPublic {
    publisher: MeshNodePublisher,
    events: PeerEvents,
}

/// Which nodes are reached how, where there is no tunnel.
pub(crate) fn no_peers() -> watch::Receiver<Reachability> {
    watch::channel(Reachability::default()).1
}

/// This node's key, where the operator wants a tunnel.
///
/// # Errors
///
/// When there is none to be had.
pub(crate) fn key(start: &Start) -> anyhow::Result<Option<NodeKey>> {
    start
        .config
        .edge_tunnel
        .enable
        .then(|| NodeKey::load_or_create(&start.state_dir))
        .transpose()
        .context("get this node's key for the tunnel (modules.edgeTunnel)")
}

/// Opens the tunnel where there is a key, and starts what feeds it.
///
/// # Errors
///
/// When there is no socket to be had.
pub(crate) async fn open(
    key: Option<NodeKey>,
    around: Around<'_>,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Opened>> {
    let Some(key) = key else {
        return Ok(None);
    };
    let Around {
        start,
        source,
        policy,
        health,
        write_to,
    } = around;
    let settings = settings::settings(&start.config, &start.node);
    let (feed, exits) = ExitsFeed::new(source.clone(), policy.clone());
    let (tunnel, running) = Tunnel::start(settings, key.clone(), exits.clone())
        .await
        .context("open the tunnel (modules.edgeTunnel)")?;
    tracing::info!(key = %key.public(), listening = ?tunnel.listening_at(), "the tunnel is open");
    let Probed { reach, not_reached } =
        reachability::open(start, key.clone(), exits, &tunnel, tasks, stop)?;
    let (own, own_seen) = watch::channel(None);
    let (told, to_tell) = mpsc::channel(refused_peers::MOST_WAITING);
    run(
        tasks,
        "the tunnel's feed of the catalog",
        feed.run(stop.clone()),
    );
    run(
        tasks,
        "the keeper of this node's own record",
        keep_saying(
            tunnel.own_record(),
            reach.places(),
            health.clone(),
            own,
            stop.clone(),
        ),
    );
    run(
        tasks,
        "the watch for peers that are not believed",
        refused_peers::tell(tunnel.believed(), told, stop.clone()),
    );
    let (in_public, publication) = in_public(start, write_to, own_seen, to_tell, source);
    let observer = TunnelObserver {
        tunnel: tunnel.clone(),
        key: key.public(),
        publication,
        reach: reach.clone(),
    };
    Ok(Some(Opened {
        tunnel,
        running,
        observer,
        in_public,
        reach,
        not_reached,
    }))
}

fn run(
    tasks: &mut JoinSet<&'static str>,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    tasks.spawn(async move {
        task.await;
        name
    });
}

fn in_public(
    start: &Start,
    write_to: WriteTo,
    own: watch::Receiver<Option<OwnMeshNode>>,
    to_tell: mpsc::Receiver<PeerEvent>,
    source: &watch::Receiver<SourceState>,
) -> (InPublic, watch::Receiver<edgemesh_watch::Publication>) {
    let timing = PublishTiming::default();
    let ((publisher, publication), events) = match write_to {
        WriteTo::Api(settings) => (
            MeshNodePublisher::to_api(settings.clone(), timing, own, source.clone()),
            PeerEvents::to_api(
                settings,
                start.node.clone(),
                PeerEvents::SPREAD,
                to_tell,
                source.clone(),
            ),
        ),
        WriteTo::Manifests(directory) => (
            MeshNodePublisher::to_manifests(directory, timing, own, source.clone()),
            PeerEvents::to_log(to_tell),
        ),
    };
    (InPublic { publisher, events }, publication)
}

impl InPublic {
    /// Speaks until `stop`.
    pub(crate) fn start(self, tasks: &mut JoinSet<&'static str>, stop: &CancellationToken) {
        run(
            tasks,
            "the publisher of this node's MeshNode",
            self.publisher.run(stop.clone()),
        );
        run(
            tasks,
            "the writer of Events about peers",
            self.events.run(stop.clone()),
        );
    }
}
