//! Two pods of one node, and who stands between them.

use anyhow::Result;
use edgemesh_lab::Lab;

use super::{Effort, Found};
use crate::contender::{Contender, Ready};
use crate::load::requests::Crowd;
use crate::load::{BULK, DATAGRAMS, ONCE, REQUESTS, Until, bulk, connections, datagrams, requests};
use crate::results::{Better, Comparison};

/// How many connections, or flows, are under way at the same time.
const AT_ONCE: usize = 8;
/// The crowd of requests.
const CROWD: Crowd = Crowd {
    connections: 16,
    threads: 2,
};

/// Work: its name and title, its measures, whether datagrams go, and how it is done.
struct Work {
    name: &'static str,
    title: &'static str,
    measures: &'static [(&'static str, Better)],
    datagrams: bool,
    carry_out: fn(&Ready, &Effort) -> Result<Vec<Option<f64>>>,
}

const CPU: (&str, Better) = ("CPU s/GB", Better::Low);
const MACHINE: (&str, Better) = ("machine's CPU s/GB", Better::Low);
const P50: (&str, Better) = ("p50, ms", Better::Low);
const P99: (&str, Better) = ("p99, ms", Better::Low);
const P999: (&str, Better) = ("p99.9, ms", Better::Low);
const LOST: (&str, Better) = ("lost, %", Better::Low);

const WORKS: [Work; 6] = [
    Work {
        name: "throughput-1",
        title: "TCP throughput, one stream",
        measures: &[("Gbit/s", Better::High), CPU, MACHINE],
        datagrams: false,
        carry_out: |ready, effort| throughput(ready, effort, 1),
    },
    Work {
        name: "throughput-8",
        title: "TCP throughput, 8 streams",
        measures: &[("Gbit/s", Better::High), CPU, MACHINE],
        datagrams: false,
        carry_out: |ready, effort| throughput(ready, effort, 8),
    },
    Work {
        name: "connections",
        title: "New connections, 8 at once, one byte each way",
        measures: &[
            ("connections/s", Better::High),
            P50,
            P99,
            ("CPU µs each", Better::Low),
            ("failed", Better::Low),
        ],
        datagrams: false,
        carry_out: new_connections,
    },
    Work {
        name: "requests",
        title: "Requests over 16 connections that stay",
        measures: &[
            ("requests/s", Better::High),
            P50,
            P99,
            P999,
            ("CPU µs each", Better::Low),
        ],
        datagrams: false,
        carry_out: keep_alive,
    },
    Work {
        name: "datagrams",
        title: "UDP datagrams of 128 bytes, 2 flows, as fast as they go",
        measures: &[("arrived/s", Better::High), LOST],
        datagrams: true,
        carry_out: flood,
    },
    Work {
        name: "datagram-answers",
        title: "UDP datagrams there and back, 8 flows with one under way each",
        measures: &[("answers/s", Better::High), P50, P99, LOST],
        datagrams: true,
        carry_out: exchange,
    },
];

/// All work with all contenders, which take turns at each.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let contenders = set_up_all(lab, effort, found)?;
    for work in WORKS.iter().filter(|work| effort.makes(work.name)) {
        let mut comparison = Comparison::new(work.name, work.title, work.measures);
        for _ in 0..effort.rounds {
            for ready in &contenders {
                if work.datagrams && !ready.contender.takes_datagrams() {
                    continue;
                }
                let figures = (work.carry_out)(ready, effort);
                found.note(&mut comparison, &ready.contender.to_string(), figures);
            }
        }
        found.keep(comparison);
    }
    Ok(())
}

/// Everybody who takes part and can; the first one has to.
fn set_up_all(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<Vec<Ready>> {
    let mut all = Vec::new();
    for contender in Contender::all() {
        let name = contender.to_string();
        let is_reference = contender == Contender::Direct;
        if !is_reference && !effort.takes(&name) {
            continue;
        }
        if let Some(packages) = contender.missing() {
            found.remark(format!(
                "{name} is left out: apt-get install --no-install-recommends {packages}"
            ));
            continue;
        }
        match Ready::set_up(contender, lab, &effort.agent, 0) {
            Ok(ready) => all.push(ready),
            Err(error) if is_reference => return Err(error),
            Err(error) => {
                found.remark(format!(
                    "{name} is left out: {}",
                    super::in_one_line(&error)
                ));
            }
        }
    }
    Ok(all)
}

fn throughput(ready: &Ready, effort: &Effort, streams: usize) -> Result<Vec<Option<f64>>> {
    let moved = bulk::run(
        ready.client(),
        ready.to(BULK),
        streams,
        [bulk::WARM_UP, effort.window],
        ready.counted(),
        &ready.processes(),
    )?;
    Ok(vec![
        Some(moved.mbit() / 1e3),
        moved.processes_per_gb(),
        Some(moved.machine_per_gb()),
    ])
}

fn new_connections(ready: &Ready, effort: &Effort) -> Result<Vec<Option<f64>>> {
    let made = connections::run(
        ready.client(),
        ready.to(ONCE),
        AT_ONCE,
        Until::Over(effort.window),
        &ready.processes(),
    )?;
    Ok(vec![
        Some(made.per_second()),
        Some(made.took.quantile_ms(0.5)),
        Some(made.took.quantile_ms(0.99)),
        made.microseconds_each(),
        Some(made.failed as f64),
    ])
}

fn keep_alive(ready: &Ready, effort: &Effort) -> Result<Vec<Option<f64>>> {
    let answered = requests::run(
        ready.client(),
        ready.to(REQUESTS),
        CROWD,
        Until::Over(effort.window),
        &ready.processes(),
    )?;
    Ok(vec![
        Some(answered.per_second()),
        Some(answered.took.quantile_ms(0.5)),
        Some(answered.took.quantile_ms(0.99)),
        Some(answered.took.quantile_ms(0.999)),
        answered.microseconds_each(),
    ])
}

fn flood(ready: &Ready, effort: &Effort) -> Result<Vec<Option<f64>>> {
    let flooded = datagrams::flood(
        ready.client(),
        ready.to(DATAGRAMS),
        2,
        effort.window,
        ready.counted(),
        &ready.processes(),
    )?;
    Ok(vec![Some(flooded.per_second()), Some(flooded.lost())])
}

fn exchange(ready: &Ready, effort: &Effort) -> Result<Vec<Option<f64>>> {
    let exchanged = datagrams::exchange(
        ready.client(),
        ready.to(DATAGRAMS),
        AT_ONCE,
        effort.window,
        &ready.processes(),
    )?;
    Ok(vec![
        Some(exchanged.per_second()),
        Some(exchanged.took.quantile_ms(0.5)),
        Some(exchanged.took.quantile_ms(0.99)),
        Some(exchanged.lost()),
    ])
}
