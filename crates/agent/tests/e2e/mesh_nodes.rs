//! MeshNodes in the real API server: what it takes, from whom, and who learns of it.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::{Catalog, KeySignature, MeshNode, NodeName, PublicKey, RelayServer};
use edgemesh_lab::{Lab, Node, Place, await_ok};
use edgemesh_watch::{
    ApiSettings, ApiSource, ApiTiming, ApiWay, Condition, MeshNodePublisher, OwnMeshNode,
    PeerEvent, PeerEvents, Publication, PublishTiming, SourceState,
};
use http::Method;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::agents_rights::{
    MESH_NODES, POLICIES, apply_crd, apply_policy, kubeconfig_of_the_agents_pod,
};
use crate::api::KubeApi;
use crate::cluster::PATIENCE;
use crate::control_plane::ControlPlane;
use crate::logs::{Logs, show};
use crate::programs::Programs;

/// What the policy says to whom it denies something.
const DENIED: &str = "by the agent of that node only";
/// How long an API server may take to act on a policy that it was given.
const POLICY_IN_FORCE: Duration = Duration::from_secs(60);

#[test]
fn the_crd_takes_what_an_agent_says_and_nothing_else() -> Result<()> {
    edgemesh_lab::test(|lab| in_cluster(lab, SERVER_SIDE_APPLY, taken_and_refused))
}

#[test]
fn an_agent_publishes_what_it_is_with_no_more_than_its_rights() -> Result<()> {
    edgemesh_lab::test(|lab| in_cluster(lab, SERVER_SIDE_APPLY, published_and_kept))
}

#[test]
fn an_agent_writes_its_own_mesh_node_and_no_other() -> Result<()> {
    edgemesh_lab::test(|lab| in_cluster(lab, POLICIES, own_and_no_other))
}

fn taken_and_refused(cluster: &Cluster) -> Result<()> {
    let api = cluster.api()?;
    apply_crd(&api, &cluster.node)?;
    let good = good();
    let apply = |object: &Value| api.apply(&path("edge-1"), object.to_string());
    await_ok(PATIENCE, "the server serves MeshNodes", || apply(&good))?;
    for (pointer, wrong) in wrong_values() {
        let mut object = good.clone();
        *object.pointer_mut(pointer).context(pointer)? = wrong.clone();
        let refused = apply(&object).is_err();
        ensure!(refused, "{pointer} was taken with {wrong}");
    }
    let mut keyless = good.clone();
    let spec = keyless["spec"].as_object_mut().context("a spec")?;
    spec.remove("publicKey");
    let refused = api.apply(&path("edge-2"), keyless.to_string()).is_err();
    ensure!(refused, "a MeshNode without a key was taken");
    apply(&good)
}

fn published_and_kept(cluster: &Cluster) -> Result<()> {
    let api = cluster.api()?;
    apply_crd(&api, &cluster.node)?;
    let kubeconfig = kubeconfig_of_the_agents_pod(&cluster.control_plane, &cluster.node)?;
    cluster.at_the_node(|| publish(&api, &kubeconfig))
}

fn own_and_no_other(cluster: &Cluster) -> Result<()> {
    let api = cluster.api()?;
    apply_crd(&api, &cluster.node)?;
    apply_policy(&api)?;
    let kubeconfig = kubeconfig_of_the_agents_pod(&cluster.control_plane, &cluster.node)?;
    await_ok(POLICY_IN_FORCE, "the policy is in force", || {
        let other = good_named("another");
        let by_agent = KubeApi::new(cluster.node.namespace(), kubeconfig.clone());
        let refused = by_agent.apply(&path("another"), other.to_string());
        let said = format!("{:#}", refused.err().context("it was let")?);
        ensure!(said.contains(DENIED), "{said}");
        Ok(())
    })?;
    cluster.at_the_node(|| publish_as_two(&kubeconfig))
}

