//! Between sites: from an edge node to the cloud and to another edge, beside plain TCP
//! through the same NAT.

mod agents;
mod stage;

use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::{Lab, LinkConditions, Nat, Sites};

use self::stage::{TunnelStage, Way};
use super::{Effort, Found};
use crate::load::requests::Crowd;
use crate::load::{BULK, ONCE, REQUESTS, Until, bulk, connections, requests};
use crate::results::{Better, Comparison};

/// A long path: a name, how far, what it loses each way, and how much it carries.
struct LongPath {
    name: &'static str,
    said: &'static str,
    conditions: LinkConditions,
}

/// How much longer a measurement goes on over long paths than elsewhere.
const LONGER: u32 = 3;
/// Until congestion control has found out what a long path carries.
const FIND_OUT: Duration = Duration::from_secs(2);
/// Bytes that wait before the bottleneck of a long path: 500 full packets.
const QUEUE: usize = 500 * 1500;

fn long_paths() -> [LongPath; 2] {
    [
        LongPath {
            name: "30ms",
            said: "30 ms round trip, 0.5 % lost each way, 200 Mbit/s",
            conditions: LinkConditions::delay(Duration::from_millis(15))
                .loss(0.005)
                .rate(200_000_000, QUEUE),
        },
        LongPath {
            name: "100ms",
            said: "100 ms round trip, 2 % lost each way, 200 Mbit/s",
            conditions: LinkConditions::delay(Duration::from_millis(50))
                .loss(0.02)
                .rate(200_000_000, QUEUE),
        },
    ]
}

/// Straight to the cloud, and to another edge by a relay: NATs that no hole can be punched
/// through.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let sites = Sites::builder().edges_behind(Nat::Symmetric).create(lab)?;
    let stage = TunnelStage::start(lab, sites, effort, "relayed", found)?;
    compare(&stage, effort, found, &Path::clean("tunnel", "no distance"));
    Ok(())
}

/// Straight to another edge, through holes that were punched.
pub(super) fn measure_punched(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let sites = Sites::builder()
        .edges_behind(Nat::PortPreserving)
        .create(lab)?;
    let stage = TunnelStage::start(lab, sites, effort, "direct", found)?;
    let path = Path::clean("punched", "no distance, NATs that keep ports");
    compare(&stage, effort, found, &path);
    Ok(())
}

/// Over long paths that lose packets.
pub(super) fn measure_far(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let paths = long_paths();
    let sites = Sites::builder()
        .edges_behind(Nat::Symmetric)
        .edges_over(paths[0].conditions, 1)
        .create(lab)?;
    let stage = TunnelStage::start(lab, sites, effort, "relayed", found)?;
    for path in paths {
        stage.set_conditions(path.conditions)?;
        compare(&stage, effort, found, &Path::far(path.name, path.said));
    }
    Ok(())
}

/// What the path is called, and for how long its figures are taken.
struct Path {
    name: &'static str,
    said: &'static str,
    warm_up: Duration,
    longer: u32,
    streams: &'static [usize],
}

impl Path {
    fn clean(name: &'static str, said: &'static str) -> Self {
        Self {
            name,
            said,
            warm_up: bulk::WARM_UP,
            longer: 1,
            streams: &[1, 8],
        }
    }

    fn far(name: &'static str, said: &'static str) -> Self {
        Self {
            name,
            said,
            warm_up: FIND_OUT,
            longer: LONGER,
            streams: &[1],
        }
    }
}

/// All works, each with all ways in turn.
fn compare(stage: &TunnelStage, effort: &Effort, found: &mut Found, path: &Path) {
    for streams in path.streams {
        let many = if *streams == 1 {
            "one stream"
        } else {
            "8 streams"
        };
        let measures = [
            ("Mbit/s", Better::High),
            ("CPU s/GB", Better::Low),
            ("machine's CPU s/GB", Better::Low),
        ];
        let work = Work {
            name: format!("{}-throughput-{streams}", path.name),
            title: format!("Throughput, {many}; {}", path.said),
            measures: &measures,
        };
        work.compare(stage, effort, found, |way| {
            let moved = bulk::run(
                stage.client(),
                way.to(BULK),
                *streams,
                [path.warm_up, effort.window * path.longer],
                &way.counted,
                &way.processes,
            )?;
            let cost = moved.processes_per_gb();
            Ok(vec![Some(moved.mbit()), cost, Some(moved.machine_per_gb())])
        });
    }
    new_connections(stage, effort, found, path);
    one_after_the_other(stage, effort, found, path);
}

fn new_connections(stage: &TunnelStage, effort: &Effort, found: &mut Found, path: &Path) {
    let measures = [
        ("connections/s", Better::High),
        ("p50, ms", Better::Low),
        ("p99, ms", Better::Low),
        ("CPU µs each", Better::Low),
        ("failed", Better::Low),
    ];
    let work = Work {
        name: format!("{}-connections", path.name),
        title: format!("New connections, 8 at once; {}", path.said),
        measures: &measures,
    };
    work.compare(stage, effort, found, |way| {
        let made = connections::run(
            stage.client(),
            way.to(ONCE),
            8,
            Until::Over(effort.window * path.longer),
            &way.processes,
        )?;
        Ok(vec![
            Some(made.per_second()),
            Some(made.took.quantile_ms(0.5)),
            Some(made.took.quantile_ms(0.99)),
            made.microseconds_each(),
            Some(made.failed as f64),
        ])
    });
}

fn one_after_the_other(stage: &TunnelStage, effort: &Effort, found: &mut Found, path: &Path) {
    let measures = [
        ("p50, ms", Better::Low),
        ("p99, ms", Better::Low),
        ("requests/s", Better::High),
    ];
    let work = Work {
        name: format!("{}-latency", path.name),
        title: format!("Requests over one connection; {}", path.said),
        measures: &measures,
    };
    let crowd = Crowd {
        connections: 1,
        threads: 1,
    };
    work.compare(stage, effort, found, |way| {
        let answered = requests::run(
            stage.client(),
            way.to(REQUESTS),
            crowd,
            Until::Over(effort.window * path.longer),
            &way.processes,
        )?;
        Ok(vec![
            Some(answered.took.quantile_ms(0.5)),
            Some(answered.took.quantile_ms(0.99)),
            Some(answered.per_second()),
        ])
    });
}

struct Work<'w> {
    name: String,
    title: String,
    measures: &'w [(&'w str, Better)],
}

impl Work<'_> {
    fn compare(
        &self,
        stage: &TunnelStage,
        effort: &Effort,
        found: &mut Found,
        carry_out: impl Fn(&Way) -> Result<Vec<Option<f64>>>,
    ) {
        if !effort.makes(&self.name) {
            return;
        }
        let mut comparison = Comparison::new(&self.name, &self.title, self.measures);
        for _ in 0..effort.rounds {
            for way in stage.ways() {
                found.note(&mut comparison, &way.name, carry_out(way));
            }
        }
        found.keep(comparison);
    }
}
