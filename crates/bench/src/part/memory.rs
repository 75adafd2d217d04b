//! What processes need: as they begin, and with connections over which nothing goes.

use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::Lab;

use super::{Effort, Found, in_one_line};
use crate::contender::{Backend, Contender, Datapath, Ready};
use crate::load::{REQUESTS, idle, pause};
use crate::results::{Better, Comparison};

/// How long nothing happens, to see what that costs.
const IDLE: Duration = Duration::from_secs(2);

const MEASURES: [(&str, Better); 7] = [
    ("KiB per connection", Better::Low),
    ("connections", Better::High),
    ("of it own (RssAnon)", Better::Low),
    ("RSS before, MiB", Better::Low),
    ("RSS with them, MiB", Better::Low),
    ("files per connection", Better::Low),
    ("idle CPU, ms/s", Better::Low),
];

/// Each contender in turn, on a node of its own each time.
pub(super) fn measure(lab: &Lab, effort: &Effort, found: &mut Found) -> Result<()> {
    let most = idle::most()?;
    let count = effort.connections.min(most);
    if count < effort.connections {
        found.remark(format!(
            "{count} connections instead of {}: the hard limit of open files is {}",
            effort.connections,
            idle::files()?
        ));
    }
    let title = format!("{count} idle connections, each after one request");
    let mut comparison = Comparison::new("memory", &title, &MEASURES);
    for turn in 0..effort.rounds {
        for contender in contenders(effort) {
            if let Some(packages) = contender.missing() {
                found.remark(format!(
                    "{contender} is left out: apt-get install --no-install-recommends {packages}"
                ));
                continue;
            }
            let ready = match Ready::set_up(contender, lab, &effort.agent, turn) {
                Ok(ready) => ready,
                Err(error) => {
                    found.remark(format!("{contender} is left out: {}", in_one_line(&error)));
                    continue;
                }
            };
            let figures = with_connections(&ready, count, found);
            found.note(&mut comparison, &contender.to_string(), figures);
            ready.clear()?;
        }
    }
    found.keep(comparison);
    Ok(())
}

/// HAProxy first, to compare with; the rules' kind does not matter to memory.
fn contenders(effort: &Effort) -> impl Iterator<Item = Contender> {
    let all = [
        Contender::Haproxy { splice: false },
        Contender::Nginx,
        Contender::Agent(Datapath::User, Backend::Nftables),
    ];
    all.into_iter()
        .filter(|contender| effort.takes(&contender.to_string()))
}

fn with_connections(ready: &Ready, wanted: usize, found: &mut Found) -> Result<Vec<Option<f64>>> {
    let processes = ready.processes();
    let (before, files_before) = (processes.memory()?, processes.open_files()?);
    let (connections, refused) = idle::open(ready.client(), ready.to(REQUESTS), wanted)?;
    let count = connections.len();
    if let Some(error) = refused {
        found.remark(format!(
            "{} takes {count} connections at once: {}",
            ready.contender,
            in_one_line(&error)
        ));
    }
    let scheduled = processes.scheduled_time()?;
    pause(IDLE);
    let cpu = processes.scheduled_time()?.saturating_sub(scheduled);
    let (after, files_after) = (processes.memory()?, processes.open_files()?);
    drop(connections);
    let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
    Ok(vec![
        Some(each(before.resident, after.resident)),
        Some(count as f64),
        Some(each(before.own, after.own)),
        Some(before.resident as f64 / 1024.0),
        Some(after.resident as f64 / 1024.0),
        Some((files_after as f64 - files_before as f64) / count as f64),
        Some(cpu.as_secs_f64() * 1e3 / IDLE.as_secs_f64()),
    ])
}