/// With the rights of the agent of `edge-1`, and as the agent does it.
async fn publish(api: &KubeApi, kubeconfig: &Path) -> Result<()> {
    let settings = settings(kubeconfig);
    let mut tasks = JoinSet::new();
    let (source, mut states) =
        ApiSource::new(settings.clone(), ApiTiming::default(), None, <_>::default());
    tasks.spawn(source.run(CancellationToken::new()));

    let mut own = publisher(&mut tasks, &settings, "edge-1", &states);
    let written = until(&mut own, |seen| seen.written_at.is_some()).await?;
    ensure!(written.trouble.is_none(), "{written:?}");
    until(&mut states, |state| {
        peers_read(&state.catalog) == Some(own_node("edge-1"))
    })
    .await
    .context("peers read what was written")?;
    let object = api.get(&path("edge-1"))?;
    let ready = &object["status"]["conditions"][0];
    ensure!(ready["type"] == "Ready", "without status: {object}");

    api.call(Method::DELETE, &path("edge-1"), "", String::new())?;
    until(&mut own, |seen| seen.overwritten > 0).await?;
    await_back(&mut states, &object["metadata"]["uid"]).await?;
    tell_of_a_peer(api, &settings, &states).await
}

/// What the catalog has of `edge-1`, without what the server added.
fn peers_read(catalog: &Catalog) -> Option<MeshNode> {
    let node = catalog.mesh_node(&NodeName::new("edge-1"))?;
    node.uid.as_deref()?;
    Some(MeshNode {
        uid: None,
        ..(**node).clone()
    })
}

/// With the token of the agent of `edge-1`, once as that and once as another node's.
async fn publish_as_two(kubeconfig: &Path) -> Result<()> {
    let settings = settings(kubeconfig);
    let mut tasks = JoinSet::new();
    let (_, states) = watch::channel(SourceState::default());
    let mut own = publisher(&mut tasks, &settings, "edge-1", &states);
    until(&mut own, |seen| seen.written_at.is_some()).await?;
    let mut foreign = publisher(&mut tasks, &settings, "edge-2", &states);
    let failed = until(&mut foreign, |seen| seen.trouble.is_some()).await?;
    let said = failed.trouble.unwrap_or_default();
    ensure!(said.contains(DENIED), "{said}");
    ensure!(failed.written_at.is_none(), "it was written all the same");
    Ok(())
}

async fn await_back(states: &mut watch::Receiver<SourceState>, before: &Value) -> Result<()> {
    until(states, |state| {
        let node = state.catalog.mesh_node(&NodeName::new("edge-1"));
        let uid = node.and_then(|node| node.uid.as_deref());
        uid.is_some() && uid != before.as_str()
    })
    .await
    .map(|_| ())
    .context("the deleted MeshNode is put back")
}

async fn tell_of_a_peer(
    api: &KubeApi,
    settings: &ApiSettings,
    states: &watch::Receiver<SourceState>,
) -> Result<()> {
    let (sender, told) = mpsc::channel(1);
    let by = NodeName::new("edge-1");
    let events = PeerEvents::to_api(settings.clone(), by, Duration::ZERO, told, states.clone());
    sender
        .send(PeerEvent {
            node: NodeName::new("edge-1"),
            reason: "DuplicateKey",
            message: "has the key of another node".to_owned(),
        })
        .await?;
    drop(sender);
    events.run(CancellationToken::new()).await;
    let events = api.get("/api/v1/namespaces/default/events")?;
    let items = events["items"].as_array().context("no events")?;
    let found = items.iter().any(|event| event["reason"] == "DuplicateKey");
    ensure!(found, "there is no Event: {items:?}");
    Ok(())
}

fn publisher(
    tasks: &mut JoinSet<()>,
    settings: &ApiSettings,
    name: &str,
    states: &watch::Receiver<SourceState>,
) -> watch::Receiver<Publication> {
    let (_, own) = watch::channel(Some(OwnMeshNode {
        node: own_node(name),
        conditions: vec![Condition {
            kind: "Ready".into(),
            status: Some(true),
            reason: "Listening".into(),
            // Not empty: a 1.20 that was built with Go 1.18 or later takes "" for null.
            message: "UDP port 20006".into(),
            since: UNIX_EPOCH,
        }],
    }));
    let (publisher, publication) = MeshNodePublisher::to_api(
        settings.clone(),
        PublishTiming::default(),
        own,
        states.clone(),
    );
    tasks.spawn(publisher.run(CancellationToken::new()));
    publication
}

async fn until<T: Clone>(
    seen: &mut watch::Receiver<T>,
    wanted: impl FnMut(&T) -> bool,
) -> Result<T> {
    let seen = timeout(PATIENCE, seen.wait_for(wanted));
    Ok(seen.await.context("not in time")??.clone())
}

