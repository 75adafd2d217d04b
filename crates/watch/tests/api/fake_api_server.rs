//! An API server in this process, as far as listing and watching goes: resource
//! versions, pages, watches that resume, and everything that can go wrong with them. It
//! takes writes as well.

mod writes;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

pub(crate) use writes::Write;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const ENDPOINTS: &str = "/api/v1/endpoints";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const MESH_NODES: &str = "/apis/edgemesh.kubeedge.io/v1alpha1/meshnodes";
pub(crate) const EVENTS: &str = "/api/v1/namespaces/default/events";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// The server. It stops when dropped.
pub(crate) struct FakeApiServer {
    cluster: Arc<Cluster>,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    tasks: JoinSet<()>,
}

struct Cluster {
    content: Mutex<Content>,
    /// Changes with every write, so that watches look.
    version: watch::Sender<u64>,
    /// Changes when all watches are to break.
    broken: watch::Sender<u64>,
}

#[derive(Default)]
struct Content {
    kinds: BTreeMap<String, Kind>,
    requests: Vec<String>,
    /// The last `Authorization` header.
    authorization: Option<String>,
    versionless: bool,
    writes: Vec<Write>,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<String, Value>,
    /// Version and line of each watch event.
    log: Vec<(u64, String)>,
    /// Versions up to this one are forgotten.
    forgotten: u64,
    /// Whether a forgotten version is answered by a status instead of an event.
    forgets_by_status: bool,
    /// What requests are answered by, if not by content.
    refused: Option<StatusCode>,
    /// The same for watches only.
    watch_refused: Option<StatusCode>,
    /// What writes are answered by, if they are not taken.
    writes_refused: Option<StatusCode>,
    status_writes_refused: Option<StatusCode>,
}

