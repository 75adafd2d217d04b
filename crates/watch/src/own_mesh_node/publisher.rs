//! The task that keeps the own MeshNode as it should be.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use edgemesh_catalog::MeshNode;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::object::{ApiObject, WriteTrouble};
use super::upkeep::{Sight, Upkeep, Verdict};
use super::{OwnMeshNode, Publication, PublishTiming, document, file};
use crate::api::{ApiSettings, chance};
use crate::objects::Problem;
use crate::state::{Origin, SourceState};

/// Keeps what the agent says of itself where its peers look: as an object of the Kubernetes
/// API, or as a file of the manifests directory.
///
/// It is written when the agent starts and whenever it says something new, in the API also
/// renewed from time to time, and put back when somebody else changed or removed it. At
/// shutdown it stays: whether the node is still there, its peers find out by themselves.
/// Nothing here is fatal: whatever fails is said once and tried again.
#[derive(Debug)]
pub struct MeshNodePublisher {
    place: Place,
    upkeep: Upkeep,
    own: watch::Receiver<Option<OwnMeshNode>>,
    /// Whether somebody still says something on `own`.
    own_ended: bool,
    states: watch::Receiver<SourceState>,
    states_ended: bool,
    /// What shall be published, as peers will read it.
    wanted: Option<OwnMeshNode>,
    /// What was published before, newest first.
    earlier: VecDeque<MeshNode>,
    /// Whether somebody else changed it, and who is still to be said.
    rival_unnamed: bool,
    /// What peers do not take of what was said last.
    problems: Vec<Problem>,
    publication: watch::Sender<Publication>,
}

/// How many of what was published before are remembered: the catalog may show them still.
const EARLIER: usize = 4;

/// Where the MeshNode is kept.
#[derive(Debug)]
enum Place {
    Api(Box<ApiObject>),
    Manifests(PathBuf),
}

impl MeshNodePublisher {
    /// Publishes `own` to the API server that `settings` lead to, once it is there. `states`
    /// is what the source of the catalog reads from the same server: by it, changes that
    /// others make are found. Returns also how it goes.
    #[must_use]
    pub fn to_api(
        settings: ApiSettings,
        timing: PublishTiming,
        own: watch::Receiver<Option<OwnMeshNode>>,
        states: watch::Receiver<SourceState>,
    ) -> (Self, watch::Receiver<Publication>) {
        let place = Place::Api(Box::new(ApiObject::new(settings)));
        Self::new(place, Upkeep::new(timing, true), own, states)
    }

    /// Publishes `own` as the file `meshnode-<node>.yaml` of the manifests directory that
    /// `states` are read from.
    #[must_use]
    pub fn to_manifests(
        directory: PathBuf,
        timing: PublishTiming,
        own: watch::Receiver<Option<OwnMeshNode>>,
        states: watch::Receiver<SourceState>,
    ) -> (Self, watch::Receiver<Publication>) {
        let place = Place::Manifests(directory);
        Self::new(place, Upkeep::new(timing, false), own, states)
    }

    fn new(
        place: Place,
        upkeep: Upkeep,
        own: watch::Receiver<Option<OwnMeshNode>>,
        states: watch::Receiver<SourceState>,
    ) -> (Self, watch::Receiver<Publication>) {
        let (publication, seen) = watch::channel(Publication::default());
        let publisher = Self {
            place,
            upkeep,
            own,
            own_ended: false,
            states,
            states_ended: false,
            wanted: None,
            earlier: VecDeque::new(),
            rival_unnamed: false,
            problems: Vec::new(),
            publication,
        };
        (publisher, seen)
    }