fn settings(kubeconfig: &Path) -> ApiSettings {
    ApiSettings {
        way: ApiWay::Kubeconfig(kubeconfig.to_owned()),
        qps: 0.0,
        burst: 1,
        socket_mark: None,
        user_agent: "edgemesh-e2e".to_owned(),
    }
}

/// A control plane and one node, on which nothing runs.
struct Cluster {
    control_plane: ControlPlane,
    node: Node,
}

/// Server-side apply, since 1.18 in every server.
const SERVER_SIDE_APPLY: u32 = 18;

/// Runs `scenario` in a new cluster, if Kubernetes is 1.`minor` or later.
fn in_cluster(lab: &Lab, minor: u32, scenario: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let programs = Programs::find()?;
    if programs.minor < minor {
        show(&format!(
            "Kubernetes 1.{} is older than 1.{minor}, which this scenario needs",
            programs.minor
        ));
        return Ok(());
    }
    let logs = Logs::new()?;
    let cluster = Cluster {
        control_plane: ControlPlane::start(lab, &programs, logs.folder()?)?,
        node: lab.node("edge-1").create()?,
    };
    scenario(&cluster)?;
    logs.discard();
    Ok(())
}

impl Cluster {
    fn api(&self) -> Result<KubeApi> {
        self.control_plane.api()
    }

    /// Runs this with the network of the node.
    fn at_the_node<F: Future<Output = Result<()>>>(
        &self,
        job: impl FnOnce() -> F + Send,
    ) -> Result<()> {
        self.node.namespace().run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(job())
        })?
    }
}

fn path(name: &str) -> String {
    format!("{MESH_NODES}/{name}")
}

fn own_node(name: &str) -> MeshNode {
    MeshNode {
        name: NodeName::new(name),
        uid: None,
        public_key: PublicKey::from_bytes([7; 32]),
        name_signature: Some(Box::new(KeySignature::from_bytes([9; 64]))),
        addresses: vec![
            ([203, 0, 113, 7], 20006).into(),
            ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 20006).into(),
        ],
        relay_url: Some("http://203.0.113.1:20007".into()),
        relay_server: Some(Box::new(RelayServer {
            urls: vec!["https://relay.example.org".into()],
            address_discovery_port: 20008,
        })),
        pod_cidrs: Vec::new(),
        probe: None,
        version: "1.2.3".into(),
        boot_id: "b-1".into(),
        previous_key: None,
    }
}

fn good() -> Value {
    good_named("edge-1")
}

fn good_named(name: &str) -> Value {
    let key = PublicKey::from_bytes([7; 32]).to_string();
    json!({
        "apiVersion": "edgemesh.kubeedge.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "spec": {
            "publicKey": key,
            "nameSignature": format!("{}==", "A".repeat(86)),
            "addresses": ["203.0.113.7:20006", "[2001:db8::7]:20006"],
            "relayURL": "http://203.0.113.1:20007",
            "relayServer": {"urls": ["https://relay.example.org"], "addressDiscoveryPort": 20008},
            "podCIDRs": ["10.244.1.0/24", "fd00:10:244::/64"],
            "version": "1.2.3",
            "bootID": "b-1",
            "renewTime": "2026-01-02T03:04:05Z",
            "previousKey": {"publicKey": key, "signature": format!("{}==", "A".repeat(86))},
        },
    })
}

/// What each field must not hold.
fn wrong_values() -> Vec<(&'static str, Value)> {
    let many: Vec<String> = (1..=17).map(|port| format!("203.0.113.7:{port}")).collect();
    vec![
        ("/spec/publicKey", json!("c2hvcnQ=")),
        ("/spec/publicKey", json!(format!("{}B=", "A".repeat(42)))),
        ("/spec/nameSignature", json!("AAAA")),
        ("/spec/addresses", json!(many)),
        ("/spec/addresses/0", json!("relay.example.org:20006")),
        ("/spec/addresses/0", json!("203.0.113.7")),
        ("/spec/relayURL", json!("ftp://203.0.113.1")),
        (
            "/spec/relayURL",
            json!(format!("http://{}", "r".repeat(256))),
        ),
        ("/spec/relayServer/urls", json!([])),
        ("/spec/relayServer/addressDiscoveryPort", json!(65536)),
        ("/spec/podCIDRs/0", json!("10.244.1.0")),
        ("/spec/version", json!("1 2")),
        ("/spec/bootID", json!("b".repeat(65))),
        ("/spec/renewTime", json!("today")),
        ("/spec/previousKey/signature", json!("AAAA")),
    ]
}
