//! What a cluster has for agents: the definition of MeshNodes, and the rights that are
//! shipped, in the hands of pods.

use std::path::PathBuf;

use anyhow::{Context, Result};
use edgemesh_lab::{Node, Place};
use http::Method;
use serde_json::{Value, json};

use crate::api::KubeApi;
use crate::control_plane::ControlPlane;

const CLUSTER_ROLE: &str = include_str!("../../../../deploy/rbac/cluster-role.yaml");
const EVENTS_ROLE: &str = include_str!("../../../../deploy/rbac/events-role.yaml");
const POLICY: &str = include_str!("../../../../deploy/rbac/own-mesh-node.yaml");
/// Where MeshNodes are.
pub(crate) const MESH_NODES: &str = "/apis/edgemesh.kubeedge.io/v1alpha1/meshnodes";
/// The minor version of Kubernetes since which there are policies, and tokens that tell the
/// node of their pod.
pub(crate) const POLICIES: u32 = 30;
/// The namespace of the agents' pods.
const NAMESPACE: &str = "/api/v1/namespaces/kubeedge";

/// Defines MeshNodes as `edgemesh-agent crd` prints it.
pub(crate) fn apply_crd(api: &KubeApi, node: &Node) -> Result<()> {
    let crd = node
        .program(env!("CARGO_BIN_EXE_edgemesh-agent"))
        .arg("crd")
        .run()?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.apply(&format!("{path}/meshnodes.edgemesh.kubeedge.io"), crd)
}

/// Lets each agent write its own MeshNode only; for servers that know [`POLICIES`].
pub(crate) fn apply_policy(api: &KubeApi) -> Result<()> {
    let (policy, binding) = POLICY.split_once("\n---\n").context("one document")?;
    let group = "/apis/admissionregistration.k8s.io/v1";
    for (list, document) in [
        ("validatingadmissionpolicies", policy),
        ("validatingadmissionpolicybindings", binding),
    ] {
        let path = format!("{group}/{list}/edgemesh-agent-own-mesh-node");
        api.apply(&path, document.to_owned())?;
    }
    Ok(())
}

/// Registers the node, lets a pod with the rights of the agent be on it, and has a token
/// made for that pod as kubelet would. Returns the kubeconfig with the token.
pub(crate) fn kubeconfig_of_the_agents_pod(
    control_plane: &ControlPlane,
    node: &Node,
) -> Result<PathBuf> {
    let api = control_plane.api()?;
    api.apply_node(node)?;
    for (path, document) in rights() {
        api.apply(path, document)?;
    }
    let name = format!("edgemesh-agent-{}", node.name());
    let path = format!("{NAMESPACE}/pods/{name}");
    api.apply(&path, pod(&name, node).to_string())?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod",
            "name": name, "uid": api.get(&path)?["metadata"]["uid"],
        }},
    });
    let answer = api.call(
        Method::POST,
        &format!("{NAMESPACE}/serviceaccounts/edgemesh-agent/token"),
        "application/json",
        request.to_string(),
    )?;
    let answer: Value = serde_json::from_str(&answer)?;
    let token = answer["status"]["token"].as_str().context("no token")?;
    control_plane.kubeconfig_with_token(&name, token)
}

fn pod(name: &str, node: &Node) -> Value {
    let mut pod = named("Pod", name);
    pod["spec"] = json!({
        "nodeName": node.name(),
        "serviceAccountName": "edgemesh-agent",
        // Servers before 1.21 else wait for a controller that does not run here.
        "automountServiceAccountToken": false,
        "containers": [{"name": "agent", "image": "edgemesh-agent"}],
    });
    pod
}

/// What the agents of a cluster need, by path.
fn rights() -> Vec<(&'static str, String)> {
    vec![
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/edgemesh-agent",
            CLUSTER_ROLE.to_owned(),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/edgemesh-agent",
            binding("ClusterRole", "edgemesh-agent").to_string(),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/edgemesh-agent-events",
            EVENTS_ROLE.to_owned(),
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/\
             edgemesh-agent-events",
            binding("Role", "edgemesh-agent-events").to_string(),
        ),
        (NAMESPACE, named("Namespace", "kubeedge").to_string()),
        (
            "/api/v1/namespaces/kubeedge/serviceaccounts/edgemesh-agent",
            named("ServiceAccount", "edgemesh-agent").to_string(),
        ),
    ]
}

fn binding(kind: &str, name: &str) -> Value {
    let rbac = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": format!("{rbac}/v1"), "kind": format!("{kind}Binding"),
        "metadata": {"name": name},
        "roleRef": {"apiGroup": rbac, "kind": kind, "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "namespace": "kubeedge", "name": "edgemesh-agent"}
        ],
    })
}

fn named(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}})
}
