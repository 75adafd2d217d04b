//! From site to site: by every kind of path, and through what can happen to one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use edgemesh_lab::traffic::{HeldConnection, RequestLoop};
use edgemesh_lab::{Cut, Family, Nat, Protocol, Traffic, await_ok, await_until};

use super::cluster::{Cluster, Member, ports};
use super::crossing::{Crossing, await_path};
use super::path::Path;
use super::request::{From, Request};
use super::times::ms;
use super::way::Way;
use super::{PATIENCE, Tour};

/// How long kube-proxy alone gets for an answer from another site.
const KUBE_PROXY_GETS: Duration = Duration::from_millis(500);
/// Sizes of datagrams: about nothing, about a packet, EdgeMesh's limit, the most there is.
const SIZES: [usize; 8] = [0, 1, 1200, 1472, 4096, 4097, 9000, 65_507];
/// Bytes of a transfer.
const MEBIBYTES: u64 = 8;
/// How often a held connection says something.
const HELD_EVERY: Duration = Duration::from_millis(20);
/// How long the uplink is away.
const CUT_FOR: Duration = Duration::from_secs(5);

impl Tour {
    pub(super) fn kube_proxy_alone(&mut self) -> Result<()> {
        self.screen.step("kube-proxy alone");
        self.cluster.start_kube_proxies()?;
        self.ask_own_service(Way::KubeProxy);
        let Cluster { cloud, edge1, .. } = &self.cluster;
        let (name, address) = (edge1.name(), cloud.cluster_ip(Family::V4)?);
        let lost = edge1.client.keep_asking(
            Protocol::Tcp,
            &format!("{address}:{}", ports::HTTP),
            KUBE_PROXY_GETS,
            KUBE_PROXY_GETS,
        )?;
        let over = || !lost.log().requests.is_empty();
        await_until(PATIENCE, "a request is over", over)?;
        let log = lost.stop()?;
        if log.answered() == 0 {
            self.screen.remark(&format!(
                "{name} asks {} in the cloud: no answer within {}",
                cloud.service_name(),
                ms(KUBE_PROXY_GETS)
            ));
        } else {
            self.screen.promise(Err(anyhow!(
                "{name} reaches the cloud without an agent: the sites are not apart"
            )));
        }
        Ok(())
    }

    pub(super) fn requests_cross(&mut self) -> Result<()> {
        self.screen
            .step("From site to site, by ClusterIP; times in milliseconds");
        let cluster = &self.cluster;
        let Cluster {
            cloud,
            edge1,
            edge2,
            ..
        } = cluster;
        self.screen.crossings("first");
        for (from, to, path) in [
            (edge1, cloud, Path::Direct),
            (cloud, edge2, Path::Direct),
            (edge1, edge2, Path::HolePunched),
        ] {
            let between = || format!("{} -> {}", from.name(), to.name());
            let first = Crossing::of_strangers(cluster, (from, to), &path);
            self.screen.crossing(first.with_context(between));
            for request in further(from, to) {
                let next = Crossing::of_acquainted(cluster, &request, &path);
                self.screen.crossing(next.with_context(between));
            }
        }
        let whole = transfer(edge1, edge2);
        self.screen.promise(whole);
        let datagrams = datagrams(edge1, edge2);
        self.screen.promise(datagrams);
        self.held = Some(hold(edge1, edge2).context("hold a connection through what follows")?);
        Ok(())
    }

