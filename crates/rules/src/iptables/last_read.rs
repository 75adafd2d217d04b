//! Reading the nat table back, and what is remembered of it.

use std::sync::Arc;

use crate::Ruleset;
use crate::iptables::changes::Difference;
use crate::iptables::difference::{Means, against};
use crate::iptables::parse::Table;
use crate::unchanged::LINES_PER_LOOK;

/// What else the nat table told when it was read last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastRead {
    /// About how long it is: what was changed since is added.
    pub(crate) lines: usize,
    pub(crate) kube_services: bool,
    /// How often it was to be looked at since.
    looks: usize,
}

impl LastRead {
    pub(crate) fn of(table: &Table<'_>) -> Self {
        Self {
            lines: table.lines,
            kube_services: table.kube_services,
            looks: 0,
        }
    }

    /// Whether it is to be read now, where nothing but reading tells of changes: tens of
    /// thousands of lines each time would keep a core busy.
    pub(crate) fn is_overdue(&mut self) -> bool {
        self.looks += 1;
        self.looks > self.lines / LINES_PER_LOOK
    }
}

/// Tens of thousands of lines take a while, in which other tasks shall go on.
pub(crate) async fn difference_to(
    text: String,
    wanted: Arc<Ruleset>,
    means: Means,
) -> (Difference, LastRead) {
    let work = tokio::task::spawn_blocking(move || {
        let table = Table::parse(&text);
        let read = LastRead::of(&table);
        (against(&table, &wanted, means), read)
    });
    match work.await {
        Ok(outcome) => outcome,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}