    /// Works until `shutdown`. Dropping the future stops it just as well.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.take_own();
        while shutdown.run_until_cancelled(self.step()).await.is_some() {}
    }

    async fn step(&mut self) {
        self.look();
        let due = self.upkeep.due(Instant::now());
        let look_at = self.upkeep.look_at();
        tokio::select! {
            biased;
            changed = self.own.changed(), if !self.own_ended => match changed {
                Ok(()) => self.take_own(),
                Err(_) => self.own_ended = true,
            },
            () = until(due) => self.write().await,
            changed = self.states.changed(), if !self.states_ended => {
                self.states_ended = changed.is_err();
            }
            () = until(look_at) => {}
        }
    }

    fn take_own(&mut self) {
        let said = self.own.borrow_and_update().clone();
        let wanted = said.and_then(|OwnMeshNode { node, conditions }| {
            let (node, problems) = document::as_read_by_peers(&node);
            if problems != self.problems {
                for problem in &problems {
                    warn!("the own MeshNode has what peers do not take; left out: {problem}");
                }
                self.problems = problems;
            }
            if node.is_none() {
                let problem = self.problems.first();
                let said = problem.map(|problem| format!("peers could not read it: {problem}"));
                self.publication
                    .send_modify(|seen| seen.trouble = said.map(Arc::from));
            }
            node.map(|node| OwnMeshNode { node, conditions })
        });
        if wanted.is_none() || wanted == self.wanted {
            return;
        }
        if let Some(before) = std::mem::replace(&mut self.wanted, wanted) {
            self.earlier.push_front(before.node);
            self.earlier.truncate(EARLIER);
        }
        self.upkeep.changed();
    }

    /// Compares what the catalog shows with what was written.
    fn look(&mut self) {
        let Some(wanted) = &self.wanted else {
            return;
        };
        let sight = {
            let state = self.states.borrow_and_update();
            let is_of_this_place = match &self.place {
                Place::Api(_) => state.origin == Origin::Api,
                Place::Manifests(_) => state.origin == Origin::Manifests,
            };
            if !is_of_this_place || !state.complete {
                return;
            }
            match state.catalog.mesh_node(&wanted.node.name) {
                None => Sight::Absent,
                Some(shown) if is_same(shown, &wanted.node) => Sight::Ours,
                Some(shown) if self.earlier.iter().any(|e| is_same(shown, e)) => Sight::Earlier,
                Some(_) => Sight::Other,
            }
        };
        match self.upkeep.sees(sight, Instant::now(), chance()) {
            Verdict::Fine => {}
            Verdict::Overwritten {
                pause,
                worth_saying,
            } => {
                let name = wanted.node.name.clone();
                self.publication.send_modify(|seen| seen.overwritten += 1);
                if let Place::Api(object) = &mut self.place {
                    object.forget_status();
                }
                self.rival_unnamed |= worth_saying;
                debug!(node = %name, ?pause, "the MeshNode was changed by others");
            }
        }
    }

    async fn write(&mut self) {
        let Some(OwnMeshNode { node, conditions }) = self.wanted.clone() else {
            return;
        };
        if std::mem::take(&mut self.rival_unnamed) {
            self.name_rival(&node).await;
        }
        let now = SystemTime::now();
        let result = match &mut self.place {
            Place::Api(object) => object.apply(&node, &conditions, now).await,
            Place::Manifests(directory) => {
                file::put(directory.clone(), node)
                    .await
                    .map_err(|said| WriteTrouble {
                        said,
                        retry_after: None,
                        is_status_only: false,
                    })
            }
        };
        match result {
            Ok(()) => self.note_written(now),
            Err(trouble) => self.note_failed(&trouble, now),
        }
    }

    /// Says who else writes our MeshNode, as far as that can be told.
    async fn name_rival(&mut self, node: &MeshNode) {
        let written_by = match &mut self.place {
            Place::Api(object) => object.written_by(node).await,
            Place::Manifests(_) => None,
        };
        warn!(
            node = %node.name,
            written_by = ?written_by.unwrap_or_default(),
            "somebody else changed or removed this node's MeshNode, or it is in another \
             manifest too; it is put back, each time after a longer pause. Is there a second \
             agent that was given this node's name?"
        );
    }

    fn note_written(&mut self, now: SystemTime) {
        let nodes = self.states.borrow().catalog.mesh_nodes().count();
        self.upkeep.wrote(Instant::now(), nodes, chance());
        let before = self.publication.borrow().clone();
        if before.written_at.is_none() || before.trouble.is_some() {
            info!("this node's MeshNode is published");
        }
        self.publication.send_modify(|seen| {
            seen.written_at = Some(now);
            seen.trouble = None;
        });
    }

    fn note_failed(&mut self, trouble: &WriteTrouble, now: SystemTime) {
        if trouble.is_status_only {
            self.publication
                .send_modify(|seen| seen.written_at = Some(now));
        }
        let pause = self
            .upkeep
            .failed(Instant::now(), trouble.retry_after, chance());
        let said: Arc<str> = trouble.said.as_str().into();
        let is_known = self.publication.borrow().trouble.as_ref() == Some(&said);
        if is_known {
            debug!(trouble = %said, ?pause, "this node's MeshNode cannot be published");
            return;
        }
        if trouble.is_status_only {
            warn!(trouble = %said, "the status of this node's MeshNode cannot be published");
        } else {
            warn!(
                trouble = %said,
                "this node's MeshNode cannot be published, so that its peers do not know it as \
                 it is now; trying again"
            );
        }
        self.publication
            .send_modify(|seen| seen.trouble = Some(said));
    }
}

/// Whether it is the same but for what the server adds.
fn is_same(shown: &MeshNode, wanted: &MeshNode) -> bool {
    let MeshNode {
        name,
        uid: _,
        public_key,
        name_signature,
        addresses,
        relay_url,
        relay_server,
        pod_cidrs,
        probe,
        version,
        boot_id,
        previous_key,
    } = shown;
    *name == wanted.name
        && *public_key == wanted.public_key
        && *name_signature == wanted.name_signature
        && *addresses == wanted.addresses
        && *relay_url == wanted.relay_url
        && *relay_server == wanted.relay_server
        && *pod_cidrs == wanted.pod_cidrs
        && *probe == wanted.probe
        && *version == wanted.version
        && *boot_id == wanted.boot_id
        && *previous_key == wanted.previous_key
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
