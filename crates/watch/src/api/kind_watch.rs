//! The watch of one kind.

use std::time::Duration;

use futures_util::stream::{BoxStream, StreamExt};
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::delivered::{Delivered, WatchedKind};
use super::retry_pause::{RetryPause, chance};
use super::timing::ApiTiming;
use super::trouble::{Nature, Trouble};

/// Lists and watches one kind, for ever, with backoff.
pub(crate) struct KindWatch {
    pub(crate) kind: WatchedKind,
    client: kube::Client,
    stream: BoxStream<'static, Result<Event<Delivered>, watcher::Error>>,
    pause: RetryPause,
    /// When a failed attempt is to be repeated.
    resume_at: Option<Instant>,
    /// Until when a list has to get on; none while no list is read.
    list_stalls_at: Option<Instant>,
}

/// How long a list may make no progress. The connection's own time-outs do not notice
/// a server, or a proxy before it, that is alive and says nothing.
const LIST_STALL: Duration = Duration::from_secs(90);

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
            list_stalls_at: None,
        }
    }

    /// The next news. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> News {
        if let Some(at) = self.resume_at {
            sleep_until(at).await;
            self.resume_at = None;
        }
        match self.next_before_stall().await {
            Some(Some(Ok(event))) => {
                self.note_progress(&event);
                News::Event(event)
            }
            Some(Some(Err(error))) => self.failed(&error).await,
            // kube's stream has no end; were it to get one, begin anew.
            Some(None) => self.begin_anew(Trouble::said("the watch ended")),
            None => self.begin_anew(Trouble::said("the list got stuck")),
        }
    }

    /// The next of the stream; none when a list makes no progress.
    async fn next_before_stall(
        &mut self,
    ) -> Option<Option<Result<Event<Delivered>, watcher::Error>>> {
        match self.list_stalls_at {
            Some(at) => timeout_at(at, self.stream.next()).await.ok(),
            None => Some(self.stream.next().await),
        }
    }

    fn note_progress(&mut self, event: &Event<Delivered>) {
        self.list_stalls_at = match event {
            Event::Init | Event::InitApply(_) => Some(Instant::now() + LIST_STALL),
            Event::InitDone | Event::Apply(_) | Event::Delete(_) => None,
        };
    }

    fn begin_anew(&mut self, trouble: Trouble) -> News {
        self.stream = stream(&self.client, self.kind);
        self.fail(trouble)
    }

    async fn failed(&mut self, error: &watcher::Error) -> News {
        let trouble = Trouble::from(error);
        match (trouble.nature, error) {
            // kube would ask for the same forgotten version again and again.
            (Nature::Expired, watcher::Error::WatchStartFailed(_)) => self.begin_anew(trouble),
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
        self.list_stalls_at = None;
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

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Bytes, Frame};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// A server that begins every answer and ends none.
    fn stuck() -> kube::Client {
        let service = service_fn(|_: Request<Body>| async {
            let silence = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
            Ok::<_, BoxError>(Response::new(StreamBody::new(silence)))
        });
        kube::Client::new(service, "default")
    }

    type BoxError = tower::BoxError;

    #[tokio::test(start_paused = true)]
    async fn stuck_list_is_given_up_and_begun_anew() {
        let timing = ApiTiming::default();
        let mut watch = KindWatch::new(stuck(), WatchedKind::Services, &timing);
        for _ in 0..3 {
            assert!(matches!(watch.next().await, News::Event(Event::Init)));
            let began = Instant::now();
            let news = watch.next().await;
            assert!(matches!(news, News::Trouble(_)), "{news:?}");
            assert_eq!(began.elapsed(), LIST_STALL);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_next_attempt_can_be_interrupted() {
        let timing = ApiTiming::default();
        let mut watch = KindWatch::new(stuck(), WatchedKind::Services, &timing);
        watch.next().await;
        watch.next().await;
        let at = watch.resume_at.expect("a failure");
        let interrupted = tokio::time::timeout(timing.backoff_min / 2, watch.next()).await;
        assert!(interrupted.is_err());
        assert_eq!(watch.resume_at, Some(at));
        watch.next().await;
        assert!(Instant::now() >= at);
    }
}
