//! The loop that keeps the catalog as the API server has it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use kube::runtime::watcher::Event;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::client::client;
use super::cluster::Cluster;
use super::contact::Contact;
use super::delivered::{Delivered, WatchedKind};
use super::kind_watch::{KindWatch, News};
use super::offer::{endpoints_kind, has_slices};
use super::optional_watch::OptionalWatch;
use super::retry_pause::{RetryPause, chance};
use super::settings::ApiSettings;
use super::timing::ApiTiming;
use super::trouble::{Nature, Trouble};
use crate::counters::Counters;
use crate::last_good::LastGood;
use crate::publisher::Publisher;
use crate::state::{Origin, Problems, SourceState};

/// The Kubernetes API as the source of the catalog.
///
/// Services, EndpointSlices, Nodes and MeshNodes are listed in pages and then watched;
/// where the server has no `discovery.k8s.io/v1`, Endpoints take the place of
/// EndpointSlices. The catalog is complete without MeshNodes where there are none, or where
/// reading them takes longer than the patience.
/// Until the first lists are complete, the last good catalog is served if there is one.
/// Nothing here is fatal: whatever fails is said and tried again.
#[derive(Debug)]
pub struct ApiSource {
    settings: ApiSettings,
    timing: ApiTiming,
    last_good: Option<LastGood>,
    counters: Arc<Counters>,
    publisher: Publisher,
    node_labels: Arc<[Arc<str>]>,
}

impl ApiSource {
    /// A source that has not begun yet, and the channel on which it publishes.
    #[must_use]
    pub fn new(
        settings: ApiSettings,
        timing: ApiTiming,
        last_good: Option<LastGood>,
        counters: Arc<Counters>,
    ) -> (Self, watch::Receiver<SourceState>) {
        let (publisher, states) = Publisher::new(timing.coalesce, counters.clone());
        let source = Self {
            settings,
            timing,
            last_good,
            counters,
            publisher,
            node_labels: Arc::default(),
        };
        (source, states)
    }

    /// Keeps these labels of Nodes; by default none.
    #[must_use]
    pub fn keeping_node_labels(self, labels: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            node_labels: labels.into_iter().collect(),
            ..self
        }
    }

    /// Works until `shutdown`. Dropping the future stops it just as well.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut running = Running::new(self);
        if let Some(never) = shutdown.run_until_cancelled(running.work()).await {
            match never {}
        }
        running.publish_what_is_due();
    }
}

struct Running {
    settings: ApiSettings,
    timing: ApiTiming,
    counters: Arc<Counters>,
    contact: Contact,
    publisher: Publisher,
    cluster: Cluster,
    last_good: Option<LastGood>,
    /// When patience with the first lists ends; none once it has.
    patience_ends: Option<Instant>,
    mark_trouble_said: Arc<AtomicBool>,
    pause: RetryPause,
}

impl Running {
    fn new(source: ApiSource) -> Self {
        let ApiSource {
            settings,
            timing,
            last_good,
            counters,
            publisher,
            node_labels,
        } = source;
        let known = last_good.as_ref().map(|saved| saved.catalog.clone());
        let mut cluster = Cluster::new(known.unwrap_or_default(), counters.clone());
        cluster.keep_node_labels(node_labels);
        Self {
            cluster,
            contact: Contact::new(counters.clone()),
            patience_ends: Some(Instant::now() + timing.patience),
            mark_trouble_said: Arc::default(),
            pause: RetryPause::new(timing.backoff_min, timing.backoff_max),
            settings,
            timing,
            counters,
            publisher,
            last_good,
        }
    }

    async fn work(&mut self) -> Infallible {
        loop {
            let (client, endpoints) = self.reach_server().await;
            self.watch(&client, endpoints).await;
            self.pause().await;
        }
    }

    /// Makes a client and finds out where the server keeps its endpoints; repeats
    /// both until they succeed.
    async fn reach_server(&mut self) -> (kube::Client, WatchedKind) {
        loop {
            let attempt = reach(
                self.settings.clone(),
                self.mark_trouble_said.clone(),
                self.contact.clone(),
            );
            match self.with_patience(attempt).await {
                Ok(reached) => return reached,
                Err(trouble) => {
                    self.report(None, &trouble);
                    self.lose_patience();
                    self.pause().await;
                }
            }
        }
    }

