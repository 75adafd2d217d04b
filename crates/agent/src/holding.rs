//! What only the one agent that holds a node has, beside the rules: the admin address, the
//! socket for questions, and the file of the last good catalog.

use std::net::SocketAddr;
use std::time::Duration;

use edgemesh_tunnel::Running;
use edgemesh_watch::LastGoodSaver;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::answers;
use crate::hand_over::Successor;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::node_lock::NodeLock;
use crate::status::Observer;
use crate::tunnel::{InPublic, lost};

/// How long the last good catalog may take to be saved at the end.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// Between two attempts to get the admin address.
const ADMIN_AGAIN: Duration = Duration::from_millis(200);

/// What is needed to open it.
pub(crate) struct Outside {
    /// Where `/healthz`, `/readyz` and `/metrics` are served; none: nowhere.
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) observer: Observer,
    /// Where there is something to save.
    pub(crate) saver: Option<LastGoodSaver>,
    /// What is said in the cluster, where there is a tunnel.
    pub(crate) in_public: Option<InPublic>,
}

/// What the holder has until it lets go.
pub(crate) struct Holding {
    pub(crate) lock: NodeLock,
    /// Sources, gates, and who saves the catalog; they end by `stop`.
    pub(crate) tasks: JoinSet<&'static str>,
    pub(crate) stop: CancellationToken,
    /// Those who answer; they are ended by force.
    pub(crate) answering: JoinSet<&'static str>,
    /// The tunnel, where there is one, until somebody takes charge of its end.
    pub(crate) tunnel: Option<Running>,
}

/// What its owner has to know.
pub(crate) enum News {
    TaskEnded(Result<&'static str, JoinError>),
    /// A part of the tunnel has ended.
    TunnelLost(String),
    Successor(Successor),
}

impl Holding {
    /// Opens what belongs to the first agent on a node.
    ///
    /// # Errors
    ///
    /// When the admin address is taken.
    pub(crate) async fn open(&mut self, outside: Outside) -> anyhow::Result<()> {
        if let Some(address) = outside.admin {
            let (health, metrics) = (outside.health.clone(), outside.metrics.clone());
            let admin = Admin::bind(address, health, metrics).await?;
            self.answering.spawn(serve(admin));
        }
        self.open_the_rest(outside.observer, outside.saver, outside.in_public);
        Ok(())
    }

    /// Opens what the agent that held the node before has let go of; the admin address as
    /// soon as it is free, for the connections are served without it.
    pub(crate) fn open_after_another(&mut self, outside: Outside) {
        if let Some(address) = outside.admin {
            let (health, metrics) = (outside.health.clone(), outside.metrics.clone());
            self.answering
                .spawn(async move { serve(bind_when_free(address, health, metrics).await).await });
        }
        self.open_the_rest(outside.observer, outside.saver, outside.in_public);
    }

    fn open_the_rest(
        &mut self,
        observer: Observer,
        saver: Option<LastGoodSaver>,
        in_public: Option<InPublic>,
    ) {
        if let Some(in_public) = in_public {
            in_public.start(&mut self.tasks, &self.stop);
        }
        self.answering.spawn(async move {
            answers::serve(observer).await;
            "the socket for status and explain"
        });
        if let Some(saver) = saver {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                saver.run(stop).await;
                "the saver of the last good catalog"
            });
        }
    }

    /// Waits for a task that ends, which none should, or for another agent that is ready to
    /// take over. Safe to cancel.
    pub(crate) async fn news(&mut self) -> News {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => News::TaskEnded(ended),
            Some(ended) = self.answering.join_next() => News::TaskEnded(ended),
            ended = lost(&mut self.tunnel) => News::TunnelLost(ended),
            successor = self.lock.successor() => News::Successor(successor),
        }
    }

    /// Lets go of all of it, the lock last.
    pub(crate) async fn let_go(mut self) {
        self.end_tasks().await;
        self.answering.shutdown().await;
        self.lock.release().await;
    }

    /// Ends the tasks; the last good catalog gets the time to be saved.
    pub(crate) async fn end_tasks(&mut self) {
        self.stop.cancel();
        let _ = timeout(LAST_SAVE, async {
            while self.tasks.join_next().await.is_some() {}
        })
        .await;
        self.tasks.shutdown().await;
    }
}

async fn serve(admin: Admin) -> &'static str {
    if let Ok(address) = admin.address() {
        tracing::info!(%address, "serving /healthz, /readyz and /metrics");
    }
    admin.run().await;
    "the admin listener"
}

async fn bind_when_free(address: SocketAddr, health: Health, metrics: Metrics) -> Admin {
    let mut told = false;
    loop {
        match Admin::bind(address, health.clone(), metrics.clone()).await {
            Ok(admin) => return admin,
            Err(error) if !told => {
                told = true;
                tracing::warn!("trying until it is free: {error:#}");
            }
            Err(_) => {}
        }
        sleep(ADMIN_AGAIN).await;
    }
}
