//! Nodes on sites of their own reach each other's pods through the tunnel, with the API
//! server as the only one who tells them of each other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_catalog::PublicKey;
use edgemesh_lab::{Nat, Traffic, await_ok, test_within};
use http::Method;
use serde_json::{Value, json};

use crate::agents_rights::MESH_NODES;
use crate::api::KubeApi;
use crate::site_cluster::{Member, PATIENCE, SiteCluster, mesh_node};

/// How long a scenario may take.
const LIMIT: Duration = Duration::from_secs(240);
/// Nobody promised when a returned API server is found again; retries wait in between.
const FOUND_AGAIN: Duration = Duration::from_secs(90);
/// How often a held connection says something.
const HELD_EVERY: Duration = Duration::from_millis(50);

#[test]
fn nodes_behind_nats_find_each_other_by_their_mesh_nodes() -> Result<()> {
    test_within(LIMIT, |lab| {
        SiteCluster::with(lab, Nat::PortPreserving, |cluster| {
            cluster.start_agents()?;
            published(cluster)?;
            answered_across_sites(cluster)
        })
    })
}

#[test]
fn a_peer_is_who_it_was_whatever_mesh_nodes_say() -> Result<()> {
    test_within(LIMIT, |lab| {
        SiteCluster::with(lab, Nat::PortPreserving, |cluster| {
            cluster.start_agents()?;
            let SiteCluster { edge1, edge2, .. } = &*cluster;
            edge1.await_answered_by(edge2)?;
            let held = edge1.client.hold(&edge2.echo(), HELD_EVERY)?;
            held.await_echo(PATIENCE)?;
            stolen_key(cluster).context("another node with the key of edge2")?;
            held.await_echo(PATIENCE)?;
            changed_key(cluster).context("edge2 with another key")?;
            held.await_echo(PATIENCE)?.check_whole()?;
            edge1.answered_by(edge2)?;
            node_gone(cluster).context("edge2 without its Node")
        })
    })
}

#[test]
fn an_agent_that_starts_without_api_server_reaches_peers_of_its_last_good_catalog() -> Result<()> {
    test_within(LIMIT, |lab| {
        SiteCluster::with(lab, Nat::Symmetric, |cluster| {
            cluster.start_agents()?;
            cluster.edge1.await_answered_by(&cluster.edge2)?;
            let before = mesh_node(&cluster.api()?, cluster.edge1.name())?;
            cluster.edge1.stop_agent()?;
            cluster.control_plane.kill_api_server()?;
            cluster.edge1.start_agent()?;
            found_from_memory(cluster)?;
            cluster.control_plane.start_api_server()?;
            published_anew(cluster, &before)
        })
    })
}

/// The agent of `edge1`, which knows of peers what it wrote down, is known to them.
fn found_from_memory(cluster: &SiteCluster) -> Result<()> {
    let SiteCluster {
        cloud,
        edge1,
        edge2,
        ..
    } = cluster;
    edge1.await_answered_by(edge2)?;
    edge2.await_answered_by(edge1)?;
    // No hole leads through two symmetric NATs.
    await_path(edge1, edge2, "relayed", &cloud.node.ipv4().to_string())
}

/// The present run of the agent of `edge1` says what it is, with the key that it had.
fn published_anew(cluster: &SiteCluster, before: &Value) -> Result<()> {
    let (api, edge1) = (cluster.api()?, &cluster.edge1);
    await_ok(FOUND_AGAIN, "the API server knows of the new run", || {
        let now = mesh_node(&api, edge1.name())?;
        let run = |object: &Value| object["spec"]["bootID"].clone();
        ensure!(run(&now) != run(before), "still the one before: {now}");
        let key = |object: &Value| object["spec"]["publicKey"].clone();
        ensure!(key(&now) == key(before), "another key: {now}, was {before}");
        Ok(())
    })?;
    edge1.answered_by(&cluster.edge2)
}

/// Each agent writes with its rights what it says of itself.
fn published(cluster: &SiteCluster) -> Result<()> {
    let api = cluster.api()?;
    for member in cluster.members() {
        let what = format!("{} says that it is ready", member.name());
        await_ok(PATIENCE, &what, || {
            let (object, status) = (mesh_node(&api, member.name())?, member.status()?);
            let key = object["spec"]["publicKey"] == status.public_key()?;
            ensure!(key, "it has another key: {object}");
            let ready = &object["status"]["conditions"][0];
            ensure!(ready["type"] == "Ready", "{object}");
            ensure!(ready["status"] == "True", "{object}");
            Ok(())
        })?;
    }
    Ok(())
}

fn answered_across_sites(cluster: &SiteCluster) -> Result<()> {
    let SiteCluster {
        cloud,
        edge1,
        edge2,
        ..
    } = cluster;
    for (from, to) in [
        (edge1, edge2),
        (edge2, edge1),
        (edge1, cloud),
        (cloud, edge2),
    ] {
        from.await_answered_by(to)?;
        from.answered_by(to)?;
    }
    let nat = |of: &Member| of.site.uplink().public_address().to_string();
    await_path(edge1, edge2, "direct", &nat(edge2))?;
    await_path(edge2, edge1, "direct", &nat(edge1))?;
    await_path(edge1, cloud, "direct", &cloud.node.ipv4().to_string())
}

