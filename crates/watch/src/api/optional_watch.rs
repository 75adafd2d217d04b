//! The watch of a kind that a server may not have, or not let us read.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::delivered::WatchedKind;
use super::kind_watch::{KindWatch, News};
use super::retry_pause::{RetryPause, chance};
use super::timing::ApiTiming;
use super::trouble::{Nature, Trouble};

/// Watches a kind while it can be had, and looks for it from time to time while it cannot.
pub(crate) struct OptionalWatch {
    pub(crate) kind: WatchedKind,
    client: kube::Client,
    timing: ApiTiming,
    watch: Option<KindWatch>,
    look_at: Instant,
    pause: RetryPause,
    /// Why it cannot be had, as it was last said.
    said: Option<Nature>,
}

impl OptionalWatch {
    /// `pauses` are the shortest and the longest between two looks.
    pub(crate) fn new(
        client: kube::Client,
        kind: WatchedKind,
        timing: &ApiTiming,
        pauses: (Duration, Duration),
    ) -> Self {
        Self {
            kind,
            watch: Some(KindWatch::new(client.clone(), kind, timing)),
            client,
            timing: timing.clone(),
            look_at: Instant::now(),
            pause: RetryPause::new(pauses.0, pauses.1),
            said: None,
        }
    }

    /// The next news. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> News {
        if self.watch.is_none() {
            sleep_until(self.look_at).await;
        }
        let watch = self
            .watch
            .get_or_insert_with(|| KindWatch::new(self.client.clone(), self.kind, &self.timing));
        let news = watch.next().await;
        if matches!(news, News::Event(kube::runtime::watcher::Event::InitDone)) {
            self.said = None;
        }
        news
    }

    /// Stops watching, says why if that was not said before, and looks for the kind again
    /// after a while.
    pub(crate) fn do_without(&mut self, trouble: &Trouble) {
        self.watch = None;
        let now = Instant::now();
        self.look_at = now + self.pause.after_failure(now, chance());
        if self.said.replace(trouble.nature) != Some(trouble.nature) {
            say_absent(self.kind, trouble);
        }
    }
}

fn say_absent(kind: WatchedKind, trouble: &Trouble) {
    if kind != WatchedKind::MeshNodes {
        warn!(
            %trouble,
            "{kind} cannot be read; going on without zones and pod networks of the nodes"
        );
    } else if trouble.nature == Nature::NotFound {
        warn!(
            "the API server has no MeshNodes: the agents of other nodes are not known, and there \
             is no tunnel to them. Run `edgemesh-agent crd | kubectl apply -f -`; MeshNodes are \
             looked for again"
        );
    } else {
        warn!(
            %trouble,
            "{kind} cannot be read; going on with the agents of other nodes known so far"
        );
    }
}
