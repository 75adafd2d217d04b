//! How a scenario is run: in a lab of its own, one at a time, with last words when it fails.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgemesh_lab::{Lab, Node, Sites, SitesBuilder, Stray, StrayKind, test_within};

use crate::cluster::Cluster;

/// Far more than any wait takes that succeeds.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Where the tunnels of all nodes listen.
pub(crate) const TUNNEL_PORT: u16 = 20006;

/// Scenarios measure, and would measure each other.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a test in a lab that may take `limit`, when no other test of this file does.
pub(crate) fn in_lab_within<F>(limit: Duration, body: F) -> Result<()>
where
    F: FnOnce(&Lab) -> Result<()>,
{
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test_within(limit, body)
}

/// As [`in_lab_within`], with the time that most take.
pub(crate) fn in_lab<F>(body: F) -> Result<()>
where
    F: FnOnce(&Lab) -> Result<()>,
{
    in_lab_within(Duration::from_secs(180), body)
}

/// Starts all agents on these sites, plays `scene` and checks that nobody sent anything to
/// places outside the cluster.
pub(crate) fn play(
    lab: &Lab,
    sites: SitesBuilder,
    scene: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    play_from_the_start(lab, sites, |cluster| {
        cluster.start_all()?;
        scene(cluster)
    })
}

/// As [`play`], but the scene starts the agents.
pub(crate) fn play_from_the_start(
    lab: &Lab,
    sites: SitesBuilder,
    scene: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    play_unchecked(lab, sites, |cluster| {
        scene(cluster)?;
        check_no_strays(&cluster.sites)
    })
}

/// As [`play_from_the_start`], but what leaves the cluster is the scene's own business.
pub(crate) fn play_unchecked(
    lab: &Lab,
    sites: SitesBuilder,
    scene: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::prepare(lab, sites.create(lab)?)?;
    let played = scene(&mut cluster);
    cluster.keep_logs()?;
    played.with_context(|| cluster.last_words())
}

/// Nothing may leave the cluster but attempts to reach a peer's tunnel at the private addresses
/// that its node has: it may be on the same segment, and only trying tells.
pub(crate) fn check_no_strays(sites: &Sites) -> Result<()> {
    let addresses: Vec<IpAddr> = sites.nodes().into_iter().flat_map(addresses_of).collect();
    let tries_a_peer = |stray: &Stray| {
        stray.kind() == StrayKind::Private
            && (stray.protocol, stray.port) == (17, TUNNEL_PORT)
            && addresses.contains(&stray.to)
    };
    let strays: Vec<String> = sites
        .strays()?
        .iter()
        .filter(|stray| !tries_a_peer(stray))
        .map(ToString::to_string)
        .collect();
    ensure!(
        strays.is_empty(),
        "packets left the cluster:\n{}",
        strays.join("\n")
    );
    Ok(())
}

fn addresses_of(node: &Node) -> Vec<IpAddr> {
    let v6 = node.ipv6().map(IpAddr::V6);
    let own = [IpAddr::V4(node.ipv4())].into_iter().chain(v6);
    own.chain(node.pod_gateways()).collect()
}
