//! Keeps the transport's relays in line with what is believed, and leaves a relay that fails.
//!
//! Which of several relays this node is to be found at is the transport's choice: it
//! measures how far they are and takes the nearest that answers. It measures when its relays
//! change, when the network does, and now and then; not when its relay goes away. So that is
//! noticed here: the relay is taken out for a while, and the transport chooses among the
//! others.
//!
//! At first relays are only measured, by TCP, and asked for this node's address when one is
//! chosen: the transport asks by UDP and waits 3 s for each answer before it chooses
//! (`spawn_qad_probes` of iroh 1.4), which where UDP is blocked is most of the time that an
//! agent needs until it can be reached.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use edgemesh_catalog::NodeName;
use futures_util::StreamExt;
use futures_util::future::OptionFuture;
use iroh::endpoint::RelayStatus;
use iroh::{Endpoint, RelayConfig, RelayUrl, Watcher};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::home_wanted::HomeWanted;
use crate::peer_book::Peers;
use crate::relay_address::RelayAddress;
use crate::relay_book::{RelayBook, RelayNode, Relays};
use crate::relay_detours::{RelayDetours, StandIns};
use crate::relay_server::OpenRelay;
use crate::relay_trust::RelayTrust;

/// A relay that is away for longer is left for another. One that restarts is back before.
const AWAY: Duration = Duration::from_secs(1);
/// How long a relay that was left is not measured: the transport waits some seconds for an
/// answer from each that it measures.
const LEFT_OUT: Duration = Duration::from_secs(10);

/// The task that keeps the transport's relays.
#[derive(Debug)]
pub(crate) struct RelayKeeper {
    pub(crate) endpoint: Endpoint,
    /// This node.
    pub(crate) own: NodeName,
    /// The relay nodes of the configuration.
    pub(crate) named: Vec<RelayNode>,
    /// Told who may tell this node its address.
    pub(crate) trust: RelayTrust,
    /// Told all relays.
    pub(crate) book: RelayBook,
    /// Tells which relays are away although the transport sees itself connected.
    pub(crate) detours: RelayDetours,
}

/// What the keeper knows while it runs.
#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<RelayUrl, RelayConfig>,
    told: BTreeMap<RelayUrl, RelayConfig>,
    /// Whether relays are asked for this node's address, too.
    asks_address: bool,
    home: Home,
    home_wanted: HomeWanted,
}

/// The relay that this node is to be found at, and those that it has left.
#[derive(Debug, Default)]
struct Home {
    /// Since when the relay with this URL is away.
    away: Option<(RelayUrl, Instant)>,
    /// Until when they are left out.
    left_out: BTreeMap<RelayUrl, Instant>,
}

impl RelayKeeper {
    /// Follows the peers, and this node's own relay, until `stop`.
    pub(crate) async fn run(
        self,
        mut peers: watch::Receiver<Arc<Peers>>,
        mut own_relay: watch::Receiver<Option<OpenRelay>>,
        stop: CancellationToken,
    ) {
        let mut state = State::default();
        let mut statuses = self.endpoint.home_relay_status().stream();
        let mut detours = self.detours.follow();
        loop {
            let local = own_relay
                .borrow_and_update()
                .and_then(|open| locally(open.relay));
            let following = Arc::clone(&peers.borrow_and_update());
            let relays = Relays::new(&following, &self.named, &self.own, local);
            self.follow(relays, &mut state).await;
            loop {
                state
                    .home_wanted
                    .note(self.misses_home(&state), Instant::now());
                let due = state.home.due().into_iter().chain(state.home_wanted.due());
                let due: OptionFuture<_> = due.min().map(sleep_until).into();
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = peers.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return stop.cancelled().await,
                    },
                    Ok(()) = own_relay.changed() => break,
                    Some(status) = statuses.next() => {
                        state.home.note(home_of(&status), &detours.borrow(), Instant::now());
                    }
                    Ok(()) = detours.changed() => {
                        let status = self.endpoint.home_relay_status().get();
                        let detours = detours.borrow_and_update();
                        state.home.note(home_of(&status), &detours, Instant::now());
                    }
                    Some(()) = due => {}
                }
                if state.home.leave(&state.wanted, Instant::now()) {
                    self.tell(&mut state).await;
                }
                let ask_for_home = state.home_wanted.ask(Instant::now());
                if ask_for_home {
                    self.ask_for_home(&state).await;
                }
                // Without a choice in time it may be that only UDP reaches them.
                if !state.asks_address && (ask_for_home || self.has_home()) {
                    state.asks_address = true;
                    self.tell(&mut state).await;
                }
            }
        }
    }

    fn misses_home(&self, state: &State) -> bool {
        !state.told.is_empty() && !self.has_home()
    }

    fn has_home(&self) -> bool {
        home_of(&self.endpoint.home_relay_status().get()).is_some()
    }

    /// Makes the transport measure all relays anew, by telling it one of them again.
    async fn ask_for_home(&self, state: &State) {
        if let Some((url, config)) = state.told.first_key_value() {
            debug!("the transport has chosen no relay: asked to choose again");
            let config = Arc::new(config.clone());
            self.endpoint.insert_relay(url.clone(), config).await;
        }
    }

    async fn follow(&self, relays: Relays, state: &mut State) {
        // Believed before it is asked.
        self.trust.set(relays.keys());
        state.wanted = relays.configs();
        self.book.set(relays);
        self.tell(state).await;
    }

    async fn tell(&self, state: &mut State) {
        let wanted = state.to_tell();
        for (url, config) in &wanted {
            if state.told.get(url) != Some(config) {
                debug!(%url, "a relay to be used");
                let config = Arc::new(config.clone());
                self.endpoint.insert_relay(url.clone(), config).await;
            }
        }
        for url in state.told.keys().filter(|url| !wanted.contains_key(*url)) {
            debug!(%url, "a relay not to be used");
            self.endpoint.remove_relay(url).await;
        }
        state.told = wanted;
    }
}

