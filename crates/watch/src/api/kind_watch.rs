//! The watch of one kind.

use futures_util::stream::{BoxStream, StreamExt};
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::delivered::{Delivered, WatchedKind};
use super::retry_pause::{RetryPause, chance};
use super::source::ApiTiming;
use super::trouble::{Nature, Trouble};

/// Lists and watches one kind, for ever, with backoff.
pub(crate) struct KindWatch {
    pub(crate) kind: WatchedKind,
    client: kube::Client,
    stream: BoxStream<'static, Result<Event<Delivered>, watcher::Error>>,
    pause: RetryPause,
    /// Where a failed attempt is to be repeated.
    resume_at: Option<Instant>,
}

/// What a watch has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// Something about an object or about the list.
    Event(Event<Delivered>),
    /// The whole list, of a server that cannot be watched.
    Unversioned(Vec<Delivered>),
    /// A failure. The watch goes on by itself.
    Trouble(Trouble),
}

impl KindWatch {
    pub(crate) fn new(client: kube::Client, kind: WatchedKind, timing: &ApiTiming) -> Self {
        Self {
            kind,
            stream: stream(&client, kind),
            client,
            pause: RetryPause::new(timing.backoff_min, timing.backoff_max),
            resume_at: None,
        }
    }

    /// The next news. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> News {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
            self.resume_at = None;
        }
        match self.stream.next().await {
            Some(Ok(event)) => News::Event(event),
            Some(Err(error)) => self.failed(&error).await,
            None => {
                // kube's stream has no end; were it to get one, begin anew.
                self.stream = stream(&self.client, self.kind);
                self.fail(Trouble::ended())
            }
        }
    }

    async fn failed(&mut self, error: &watcher::Error) -> News {
        let trouble = Trouble::from(error);
        match (trouble.nature, error) {
            // kube would ask for the same forgotten version again and again.
            (Nature::Expired, watcher::Error::WatchStartFailed(_)) => {
                self.stream = stream(&self.client, self.kind);
                self.fail(trouble)
            }
            (Nature::NoVersion, _) => {
                // Set first: were this future dropped, the next call waits and lists anew.
                let news = self.fail(trouble);
                match self.list().await {
                    Ok(objects) => News::Unversioned(objects),
                    Err(error) => {
                        debug!(kind = %self.kind, %error, "listing without versions failed");
                        news
                    }
                }
            }
            _ => self.fail(trouble),
        }
    }

    fn fail(&mut self, trouble: Trouble) -> News {
        let now = Instant::now();
        let pause = self.pause.after_failure(now, chance());
        self.resume_at = Some(now + pause.max(trouble.retry_after.unwrap_or_default()));
        News::Trouble(trouble)
    }

    /// Borrows the watch only until it is awaited: the stream in it is not `Sync`, and
    /// the future has to be `Send`.
    fn list(&self) -> impl Future<Output = kube::Result<Vec<Delivered>>> + use<> {
        let api: Api<Delivered> = Api::all_with(self.client.clone(), &self.kind);
        async move { Ok(api.list(&ListParams::default()).await?.items) }
    }
}

fn stream(
    client: &kube::Client,
    kind: WatchedKind,
) -> BoxStream<'static, Result<Event<Delivered>, watcher::Error>> {
    let api: Api<Delivered> = Api::all_with(client.clone(), &kind);
    watcher(api, watcher::Config::default()).boxed()
}
