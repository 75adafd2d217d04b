//! What only who probes has: the sockets, and what is known of this host and of its changes.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgemesh_catalog::NodeName;
use edgemesh_plan::Exits;
use edgemesh_tunnel::Peers;
use tracing::warn;

use crate::answerer::Answerer;
use crate::answering::Answering;
use crate::asking::Asking;
use crate::counters::Counters;
use crate::interfaces;
use crate::places::{Own, listening_places};
use crate::prober::NetworkChange;
use crate::settings::Probing;

/// Changes of this host's network are looked after at such distances.
const CHANGES_APART: Duration = Duration::from_millis(100);
/// And if they concern all peers, at such ones.
const SWEEPS_APART: Duration = Duration::from_secs(1);
/// More changes than this at once concern everybody.
const MOST_CHANGES: usize = 256;
/// How often is looked at the interfaces, whatever the kernel tells.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often is tried to open a port that another agent has.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// The parts that only who probes has.
#[derive(Debug)]
pub(crate) struct Equipment {
    pub(crate) asking: Asking,
    answering: Answering,
    answerer: Arc<Mutex<Answerer>>,
    pub(crate) port: u16,
    pub(crate) own: Own,
    /// Whether the catalog or the peers changed since they were looked at, and when they may
    /// be again.
    pub(crate) stale: bool,
    pub(crate) follow_at: Instant,
    /// When the interfaces are looked at again.
    pub(crate) look_at: Instant,
    /// What changed and was not looked after yet.
    changes: BTreeSet<NetworkChange>,
    pub(crate) changes_at: Instant,
    sweep_at: Instant,
}

impl Equipment {
    pub(crate) fn open(
        settings: Probing,
        counters: &Arc<Counters>,
        now: Instant,
    ) -> io::Result<Self> {
        let answerer = Answerer::new(settings.key.clone(), now);
        let answerer = Arc::new(Mutex::new(answerer));
        Ok(Self {
            asking: Asking::open(settings.key, settings.mark)?,
            answering: Answering::new(
                Arc::clone(&answerer),
                Arc::clone(counters),
                settings.port,
                settings.mark,
            ),
            answerer,
            port: settings.port,
            own: Own {
                interfaces: BTreeSet::new(),
                never: settings.never,
            },
            stale: true,
            follow_at: now,
            look_at: now,
            changes: BTreeSet::new(),
            changes_at: now,
            sweep_at: now,
        })
    }

    pub(crate) fn changed(&mut self, change: NetworkChange) {
        self.changes.insert(change);
        if self.changes.len() > MOST_CHANGES {
            self.changes = [NetworkChange::Anything].into();
        }
    }

    /// When there is something else to do than probing.
    pub(crate) fn wakes_at(&self) -> Instant {
        let follow = self.stale.then_some(self.follow_at);
        let sweeps = self.changes.contains(&NetworkChange::Anything);
        let others = self.changes.len() > usize::from(sweeps);
        let changes = others.then_some(self.changes_at);
        let sweep = sweeps.then_some(self.sweep_at.max(self.changes_at));
        [Some(self.look_at), follow, changes, sweep]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.look_at)
    }

    /// The changes that are to be looked after now.
    pub(crate) fn take_changes(&mut self, now: Instant) -> BTreeSet<NetworkChange> {
        if self.changes.is_empty() || now < self.changes_at {
            return BTreeSet::new();
        }
        let mut due = std::mem::take(&mut self.changes);
        if due.contains(&NetworkChange::Anything) {
            if now < self.sweep_at {
                due.remove(&NetworkChange::Anything);
                self.changes.insert(NetworkChange::Anything);
            } else {
                // It is about everything else, too.
                due = [NetworkChange::Anything].into();
                self.sweep_at = now + SWEEPS_APART;
            }
        }
        self.changes_at = now + CHANGES_APART;
        due
    }

    pub(crate) fn look_at_interfaces(&mut self, now: Instant) {
        match interfaces::addresses() {
            Ok(addresses) if addresses != self.own.interfaces => {
                self.own.interfaces = addresses;
                self.changed(NetworkChange::Anything);
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "the addresses of this host are not to be had"),
        }
        self.look_at = now + LOOK_EVERY;
        self.changes_at = self.changes_at.max(now + CHANGES_APART);
        // Sockets that were in the way, or have ended.
        self.stale = true;
    }

    /// Answers as the node that the cluster knows now.
    pub(crate) fn answer_as(&mut self, exits: &Exits, peers: Arc<Peers>, node: &NodeName) {
        let catalog = exits.catalog();
        let known_by = catalog.node(node).map(|node| node.addresses.clone());
        {
            let mut answerer = self.answerer.lock().unwrap_or_else(PoisonError::into_inner);
            answerer.believe(peers);
            answerer.known_by(known_by.unwrap_or_default());
        }
        let listening = listening_places(catalog, node, &self.own);
        if !self.answering.listen_at(&listening) {
            self.look_at = self.look_at.min(Instant::now() + TRY_EVERY);
        }
    }
}