impl State {
    /// The relays that are not left out.
    fn to_tell(&self) -> BTreeMap<RelayUrl, RelayConfig> {
        let wanted = self.wanted.iter();
        let wanted = wanted.filter(|(url, _)| !self.home.left_out.contains_key(url));
        let configs = wanted.map(|(url, config)| match self.asks_address {
            true => config.clone(),
            false => RelayConfig::new(url.clone(), None),
        });
        configs.map(|config| (config.url.clone(), config)).collect()
    }
}

impl Home {
    /// When something is to be done though nothing happens.
    fn due(&self) -> Option<Instant> {
        let leave = self.away.as_ref().map(|(_, since)| *since + AWAY);
        self.left_out.values().copied().chain(leave).min()
    }

    /// What there is to be seen of the relay, and whether the transport is connected with it.
    fn note(&mut self, home: Option<(&RelayUrl, bool)>, detours: &StandIns, now: Instant) {
        let is_away = |(url, connected): &(&RelayUrl, bool)| {
            let address = RelayAddress::of_url(url);
            !connected || address.is_some_and(|address| detours.contains_key(&address))
        };
        let away = home.filter(is_away).map(|(url, _)| url);
        if self.away.as_ref().map(|(url, _)| url) != away {
            self.away = away.map(|url| (url.clone(), now));
        }
    }

    /// Leaves the relay that is away for too long, if there are others, and takes back those
    /// that were left long enough ago. Returns whether that changed anything.
    fn leave(&mut self, wanted: &BTreeMap<RelayUrl, RelayConfig>, now: Instant) -> bool {
        let before = self.left_out.len();
        self.left_out.retain(|_, until| *until > now);
        let mut changed = self.left_out.len() != before;
        let due = self.away.take_if(|(_, since)| *since + AWAY <= now);
        if let Some((url, _)) = due {
            let others = wanted
                .keys()
                .any(|other| *other != url && !self.left_out.contains_key(other));
            if others {
                info!(%url, "the relay of this node does not answer: another is looked for");
                self.left_out.insert(url.clone(), now + LEFT_OUT);
                changed = true;
            }
            // Looked at again, should nothing else be heard of it.
            self.away = Some((url, now + LEFT_OUT));
        }
        changed
    }
}

/// The relay at which this node is to be found, and whether it is connected with it.
fn home_of(status: &[RelayStatus]) -> Option<(&RelayUrl, bool)> {
    let home = status.first()?;
    Some((home.url(), home.is_connected()))
}

/// By what this node reaches its own relay, which listens at `address`.
fn locally(address: SocketAddr) -> Option<RelayAddress> {
    let loopback: IpAddr = match address.ip() {
        // A socket of all IPv6 addresses is for IPv4, too; and IPv4 is on every loopback.
        ip if ip == Ipv6Addr::UNSPECIFIED || ip == Ipv4Addr::UNSPECIFIED => {
            Ipv4Addr::LOCALHOST.into()
        }
        ip => ip,
    };
    RelayAddress::new(SocketAddr::new(loopback, address.port()))
}

#[cfg(test)]
#[path = "relays_tests.rs"]
mod tests;