    /// Waits for `attempt`, but not longer with serving the last good catalog.
    async fn with_patience<T>(&mut self, attempt: impl Future<Output = T>) -> T {
        let mut attempt = std::pin::pin!(attempt);
        if let Some(at) = self.patience_ends {
            tokio::select! {
                result = &mut attempt => return result,
                () = sleep_until(at) => self.lose_patience(),
            }
        }
        attempt.await
    }

    async fn pause(&mut self) {
        sleep(self.pause.after_failure(Instant::now(), chance())).await;
    }

    /// Watches until the server has to be asked anew what it offers.
    async fn watch(&mut self, client: &kube::Client, endpoints: WatchedKind) {
        let begin = |kind| KindWatch::new(client.clone(), kind, &self.timing);
        let mut services = begin(WatchedKind::Services);
        let mut endpoints = begin(endpoints);
        let timing = &self.timing;
        let optional = |kind, pauses| OptionalWatch::new(client.clone(), kind, timing, pauses);
        let mut nodes = optional(WatchedKind::Nodes, (timing.look_again, timing.look_again));
        let mut mesh_nodes = optional(
            WatchedKind::MeshNodes,
            (
                timing.look_for_mesh_nodes_min,
                timing.look_for_mesh_nodes_max,
            ),
        );
        let mut look_again = Instant::now() + self.timing.look_again;
        loop {
            let (kind, news) = tokio::select! {
                news = services.next() => (services.kind, news),
                news = endpoints.next() => (endpoints.kind, news),
                news = nodes.next() => (nodes.kind, news),
                news = mesh_nodes.next() => (mesh_nodes.kind, news),
                () = self.publisher.due() => {
                    self.publish();
                    continue;
                }
                () = until(self.patience_ends) => {
                    self.lose_patience();
                    continue;
                }
                () = sleep_until(look_again) => {
                    look_again = Instant::now() + self.timing.look_again;
                    if endpoints.kind == WatchedKind::Endpoints && has_slices(client).await {
                        return;
                    }
                    continue;
                }
            };
            if let News::Trouble(trouble) = &news
                && trouble.is_absence()
                && let Some(optional) = [&mut nodes, &mut mesh_nodes]
                    .into_iter()
                    .find(|optional| optional.kind == kind)
            {
                optional.do_without(trouble);
                self.do_without(kind, trouble);
            } else if self.take(kind, news) == Next::AskAnew {
                return;
            }
        }
    }

    fn take(&mut self, kind: WatchedKind, news: News) -> Next {
        match news {
            News::Event(event) => {
                self.take_event(kind, event);
                Next::GoOn
            }
            News::Unversioned(objects) => {
                self.take_unversioned(kind, objects);
                Next::GoOn
            }
            News::Trouble(trouble) => self.take_trouble(kind, &trouble),
        }
    }

    fn take_event(&mut self, kind: WatchedKind, event: Event<Delivered>) {
        self.counters.note_event();
        match event {
            Event::Init => {
                self.counters.add_list();
                debug!(%kind, "listing");
            }
            Event::InitDone => debug!(%kind, "listed"),
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
        }
        let changed = self.cluster.take(kind, event);
        self.after(changed);
    }

    /// A whole list of a server that gives no versions. KubeEdge's metaServer does so
    /// when it is cut off and has nothing of the kind in store (edge
    /// `metaserver/kubernetes/storage/sqlite/store.go`): an empty one is not believed.
    fn take_unversioned(&mut self, kind: WatchedKind, objects: Vec<Delivered>) {
        self.take_event(kind, Event::Init);
        for object in objects {
            self.take_event(kind, Event::InitApply(object));
        }
        if !self.cluster.would_lose_all(kind) {
            self.take_event(kind, Event::InitDone);
            return;
        }
        if self.contact.failed().worth_saying {
            warn!(
                %kind,
                "the API server lists none at all and gives no version; those known so far stay. \
                 Check the connection of edgecore to the cloud"
            );
        }
        self.lose_patience();
    }

    fn take_trouble(&mut self, kind: WatchedKind, trouble: &Trouble) -> Next {
        match kind {
            WatchedKind::EndpointSlices if trouble.is_absence() => {
                warn!(%trouble, "EndpointSlices can no longer be read; asking the server anew");
                return Next::AskAnew;
            }
            WatchedKind::Endpoints if trouble.nature == Nature::NotFound => return Next::AskAnew,
            WatchedKind::Services
            | WatchedKind::EndpointSlices
            | WatchedKind::Endpoints
            | WatchedKind::Nodes
            | WatchedKind::MeshNodes => {}
        }
        let lasting = self.report(Some(kind), trouble);
        if kind == WatchedKind::MeshNodes {
            self.wait_no_longer_for_mesh_nodes();
        } else {
            self.lose_patience();
        }
        match trouble.nature {
            Nature::Unreachable | Nature::Unauthorized | Nature::Refused
                if lasting >= self.timing.long_outage =>
            {
                Next::AskAnew
            }
            Nature::Unreachable
            | Nature::Unauthorized
            | Nature::Refused
            | Nature::NotFound
            | Nature::Forbidden
            | Nature::Expired
            | Nature::NoVersion => Next::GoOn,
        }
    }