impl FakeApiServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// The same over TLS.
    pub(crate) async fn start_with_tls(config: Arc<ServerConfig>) -> Self {
        Self::start_with(Some(config.into())).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let cluster = Arc::new(Cluster {
            content: Mutex::default(),
            version: watch::Sender::new(1),
            broken: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Self {
            cluster,
            address,
            tls,
            tasks: JoinSet::new(),
        };
        server.serve(listener);
        server
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    fn serve(&mut self, listener: TcpListener) {
        let (cluster, tls) = (self.cluster.clone(), self.tls.clone());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (cluster, tls) = (cluster.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve_connection(cluster, stream).await,
                        Some(tls) => {
                            // Who has no good certificate is turned away here.
                            if let Ok(stream) = tls.accept(stream).await {
                                serve_connection(cluster, stream).await;
                            }
                        }
                    }
                });
            }
        });
    }

    /// Breaks all connections and accepts no more.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Listens again at the same address.
    pub(crate) async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// Breaks the watches only.
    pub(crate) fn break_watches(&self) {
        self.cluster.broken.send_modify(|epoch| *epoch += 1);
    }

    /// Adds or changes an object.
    pub(crate) fn put(&self, kind: &str, object: Value) {
        self.cluster.put(kind, object);
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let object = json!({"metadata": {"namespace": namespace, "name": name}});
        self.cluster
            .write(kind, object, |kind, key, object, version| {
                let mut known = kind.objects.remove(&key).expect("an object to delete");
                known["metadata"]["resourceVersion"] =
                    object["metadata"]["resourceVersion"].clone();
                kind.tell(version, "DELETED", &known);
            });
    }

    /// Deletes an object so that no watch is told: only a new list shows it.
    pub(crate) fn delete_unseen(&self, kind: &str, namespace: &str, name: &str) {
        let object = json!({"metadata": {"namespace": namespace, "name": name}});
        self.cluster.write(kind, object, |kind, key, _, _| {
            kind.objects.remove(&key).expect("an object to delete");
        });
    }

    /// Tells watches an event for the second time.
    pub(crate) fn repeat_last_event(&self, kind: &str) {
        let mut content = self.cluster.lock();
        let version = *self.cluster.version.borrow() + 1;
        let kind = content.kind(kind);
        let (_, line) = kind.log.last().expect("an event").clone();
        kind.log.push((version, line));
        drop(content);
        self.cluster.version.send_replace(version);
    }

    /// Adds an object and, in the same piece of the watch's answer, tells a later
    /// version at which nothing changed.
    pub(crate) fn put_with_bookmark(&self, kind: &str, object: Value) {
        self.cluster
            .write(kind, object, |kind, key, object, version| {
                kind.objects.insert(key, object.clone());
                kind.tell(version, "ADDED", &object);
                let later = (version + 1).to_string();
                let bookmark = json!({
                    "apiVersion": "v1", "kind": "X", "metadata": {"resourceVersion": later},
                });
                kind.tell(version, "BOOKMARK", &bookmark);
            });
        self.cluster.version.send_modify(|version| *version += 1);
    }

    /// Forgets all versions so far: watches from one of them are gone.
    pub(crate) fn forget_versions(&self, kind: &str) {
        let version = *self.cluster.version.borrow();
        self.cluster.lock().kind(kind).forgotten = version;
    }

    /// Says so with HTTP status 410 instead of an event.
    pub(crate) fn forget_by_status(&self, kind: &str) {
        self.cluster.lock().kind(kind).forgets_by_status = true;
    }

    /// Answers requests for a kind with a status, or with content again.
    pub(crate) fn refuse(&self, kind: &str, status: Option<u16>) {
        self.cluster.lock().kind(kind).refused = status.map(|s| StatusCode::from_u16(s).unwrap());
    }

    /// The same for watches only.
    pub(crate) fn refuse_watch(&self, kind: &str, status: Option<u16>) {
        self.cluster.lock().kind(kind).watch_refused =
            status.map(|s| StatusCode::from_u16(s).unwrap());
    }

    /// Gives no resource versions in lists, as KubeEdge's metaServer with an empty store.
    pub(crate) fn give_no_versions(&self, versionless: bool) {
        self.cluster.lock().versionless = versionless;
    }

    /// Requests so far, as `path?query`, and their `User-Agent`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.cluster.lock().requests.clone()
    }

    /// The `Authorization` header of the last request.
    pub(crate) fn authorization(&self) -> Option<String> {
        self.cluster.lock().authorization.clone()
    }

    /// How often a kind was listed from its beginning.
    pub(crate) fn lists(&self, kind: &str) -> usize {
        let is_list = |request: &&String| {
            request.starts_with(&format!("{kind}?"))
                && !request.contains("watch=true")
                && !request.contains("continue=")
                && !request.contains("limit=1 ")
        };
        self.requests().iter().filter(is_list).count()
    }
}

impl Cluster {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap()
    }

    fn put(&self, kind: &str, object: Value) {
        self.write(kind, object, |kind, key, object, version| {
            let event = match kind.objects.insert(key, object.clone()) {
                Some(_) => "MODIFIED",
                None => "ADDED",
            };
            kind.tell(version, event, &object);
        });
    }

    fn write(
        &self,
        kind: &str,
        mut object: Value,
        change: impl FnOnce(&mut Kind, String, Value, u64),
    ) {
        let mut content = self.lock();
        let version = *self.version.borrow() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = format!("{namespace}/{name}");
        change(content.kind(kind), key, object, version);
        drop(content);
        self.version.send_replace(version);
    }
}

impl Content {
    fn kind(&mut self, kind: &str) -> &mut Kind {
        self.kinds.entry(kind.to_owned()).or_default()
    }
}

