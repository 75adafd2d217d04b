//! The task that probes, and what others see of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use edgemesh_catalog::{NodeName, ProbePlaces};
use edgemesh_plan::Reachability;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::asking::{Came, is_proof};
use crate::counters::Counters;
use crate::equipment::Equipment;
use crate::overrides::{OverrideRule, resolve};
use crate::places::{own_places, places};
use crate::prober::{NetworkChange, Prober, Verified};
use crate::report::{PeerReach, report};
use crate::settings::{Inputs, News, Settings};
use crate::timing::Timing;

/// What became direct is told together at such distances; what is so no more, at once.
const TOLD_TOGETHER: Duration = Duration::from_millis(100);
/// Of the time, at most one in so many parts is spent on finding out who is to be probed.
const FOLLOWING_SHARE: u32 = 50;
/// Datagrams that are read before time passes for those that are awaited.
const MOST_AT_ONCE: usize = 1024;
/// As many peers are named in one line of the log.
const MOST_NAMED: usize = 5;

/// What others see of it. Copies see the same.
#[derive(Clone, Debug)]
pub struct Reach(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reachability: watch::Sender<Reachability>,
    places: watch::Sender<Option<ProbePlaces>>,
    counters: Arc<Counters>,
    prober: Mutex<Prober>,
}

/// The task.
#[derive(Debug)]
pub struct Running {
    node: NodeName,
    overrides: Vec<OverrideRule>,
    inputs: Inputs,
    shared: Arc<Shared>,
    probing: Option<Equipment>,
    /// What was told last, and its version.
    told: Verified,
    told_version: u64,
    told_at: Instant,
}

impl Reach {
    /// Makes it ready. Needs a tokio runtime around it. Nothing is probed or answered before
    /// [`Running::run`].
    ///
    /// # Errors
    ///
    /// When there are no sockets to be had.
    pub fn new(settings: Settings, inputs: Inputs) -> io::Result<(Self, Running)> {
        let now = Instant::now();
        let counters = Arc::new(Counters::default());
        let (timing, seed) = settings
            .probing
            .as_ref()
            .map_or((Timing::default(), 0), |of| (of.timing, of.seed));
        let probing = settings
            .probing
            .map(|of| Equipment::open(of, &counters, now))
            .transpose()?;
        let shared = Arc::new(Shared {
            reachability: watch::Sender::new(inputs.tunnel.borrow().clone()),
            places: watch::Sender::new(None),
            counters,
            prober: Mutex::new(Prober::new(timing, seed, now)),
        });
        let running = Running {
            node: settings.node,
            overrides: settings.overrides,
            inputs,
            shared: Arc::clone(&shared),
            probing,
            told: Verified::default(),
            told_version: 0,
            told_at: now,
        };
        Ok((Self(shared), running))
    }

    /// Which endpoints are reached through the tunnel, and which without.
    #[must_use]
    pub fn reachability(&self) -> watch::Receiver<Reachability> {
        self.0.reachability.subscribe()
    }

    /// Where this node answers probes, for its MeshNode; none when it does not, or before its
    /// Node is known.
    #[must_use]
    pub fn places(&self) -> watch::Receiver<Option<ProbePlaces>> {
        self.0.places.subscribe()
    }

    /// What was found out about the peers that are probed, sorted by name.
    #[must_use]
    pub fn report(&self) -> Vec<PeerReach> {
        report(&self.0.prober(), Instant::now())
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.0.counters)
    }
}

