//! Peers that were refused, told as Kubernetes Events about their MeshNodes.

mod event_object;
mod event_rate;

use std::time::{Duration, SystemTime};

use edgemesh_catalog::NodeName;
use http::Method;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::event_object::EventObject;
use self::event_rate::{EventRate, Turn};
use crate::api::{ApiSettings, JSON, MERGE, Nature, Trouble, Writer, chance};
use crate::state::SourceState;

/// Something about a peer that its operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvent {
    /// The peer's MeshNode.
    pub node: NodeName,
    /// What kind of thing, as one word in CamelCase: `DuplicateKey`.
    pub reason: &'static str,
    /// What happened and what to do. The same from every node that sees it: all of them
    /// write one Event, and the first one's message stands.
    pub message: String,
}

/// Logs what it is told of peers and, with the API as source, makes Events of it, which
/// `kubectl describe meshnode` shows.
///
/// The nodes of a cluster make one Event of the same thing, not one each. A node says the
/// same again after 10 minutes at the earliest, and no more than 10 things at once and then
/// one every 6 s; the rest is only counted by whoever refused. An Event that cannot be
/// written is not kept: Events are hints, the log has it.
#[derive(Debug)]
pub struct PeerEvents {
    told: mpsc::Receiver<PeerEvent>,
    rate: EventRate,
    to_api: Option<ToApi>,
}

#[derive(Debug)]
struct ToApi {
    writer: Writer,
    own_node: NodeName,
    states: watch::Receiver<SourceState>,
    spread: Duration,
    /// Whether it was said that Events cannot be written.
    said_trouble: bool,
}

impl PeerEvents {
    /// How long the nodes of a cluster take in all to say that they see the same thing, by
    /// default.
    pub const SPREAD: Duration = Duration::from_secs(5);

    /// Makes Events, as the agent of `own_node`, of what comes through `told`. `states` is
    /// what the source of the catalog publishes. Each Event waits up to `spread`, so that
    /// the first node to write it spares the others the work.
    ///
    /// Whoever tells should not wait for room in the channel: `try_send`.
    #[must_use]
    pub fn to_api(
        settings: ApiSettings,
        own_node: NodeName,
        spread: Duration,
        told: mpsc::Receiver<PeerEvent>,
        states: watch::Receiver<SourceState>,
    ) -> Self {
        Self {
            told,
            rate: EventRate::default(),
            to_api: Some(ToApi {
                writer: Writer::new(settings),
                own_node,
                states,
                spread,
                said_trouble: false,
            }),
        }
    }

    /// Only logs what comes through `told`: for manifests as source.
    #[must_use]
    pub fn to_log(told: mpsc::Receiver<PeerEvent>) -> Self {
        Self {
            told,
            rate: EventRate::default(),
            to_api: None,
        }
    }

    /// Works until `shutdown`, or until nobody can tell it anything any more. Dropping the
    /// future stops it just as well.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.work()).await;
    }

    async fn work(&mut self) {
        while let Some(event) = self.told.recv().await {
            let turn = self.rate.turn(&event, Instant::now());
            let PeerEvent {
                node,
                reason,
                message,
            } = &event;
            if turn == Turn::No {
                debug!(peer = %node, reason, "{message}");
                continue;
            }
            warn!(peer = %node, reason, "{message}");
            if let Some(to_api) = &mut self.to_api {
                to_api.write(&event, turn).await;
            }
        }
    }
}

impl ToApi {
    async fn write(&mut self, event: &PeerEvent, turn: Turn) {
        sleep(self.spread.mul_f64(chance())).await;
        let uid = {
            let state = self.states.borrow();
            let peer = state.catalog.mesh_node(&event.node);
            peer.and_then(|peer| peer.uid.clone())
        };
        let object = EventObject::new(event, uid.as_deref(), &self.own_node, SystemTime::now());
        let body = object.whole();
        let made = self
            .writer
            .send(Method::POST, EventObject::PATH, JSON, &body)
            .await;
        let result = match made {
            Err(trouble) if trouble.is_conflict() && turn == Turn::Again => {
                let path = format!("{}/{}", EventObject::PATH, object.name());
                let again = object.again();
                self.writer.send(Method::PATCH, &path, MERGE, &again).await
            }
            // Another node has said it.
            Err(trouble) if trouble.is_conflict() => Ok(String::new()),
            made => made,
        };
        match result {
            Ok(_) => self.said_trouble = false,
            Err(trouble) => self.note_failed(&trouble),
        }
    }

    fn note_failed(&mut self, trouble: &Trouble) {
        let said = trouble.words();
        if std::mem::replace(&mut self.said_trouble, true) {
            debug!(trouble = said, "cannot write an Event");
        } else if trouble.nature == Nature::Forbidden {
            warn!(
                trouble = said,
                "cannot write Events about peers, the log has them; grant the agent's \
                 ServiceAccount create and patch on events in the namespace default (Role)"
            );
        } else {
            warn!(
                trouble = said,
                "cannot write an Event about a peer; the log has it"
            );
        }
    }
}
