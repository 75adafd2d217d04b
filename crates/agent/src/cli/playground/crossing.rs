//! Requests across the border between sites: by which path, and how long they took.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use edgemesh_lab::{Protocol, await_ok};

use super::cluster::{Cluster, Member};
use super::path::Path;
use super::request::Request;
use super::times::{in_table, ms};
use super::way::Way;

/// How many requests show what a path costs that is in use.
const WARM: usize = 10;
/// How long a path may take to become the one that is expected.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request that crossed, and those after it.
pub(super) struct Crossing {
    /// From where to where; empty when the line above says it.
    nodes: String,
    request: String,
    first: Duration,
    warm: Duration,
    path: Path,
    at_first: Path,
    /// How long after the first request was begun the path was the one it is.
    settled: Option<Duration>,
}

impl Crossing {
    /// Makes a request between nodes that have had nothing to do with each other, waits for
    /// the expected path, and makes some more.
    ///
    /// # Errors
    ///
    /// When something is not answered, the agent's rules did not lead to it, or the path
    /// does not become the expected one.
    pub(super) fn of_strangers(
        cluster: &Cluster,
        (from, to): (&Member, &Member),
        expected: &Path,
    ) -> Result<Self> {
        let known = cluster.path(from, to)?;
        if known != Path::Other("idle".to_owned()) {
            bail!("{} knows {} already: {known}", from.name(), to.name());
        }
        let request = Request::new(from, to, Protocol::Tcp);
        let begin = Instant::now();
        let first = request.make(cluster.flavour, Way::Agent)?;
        let at_first = cluster.path(from, to)?;
        await_path(cluster, (from, to), expected)?;
        let settled = begin.elapsed();
        let crossing = Self::measured(cluster, &request, first, expected)?;
        Ok(Self {
            nodes: format!("{} -> {}", from.name(), to.name()),
            settled: (at_first != crossing.path).then_some(settled),
            at_first,
            ..crossing
        })
    }

    /// Makes a request between nodes that are in touch, by the expected path, and some more.
    ///
    /// # Errors
    ///
    /// As [`Self::of_strangers`].
    pub(super) fn of_acquainted(
        cluster: &Cluster,
        request: &Request<'_>,
        expected: &Path,
    ) -> Result<Self> {
        let first = request.make(cluster.flavour, Way::Agent)?;
        await_path(cluster, (request.of, request.to), expected)?;
        Self::measured(cluster, request, first, expected)
    }

    /// Further requests, after which the path must still be the expected one.
    fn measured(
        cluster: &Cluster,
        request: &Request<'_>,
        first: Duration,
        expected: &Path,
    ) -> Result<Self> {
        let warm = request.repeat(WARM)?.percentile(0.5);
        let path = cluster.path(request.of, request.to)?;
        if path != *expected {
            bail!("{request}: {path}, not {expected}");
        }
        Ok(Self {
            nodes: String::new(),
            request: request.to_string(),
            first,
            warm,
            at_first: path.clone(),
            path,
            settled: None,
        })
    }

    /// The same with the nodes named.
    pub(super) fn between(mut self, from: &Member, to: &Member) -> Self {
        self.nodes = format!("{} -> {}", from.name(), to.name());
        self
    }

    /// As a line of a table.
    pub(super) fn line(&self) -> String {
        format!(
            "{:<19}{:<24}{:>8}{:>8}  {}",
            self.nodes,
            self.request,
            in_table(self.first),
            in_table(self.warm),
            self.path
        )
    }

    /// How the path changed, if it did.
    pub(super) fn more(&self) -> Option<String> {
        let settled = self.settled?;
        Some(format!(
            "{:19}the first answer came {}; {} within {}",
            "",
            self.at_first,
            self.path,
            ms(settled)
        ))
    }
}

/// Waits until the path from one node to another is the expected one.
///
/// # Errors
///
/// When it is not within 10 s: names the one it is.
pub(super) fn await_path(
    cluster: &Cluster,
    (from, to): (&Member, &Member),
    expected: &Path,
) -> Result<()> {
    let what = format!("{} reaches {} {expected}", from.name(), to.name());
    await_ok(PATIENCE, &what, || {
        let path = cluster.path(from, to)?;
        if path == *expected {
            return Ok(());
        }
        bail!("it does so {path}")
    })
}