    /// A kind that the server does not have, or does not let us read, and that the agent
    /// can do without.
    fn do_without(&mut self, kind: WatchedKind, trouble: &Trouble) {
        let changed = if kind == WatchedKind::Nodes {
            self.cluster.do_without_nodes()
        } else if trouble.nature == Nature::NotFound {
            self.cluster.do_without_mesh_nodes()
        } else {
            // There may well be some, and those known from before stay.
            self.cluster.wait_no_longer_for_mesh_nodes();
            false
        };
        self.after(changed);
    }

    fn wait_no_longer_for_mesh_nodes(&mut self) {
        self.cluster.wait_no_longer_for_mesh_nodes();
        self.after(false);
    }

    /// Says what went wrong, not too often. Returns how long it has gone wrong.
    fn report(&self, kind: Option<WatchedKind>, trouble: &Trouble) -> Duration {
        let what = kind.map_or("API server", WatchedKind::as_str);
        if trouble.nature == Nature::Expired {
            debug!(what, %trouble, "listing afresh");
            return Duration::ZERO;
        }
        let failure = self.contact.failed();
        let origin = self.publisher.current().origin;
        if failure.worth_saying {
            warn!(
                what, %trouble, for_s = failure.lasting.as_secs(),
                "cannot read from the API server; trying again. Served meanwhile: {origin}"
            );
        } else {
            debug!(what, %trouble, "cannot read from the API server; trying again");
        }
        failure.lasting
    }

    /// Lets readers know, if there is something to know.
    fn after(&mut self, changed: bool) {
        if !self.cluster.is_complete() {
            return;
        }
        let (first, problems) = {
            let seen = self.publisher.current();
            (seen.origin != Origin::Api, seen.problems)
        };
        if first {
            self.patience_ends = None;
            self.last_good = None;
            self.publish();
            let catalog = self.cluster.catalog();
            info!(
                services = catalog.services().count(),
                slices = catalog.slices().count(),
                nodes = catalog.nodes().count(),
                mesh_nodes = catalog.mesh_nodes().count(),
                "the catalog of the API server is complete"
            );
        } else if changed || problems != self.problems() {
            self.publisher.changed();
        }
    }

    fn problems(&self) -> Problems {
        Problems {
            objects: self.cluster.objects_with_problems(),
            files: 0,
        }
    }

    fn publish(&mut self) {
        self.publisher.publish(SourceState {
            catalog: self.cluster.catalog(),
            complete: true,
            origin: Origin::Api,
            problems: self.problems(),
        });
    }

    fn publish_what_is_due(&mut self) {
        if self.publisher.is_due() {
            self.publish();
        }
    }

    /// The first lists took too long or failed: serves what was good last time.
    fn lose_patience(&mut self) {
        if self.patience_ends.is_some() {
            // Perhaps they are all that is missing.
            self.wait_no_longer_for_mesh_nodes();
        }
        if self.patience_ends.take().is_none() {
            return;
        }
        let Some(LastGood { catalog, saved_at }) = self.last_good.take() else {
            warn!("the API server is not there yet and no last good catalog is either; waiting");
            return;
        };
        let age = SystemTime::now()
            .duration_since(saved_at)
            .unwrap_or_default();
        warn!(
            services = catalog.services().count(),
            age_s = age.as_secs(),
            "serving the last good catalog until the API server answers"
        );
        self.publisher.publish(SourceState {
            catalog,
            complete: true,
            origin: Origin::LastGood { saved_at },
            problems: Problems::default(),
        });
    }
}

/// What is to be done after some news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    AskAnew,
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn reach(
    settings: ApiSettings,
    mark_trouble_said: Arc<AtomicBool>,
    contact: Contact,
) -> Result<(kube::Client, WatchedKind), Trouble> {
    let client = client(&settings, mark_trouble_said, contact)
        .await
        .map_err(|error| Trouble::unprepared(&error))?;
    let kind = endpoints_kind(&client).await?;
    Ok((client, kind))
}