/// Waits until `edgemesh-agent status` on `from` says that `to` is reached by this way, and
/// which address or relay is in use.
fn await_path(from: &Member, to: &Member, way: &str, by: &str) -> Result<()> {
    let what = format!("{} reaches {} {way} by {by}", from.name(), to.name());
    await_ok(PATIENCE, &what, || {
        let status = from.status()?;
        let path = status.path_to(to.name())?;
        ensure!(path.0 == way && path.1.contains(by), "{path:?}");
        Ok(())
    })
}

/// Another node claims to have the key of `edge2`: it gets nothing, and `edge2` loses
/// nothing.
fn stolen_key(cluster: &SiteCluster) -> Result<()> {
    let (api, edge1) = (cluster.api()?, &cluster.edge1);
    let key = cluster.edge2.status()?.public_key()?.to_owned();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "thief"}});
    api.apply("/api/v1/nodes/thief", node.to_string())?;
    write_key(&api, "thief", &key)?;
    await_refused(edge1, "thief", "NotSigned", "did not sign its name")?;
    await_event(&api, "thief", "NotSigned")?;
    edge1.answered_by(&cluster.edge2)?;
    for list in [MESH_NODES, "/api/v1/nodes"] {
        api.call(Method::DELETE, &format!("{list}/thief"), "", String::new())?;
    }
    Ok(())
}

/// Somebody writes another key into the MeshNode of `edge2`: its peers stay with the one
/// they know, and its agent puts it right.
fn changed_key(cluster: &SiteCluster) -> Result<()> {
    let (api, edge1, edge2) = (cluster.api()?, &cluster.edge1, &cluster.edge2);
    let (status, name) = (edge2.status()?, edge2.name());
    write_key(&api, name, &somebodys_key())?;
    edge1.answered_by(edge2)?;
    await_event(&api, name, "NotSigned")?;
    await_ok(PATIENCE, "edge2 has its own key again", || {
        let object = mesh_node(&api, name)?;
        let own = object["spec"]["publicKey"] == status.public_key()?;
        ensure!(own, "{object}");
        let refusal = edge1.status()?;
        let refusal = refusal.refusal_of(name);
        ensure!(refusal.is_err(), "{refusal:?}");
        Ok(())
    })
}

/// The Node is deleted: its MeshNode alone makes it no peer, until it is registered again.
fn node_gone(cluster: &SiteCluster) -> Result<()> {
    let (api, edge1, edge2) = (cluster.api()?, &cluster.edge1, &cluster.edge2);
    let path = format!("/api/v1/nodes/{}", edge2.name());
    let held = edge1.client.hold(&edge2.echo(), HELD_EVERY)?;
    held.await_echo(PATIENCE)?;
    api.call(Method::DELETE, &path, "", String::new())?;
    for other in [edge1, &cluster.cloud] {
        await_refused(other, edge2.name(), "NodeGone", "no Node of that name")?;
        other.await_believed(1)?;
    }
    await_event(&api, edge2.name(), "NodeGone")?;
    let peer = edge1.status()?;
    let peer = peer.path_to(edge2.name());
    ensure!(peer.is_err(), "it still is a peer: {peer:?}");
    await_ok(PATIENCE, "its connections are cut", || {
        held.report().broken.map(drop).context("it goes on")
    })?;
    let answer = edge1.answered_by(edge2);
    ensure!(answer.is_err(), "it still answers");
    api.apply_node(&edge2.node)?;
    edge1.await_believed(2)?;
    edge1.await_answered_by(edge2)
}

/// Waits until the agent of `by` says of a MeshNode that it does not believe it, and why.
fn await_refused(by: &Member, node: &str, reason: &str, why: &str) -> Result<()> {
    let what = format!("{} refuses {node} for {reason}", by.name());
    await_ok(PATIENCE, &what, || {
        let status = by.status()?;
        let said = status.refusal_of(node)?;
        ensure!(said.0 == reason && said.1.contains(why), "{said:?}");
        Ok(())
    })
}

/// Waits for an Event about a MeshNode.
fn await_event(api: &KubeApi, node: &str, reason: &str) -> Result<()> {
    let what = format!("an Event about {node}: {reason}");
    await_ok(PATIENCE, &what, || {
        let events = api.get("/api/v1/namespaces/default/events")?;
        let events = events["items"].as_array().context("no list")?;
        let told = |event: &&Value| {
            event["involvedObject"]["kind"] == "MeshNode"
                && event["involvedObject"]["name"] == node
                && event["reason"] == reason
        };
        let event = events.iter().find(told).context("there is none")?;
        ensure!(event["type"] == "Warning", "{event}");
        Ok(())
    })
}

/// Writes a MeshNode by hand, with everybody's rights.
fn write_key(api: &KubeApi, name: &str, key: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "edgemesh.kubeedge.io/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "spec": {"publicKey": key},
    });
    api.apply(&format!("{MESH_NODES}/{name}"), object.to_string())
}

/// A key that no node has: that of RFC 8032, section 7.1, test 1.
fn somebodys_key() -> String {
    PublicKey::from_bytes([
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07,
        0x3a, 0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07,
        0x51, 0x1a,
    ])
    .to_string()
}