    pub(super) fn behind_a_symmetric_nat(&mut self) -> Result<()> {
        let Cluster { edge1, edge2, .. } = &self.cluster;
        self.screen.step(&format!(
            "The router before {} is replaced: a symmetric NAT, no holes",
            edge2.name()
        ));
        let held = held(&self.held)?;
        held.forget_stalls();
        edge2.site.set_nat(Nat::Symmetric)?;
        let moved = await_path(&self.cluster, (edge1, edge2), &Path::Relayed);
        let moved = moved.and_then(|()| held.await_echo(PATIENCE));
        self.screen.promise(moved.map(|report| {
            format!(
                "a connection of {} to {} moves to the relay and goes on, after {} of silence",
                edge1.name(),
                edge2.service_name(),
                ms(report.longest_stall)
            )
        }));
        self.screen.crossings("first");
        let [tcp, udp] = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| Request::new(edge1, edge2, protocol))
            .map(|request| Crossing::of_acquainted(&self.cluster, &request, &Path::Relayed));
        self.screen
            .crossing(tcp.map(|row| row.between(edge1, edge2)));
        self.screen.crossing(udp);
        Ok(())
    }

    pub(super) fn an_uplink_is_cut(&mut self) -> Result<()> {
        let Cluster { cloud, edge1, .. } = &self.cluster;
        self.screen.step(&format!(
            "The uplink of {} is cut for {} s",
            edge1.name(),
            CUT_FOR.as_secs()
        ));
        let held = held(&self.held)?;
        held.forget_stalls();
        let uplink = edge1.site.uplink();
        let cut_at = Instant::now();
        uplink.cut(Cut::Silent)?;
        let asking = ask_on(edge1, cloud)?;
        let own = Request::new(edge1, edge1, Protocol::Tcp).make(self.cluster.flavour, Way::Agent);
        await_until(CUT_FOR * 2, "the cut is over", || {
            self.inside.interrupted() || cut_at.elapsed() >= CUT_FOR
        })?;
        uplink.restore()?;
        let (back_at, on_the_clock) = (Instant::now(), asking.now());
        let on_again = held.await_echo(PATIENCE);
        let held_after = back_at.elapsed();
        let first = await_ok(PATIENCE, "a new connection is answered", || {
            let first = asking.log().since(on_the_clock).first_answer();
            first.context("none is")
        });
        let direct = await_path(&self.cluster, (edge1, cloud), &Path::Direct);
        let direct_after = back_at.elapsed();
        self.screen.promise(
            own.map(|took| format!("meanwhile its own Service answers as ever, in {}", ms(took))),
        );
        self.screen.promise(first.map(|first| {
            format!(
                "back: a new connection to the cloud is answered after {}",
                ms(first.saturating_sub(on_the_clock))
            )
        }));
        self.screen.promise(direct.map(|()| {
            format!(
                "the path to the cloud is {} again after {}",
                Path::Direct,
                ms(direct_after)
            )
        }));
        self.screen.promise(on_again.map(|report| {
            format!(
                "the connection from before the router was replaced goes on after {}: {} numbers \
                 sent and echoed over it, all in order",
                ms(held_after),
                report.echoed
            )
        }));
        Ok(())
    }
}

/// The requests after the first, from one site to another.
fn further<'c>(from: &'c Member, to: &'c Member) -> [Request<'c>; 2] {
    [
        Request::new(from, to, Protocol::Udp),
        Request {
            from: From::Host,
            family: Family::V6,
            ..Request::new(from, to, Protocol::Tcp)
        },
    ]
}

/// Many bytes after a half-close.
fn transfer(from: &Member, to: &Member) -> Result<String> {
    let address = format!("{}:{}", to.cluster_ip(Family::V4)?, ports::FILES);
    let transfer = from.client.download(&address, 1, MEBIBYTES << 20)?;
    Ok(format!(
        "{} -> {}: a request, half-closed, then {MEBIBYTES} MiB of answer: every byte right, in {}",
        from.name(),
        to.name(),
        ms(transfer.took)
    ))
}

fn datagrams(from: &Member, to: &Member) -> Result<String> {
    let address = format!("{}:{}", to.cluster_ip(Family::V4)?, ports::ECHO);
    from.client
        .datagrams_of(&address, SIZES)?
        .check_all_answered()?;
    Ok(format!(
        "{} -> {}: datagrams of {} to {} bytes come back whole",
        from.name(),
        to.name(),
        SIZES[0],
        SIZES[SIZES.len() - 1]
    ))
}

fn hold(from: &Member, to: &Member) -> Result<HeldConnection> {
    let address = format!("{}:{}", to.cluster_ip(Family::V4)?, ports::ECHO);
    from.client.hold(&address, HELD_EVERY)
}

fn held(held: &Option<HeldConnection>) -> Result<&HeldConnection> {
    held.as_ref()
        .context("there was no connection to hold through this")
}

fn ask_on(from: &Member, to: &Member) -> Result<RequestLoop> {
    let address = format!("{}:{}", to.cluster_ip(Family::V4)?, ports::HTTP);
    let (pause, patience) = (Duration::from_millis(20), Duration::from_millis(500));
    from.client
        .keep_asking(Protocol::Tcp, &address, pause, patience)
}