impl Kind {
    fn tell(&mut self, version: u64, event: &str, object: &Value) {
        // Field by field, for the API server writes the type first.
        let line = format!("{{\"type\":\"{event}\",\"object\":{object}}}\n");
        self.log.push((version, line));
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn serve_connection(
    cluster: Arc<Cluster>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let service = service_fn(move |request| {
        let cluster = cluster.clone();
        async move {
            if [Method::POST, Method::PATCH].contains(request.method()) {
                let write = received(request).await;
                return Ok::<_, Infallible>(writes::answer_write(&cluster, write));
            }
            Ok(answer(&cluster, &request))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // Clients hang up whenever they like.
    let _ = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn received(request: Request<Incoming>) -> Write {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Write {
        method: head.method,
        target: head.uri.to_string(),
        content_type: head.headers["content-type"].to_str().unwrap().to_owned(),
        body: serde_json::from_slice(&body).unwrap(),
    }
}

fn answer(cluster: &Arc<Cluster>, request: &Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let agent = request.headers().get("user-agent");
    let mut content = cluster.lock();
    content.requests.push(format!(
        "{path}?{} {}",
        request.uri().query().unwrap_or_default(),
        agent.map_or("", |agent| agent.to_str().unwrap())
    ));
    let authorization = request.headers().get("authorization");
    content.authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
    let versionless = content.versionless;
    let watching = query.get("watch").is_some_and(|watch| watch == "true");
    let Some(kind) = content.kinds.get(&path) else {
        return status(StatusCode::NOT_FOUND);
    };
    if let Some(code) = kind.refused {
        return status(code);
    }
    if !watching {
        return json(StatusCode::OK, &list(kind, &query, cluster, versionless));
    }
    if let Some(code) = kind.watch_refused {
        return status(code);
    }
    let from: u64 = query["resourceVersion"].parse().unwrap();
    if from < kind.forgotten {
        if kind.forgets_by_status {
            return status(StatusCode::GONE);
        }
        let error = json!({
            "type": "ERROR",
            "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": 410, "reason": "Expired", "message": "too old resource version",
            },
        });
        return json(StatusCode::OK, &error);
    }
    drop(content);
    follow(cluster.clone(), path, from)
}

fn list(
    kind: &Kind,
    query: &BTreeMap<String, String>,
    cluster: &Cluster,
    versionless: bool,
) -> Value {
    let skip: usize = query.get("continue").map_or(0, |at| at.parse().unwrap());
    let limit: usize = query
        .get("limit")
        .map_or(usize::MAX, |limit| limit.parse().unwrap());
    let items: Vec<&Value> = kind.objects.values().skip(skip).take(limit).collect();
    let seen = skip + items.len();
    let more = (seen < kind.objects.len()).then(|| seen.to_string());
    let mut metadata = json!({});
    if !versionless {
        metadata["resourceVersion"] = json!(cluster.version.borrow().to_string());
    }
    if let Some(more) = more {
        metadata["continue"] = json!(more);
    }
    json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
}

/// Everything after a version, until the watches are broken.
fn follow(cluster: Arc<Cluster>, path: String, from: u64) -> Answer {
    let versions = cluster.version.subscribe();
    let mut broken = cluster.broken.subscribe();
    let lines = stream::unfold(
        (cluster, path, from, versions),
        |(cluster, path, from, mut versions)| async move {
            loop {
                let now = *versions.borrow_and_update();
                let lines: String = cluster.lock().kinds[&path]
                    .log
                    .iter()
                    .filter(|(version, _)| (from + 1..=now).contains(version))
                    .map(|(_, line)| line.as_str())
                    .collect();
                if !lines.is_empty() {
                    let frame = Ok(Frame::data(Bytes::from(lines)));
                    return Some((frame, (cluster, path, now, versions)));
                }
                versions.changed().await.ok()?;
            }
        },
    );
    let broken = async move {
        let _ = broken.changed().await;
    };
    let body = StreamBody::new(lines.take_until(Box::pin(broken)));
    Response::new(body.boxed_unsync())
}

fn status(code: StatusCode) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code.as_u16(), "message": code.canonical_reason(), "reason": "",
    });
    json(code, &status)
}

fn json(code: StatusCode, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(format!("{value}\n")));
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = code;
    answer
}
