//! A node's key is changed in order, or is simply another one day: the first costs no
//! connection, the second is refused until somebody who may decide has decided.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{
    Background, Lab, Place, Protocol, Signal, Sites, Traffic, await_ok, await_until,
};

use crate::cluster::{Cluster, ECHO, IDENTITY};
use crate::places::{At, Of, On};
use crate::scenario::{LONG, in_lab, play, play_unchecked};

const EVERY: Duration = Duration::from_millis(20);
/// Longer than any of these scenarios: nothing is cut before its client ends it.
const GRACE: &str = "120s";

/// To the node whose key changes, and from there.
const ACROSS: [(On, At); 2] = [
    (On::Cloud1, At(On::Edge1, Of::Pod)),
    (On::Edge1, At(On::Cloud1, Of::Pod)),
];

/// Waits until the node whose key changes reaches the other, and is reached.
fn await_across(cluster: &Cluster) -> Result<()> {
    await_ok(LONG, "both reach each other", || {
        for (from, to) in ACROSS {
            cluster.pod(from).ask(to.cluster_ip(IDENTITY), "?")?;
        }
        Ok(())
    })
}

/// The next process on a node, which takes over from the one that runs.
fn take_over(lab: &Lab, cluster: &Cluster, on: On) -> Result<Background> {
    let log = lab.folder().join(format!("next-on-{}.log", on.name()));
    let command = cluster.member(on).agent.run_command();
    let mut next = command.arg("--take-over").start(log)?;
    next.await_log(LONG, "this agent holds the node now")?;
    next.await_log(LONG, "MeshNode is published")?;
    Ok(next)
}

fn rotate(cluster: &Cluster, on: On) -> Result<String> {
    let agent = &cluster.member(on).agent;
    let rotate = agent.command("rotate-key").arg("--state-dir");
    rotate.arg(agent.state_folder()).run()
}

/// The key that the MeshNode of a node names.
fn published_key(cluster: &Cluster, on: On) -> Result<String> {
    let path = mesh_node(cluster, on.name());
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Deeper in, there is the key before.
    let mut lines = text.lines();
    let key = lines.find_map(|line| line.strip_prefix("  publicKey: "));
    Ok(key.with_context(|| text.clone())?.to_owned())
}

fn mesh_node(cluster: &Cluster, name: &str) -> PathBuf {
    let file = format!("meshnode-{name}.yaml");
    cluster.shared.folder().join(file)
}

/// Waits until cloud1 refuses the MeshNode of this name for `reason`.
fn await_refused(cluster: &Cluster, name: &str, reason: &str) -> Result<()> {
    await_ok(LONG, &format!("{name} is refused: {reason}"), || {
        let refusal = cluster.status(On::Cloud1)?.refusal_of(name);
        ensure!(refusal.as_deref() == Some(reason), "{refusal:?}");
        Ok(())
    })
}

/// Somebody who may write into the folder copies all that `on` says of itself, under a name of
/// his own, and is refused.
fn copied_by_a_thief(cluster: &Cluster, on: On) -> Result<()> {
    const THIEF: &str = "thief";
    let own = fs::read_to_string(mesh_node(cluster, on.name()))?;
    let named = |name| format!("name: \"{name}\"");
    let copy = own.replace(&named(on.name()), &named(THIEF));
    ensure!(copy != own, "{own}");
    let node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {THIEF}}}\n");
    fs::write(cluster.shared.folder().join("node-thief.yaml"), node)?;
    fs::write(mesh_node(cluster, THIEF), copy)?;
    await_refused(cluster, THIEF, "NotSigned")
}

#[test]
fn a_rotated_key_costs_no_connection_when_the_node_is_handed_over() -> Result<()> {
    in_lab(|lab| {
        // The next run listens at a port of its own, which peers try at its private addresses.
        play_unchecked(lab, Sites::builder(), |cluster| {
            cluster.configure_with_grace(GRACE)?;
            cluster.start_all()?;
            copied_by_a_thief(cluster, On::Edge1)?;
            let before = published_key(cluster, On::Edge1)?;
            let (mut held, mut asked) = (Vec::new(), Vec::new());
            for (from, to) in ACROSS {
                let client = cluster.pod(from);
                held.push(client.hold(to.cluster_ip(ECHO), EVERY)?);
                let server = to.cluster_ip(IDENTITY);
                asked.push(client.keep_asking(Protocol::Tcp, server, EVERY, LONG)?);
            }

            let told = rotate(cluster, On::Edge1)?;
            let mut next = take_over(lab, cluster, On::Edge1)?;
            let after = published_key(cluster, On::Edge1)?;
            ensure!(before != after, "the key is still {before}");
            let names = |key: &str| told.contains(key.trim_matches('"'));
            ensure!(names(&before) && names(&after), "{told}");

            for asked in asked {
                let since = asked.now();
                await_until(LONG, "new connections are answered", || {
                    asked.log().since(since).answered() > 50
                })?;
                let log = asked.stop()?;
                println!("{log}");
                ensure!(log.failed() == 0, "{log}");
            }
            copied_by_a_thief(cluster, On::Edge1)?;
            let first = cluster.agent_mut(On::Edge1).process();
            let first = first.context("it does not run")?;
            first.signal(Signal::SIGTERM)?;
            for held in held {
                held.await_echo(LONG)?.check_whole()?;
                held.close().check_whole()?;
            }
            // With these it ends, long before its grace period is over.
            let ended = first.wait(LONG)?;
            ensure!(ended.success(), "{ended}");
            await_across(cluster)?;
            next.stop(LONG)?;
            Ok(())
        })
    })
}

#[test]
fn a_rotated_key_is_believed_after_a_restart_and_a_lost_one_when_the_mesh_node_was_deleted()
-> Result<()> {
    in_lab(|lab| {
        play(lab, Sites::builder(), |cluster| {
            await_across(cluster)?;
            let first = published_key(cluster, On::Edge1)?;
            rotate(cluster, On::Edge1)?;
            cluster.agent_mut(On::Edge1).stop()?;
            cluster.start(&[On::Edge1])?;
            await_across(cluster)?;
            let second = published_key(cluster, On::Edge1)?;
            ensure!(first != second, "the key is still {first}");

            cluster.agent_mut(On::Edge1).stop()?;
            let state = cluster.member(On::Edge1).agent.state_folder();
            fs::remove_file(state.join("tunnel.key"))?;
            cluster.agent_mut(On::Edge1).start()?;
            await_refused(cluster, On::Edge1.name(), "ChangedKey")?;
            let screen = cluster.member(On::Cloud1).agent.command("status").run()?;
            println!("{screen}");
            let words: Vec<&str> = screen.split_whitespace().collect();
            ensure!(words.join(" ").contains("delete the MeshNode"), "{screen}");
            for (from, to) in ACROSS {
                let reached = cluster.pod(from).ask(to.cluster_ip(IDENTITY), "?");
                ensure!(reached.is_err(), "{} got {reached:?}", from.name());
            }

            // Its agent would write it anew at once.
            cluster.agent_mut(On::Edge1).stop()?;
            fs::remove_file(mesh_node(cluster, On::Edge1.name()))?;
            await_ok(LONG, "it is forgotten", || {
                let refusal = cluster.status(On::Cloud1)?.refusal_of(On::Edge1.name());
                ensure!(refusal.is_none(), "{refusal:?}");
                Ok(())
            })?;
            // Until it is a peer again, its endpoints are dialled natively.
            cluster.start(&[On::Edge1])?;
            await_across(cluster)
        })
    })
}