impl Shared {
    fn prober(&self) -> MutexGuard<'_, Prober> {
        self.prober.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Probes and answers until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut told_of_news = true;
        self.tell(true);
        loop {
            let now = Instant::now();
            let due = self.shared.prober().next_at(now);
            let tell_at = self.tell(false);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = self.inputs.tunnel.changed() => drop(self.tell(true)),
                Ok(()) = self.inputs.exits.changed() => self.mark_stale(),
                Ok(()) = self.inputs.peers.changed() => self.mark_stale(),
                news = self.inputs.news.recv(), if told_of_news => match news {
                    Some(news) => self.take(news),
                    None => told_of_news = false,
                },
                () = at(due) => self.send_due().await,
                () = at(tell_at) => {}
                () = at(self.probing.as_ref().map(Equipment::wakes_at)) => self.look_around(),
                // Last: whoever floods this socket keeps nothing else from being done.
                came = came(self.probing.as_ref()) => self.came(came.as_ref()),
            }
        }
    }

    fn mark_stale(&mut self) {
        if let Some(probing) = &mut self.probing {
            probing.stale = true;
        } else if !self.overrides.is_empty() {
            self.tell(true);
        }
    }

    fn take(&mut self, news: News) {
        let Some(probing) = &mut self.probing else {
            return;
        };
        match news {
            News::Network(change) => probing.changed(change),
            News::Addresses => probing.look_at = probing.look_at.min(probing.changes_at),
            News::DialFailed { node, endpoint } => {
                debug!(%node, %endpoint, "a connection failed; the way is probed");
                let mut prober = self.shared.prober();
                prober.dial_failed(&node, endpoint, Instant::now());
            }
        }
    }

    fn came(&mut self, came: Option<&Came>) {
        let mut prober = self.shared.prober();
        let asked = came.and_then(|came| Some((came, prober.asked(&came.answer.nonce)?)));
        match asked {
            Some((came, asked)) if is_proof(came, asked) => {
                self.shared.counters.count_proved();
                prober.proved(&came.answer.nonce, Instant::now());
            }
            // A forged one does not take the place of the real one.
            Some(_) | None => self.shared.counters.count_odd(),
        }
    }

    async fn send_due(&mut self) {
        // What has come is not lost, however late this task was to look.
        for _ in 0..MOST_AT_ONCE {
            let here = self.probing.as_ref().and_then(|of| of.asking.here());
            let Some(came) = here else {
                break;
            };
            self.came(came.as_ref());
        }
        let Some(probing) = &mut self.probing else {
            return;
        };
        let counters = &self.shared.counters;
        for _ in 0..self.shared.prober().expire(Instant::now()) {
            counters.count_lost();
        }
        loop {
            let due = self.shared.prober().due(Instant::now());
            let Some(due) = due else {
                return;
            };
            match probing.asking.ask(&due).await {
                Ok((nonce, bytes)) => {
                    counters.count_sent();
                    let mut prober = self.shared.prober();
                    prober.sent(due, nonce, bytes, Instant::now());
                }
                Err(error) => {
                    debug!(node = %due.node, address = %due.address, %error, "no way for a probe");
                    counters.count_unsendable();
                    self.shared.prober().unsendable(&due, Instant::now());
                }
            }
        }
    }

    /// Does what is due besides probing.
    fn look_around(&mut self) {
        let Some(probing) = &mut self.probing else {
            return;
        };
        let now = Instant::now();
        let due = probing.take_changes(now);
        if now >= probing.look_at || due.contains(&NetworkChange::Anything) {
            probing.look_at_interfaces(now);
        }
        {
            let mut prober = self.shared.prober();
            for change in due {
                debug!(
                    ?change,
                    "the network of this host changed; peers are probed"
                );
                prober.network_changed(change, now);
            }
        }
        if probing.stale && now >= probing.follow_at {
            self.follow();
        }
    }

    /// Finds out anew who is to be probed, and where this node is.
    fn follow(&mut self) {
        let exits = Arc::clone(&self.inputs.exits.borrow_and_update());
        let peers = Arc::clone(&self.inputs.peers.borrow_and_update());
        let Some(probing) = &mut self.probing else {
            return;
        };
        let began = Instant::now();
        let catalog = exits.catalog();
        let overrides = resolve(&self.overrides, catalog);
        let wanted = places(catalog, &peers, &overrides, &self.node, &probing.own);
        self.shared.prober().follow(wanted, began);
        let own = own_places(catalog, &self.node, &probing.own, probing.port);
        self.shared.places.send_if_modified(|known| {
            let changed = *known != own;
            *known = own;
            changed
        });
        probing.answer_as(&exits, peers, &self.node);
        let now = Instant::now();
        probing.stale = false;
        probing.follow_at = now + (now - began) * FOLLOWING_SHARE;
        if !self.overrides.is_empty() {
            self.tell(true);
        }
    }

    /// Tells what has changed, if it is time to or `at_once`; else when it will be time.
    fn tell(&mut self, at_once: bool) -> Option<Instant> {
        let (version, verified) = {
            let prober = self.shared.prober();
            if !at_once && prober.version() == self.told_version {
                return None;
            }
            (prober.version(), prober.verified())
        };
        let is_news = verified != self.told;
        if !is_news {
            self.told_version = version;
        }
        let loses = self.told.iter().any(|(node, networks)| {
            let now = verified.get(node);
            networks
                .iter()
                .any(|network| !now.is_some_and(|now| now.contains(network)))
        });
        let tell_at = self.told_at + TOLD_TOGETHER;
        let now = Instant::now();
        if !at_once && !loses && (!is_news || now < tell_at) {
            return is_news.then_some(tell_at);
        }
        log_changes(&self.told, &verified);
        (self.told, self.told_at) = (Arc::clone(&verified), now);
        self.told_version = version;
        let tunnel = self.inputs.tunnel.borrow_and_update().clone();
        let overrides = resolve(&self.overrides, self.inputs.exits.borrow().catalog());
        let reachability = tunnel.with_verified(verified).with_overrides(overrides);
        self.shared.reachability.send_if_modified(|known| {
            let changed = *known != reachability;
            *known = reachability;
            changed
        });
        None
    }
}

async fn came(probing: Option<&Equipment>) -> Option<Came> {
    match probing {
        Some(probing) => probing.asking.next().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

fn log_changes(before: &Verified, now: &Verified) {
    let differ = |one: &Verified, other: &Verified| -> Vec<String> {
        let nodes = one.iter().filter(|(node, networks)| {
            let other = other.get(*node);
            other.is_none_or(|other| networks.iter().any(|of| !other.contains(of)))
        });
        nodes.map(|(node, _)| node.to_string()).collect()
    };
    for (nodes, what) in [
        (differ(now, before), "reached without the tunnel"),
        (differ(before, now), "reached without the tunnel no more"),
    ] {
        if nodes.is_empty() {
            continue;
        }
        let named = nodes.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>();
        info!(
            nodes = named.join(", "),
            more = nodes.len().saturating_sub(MOST_NAMED),
            "{what}"
        );
    }
}
