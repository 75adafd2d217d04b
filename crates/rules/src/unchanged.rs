//! Whether our rules are still as they were last known to be, found out cheaply.

use std::io;

use crate::iptables::installed::Tools;
use crate::nf_tables::{NfTables, Shape};
use crate::{Family, Flavour};

/// For every so many lines of the nat table, reading it is put off by one look after a
/// foreign change that left the shape of our chains alone.
const LINES_PER_LOOK: usize = 2000;

/// Watches over the rules of one family in one flavour.
///
/// iptables-legacy offers nothing to look at but the rules themselves: there, it can never
/// tell.
#[derive(Debug)]
pub(crate) struct Watch {
    family: Family,
    nf_tables: Option<NfTables>,
    /// The generation from which on every change counts.
    since: Option<u32>,
    last: Option<Last>,
}

/// What was seen when the rules were known to be right.
#[derive(Clone, Copy, Debug)]
struct Last {
    generation: u32,
    shape: Shape,
    /// Looks since somebody changed something that left the shape as it was. Nearly always
    /// that is kube-proxy at its own chains, but one of our rules may have been exchanged
    /// for another; reading the table would tell, but tens of thousands of rules are too
    /// much to read after each change of kube-proxy's.
    doubtful_looks: Option<usize>,
}

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nobody added or removed anything of ours.
    Same,
    /// Somebody did.
    Changed,
    /// Only the rules themselves can tell.
    CannotTell,
}

impl Watch {
    pub(crate) fn of(tools: &Tools) -> Self {
        let nf_tables = match tools.flavour {
            Flavour::Nft => NfTables::open()
                .inspect_err(|error| {
                    tracing::warn!(
                        %error,
                        "the kernel does not tell of changes in nf_tables; reading all rules \
                         back each time instead"
                    );
                })
                .ok(),
            Flavour::Legacy => None,
        };
        Self {
            family: tools.family,
            nf_tables,
            since: None,
            last: None,
        }
    }

    /// Looks whether our rules are as they were when it was last [settled](Self::settle).
    pub(crate) fn look(&mut self) -> Look {
        let Some(last) = self.last else {
            return Look::CannotTell;
        };
        let Ok(Some(seen)) = self.see() else {
            return Look::CannotTell;
        };
        if seen.shape != last.shape {
            self.forget();
            return Look::Changed;
        }
        let doubt = (seen.generation != last.generation).then_some(0);
        self.last = Some(Last {
            doubtful_looks: last.doubtful_looks.map(|looks| looks + 1).or(doubt),
            ..seen
        });
        self.since = Some(seen.generation);
        Look::Same
    }

    /// Whether a table of so many lines should be read back although our rules
    /// [look](Self::look) the same.
    pub(crate) fn is_overdue(&self, lines: usize) -> bool {
        self.last
            .and_then(|last| last.doubtful_looks)
            .is_some_and(|looks| looks >= lines / LINES_PER_LOOK)
    }

    /// To be called before the rules are read: what happens from here on counts.
    pub(crate) fn begin(&mut self) {
        self.last = None;
        self.since = self.nf_tables.as_mut().and_then(|n| n.generation().ok());
    }

    /// To be called when the rules are right, after so many transactions of ours. If
    /// somebody else changed something meanwhile, the next look can't tell.
    pub(crate) fn settle(&mut self, own_transactions: usize) {
        let doubtful_looks = self.last.and_then(|last| last.doubtful_looks);
        let expected = self.since.and_then(|since| {
            u32::try_from(own_transactions)
                .ok()
                .map(|own| since.wrapping_add(own))
        });
        let seen = self.see().ok().flatten();
        self.last = seen
            .filter(|seen| Some(seen.generation) == expected)
            .map(|seen| Last {
                doubtful_looks,
                ..seen
            });
        self.since = self.last.map(|last| last.generation);
    }

    /// To be called when it is unclear what is there.
    pub(crate) fn forget(&mut self) {
        self.last = None;
        self.since = None;
    }

    /// Whether a chain exists in the watched family; false where it can't be told.
    pub(crate) fn has_chain(&mut self, table: &str, chain: &str) -> bool {
        self.nf_tables
            .as_mut()
            .and_then(|nf_tables| nf_tables.has_chain(self.family, table, chain).ok())
            .unwrap_or(false)
    }

    /// What there is to see, all of one generation; none when changes keep coming.
    fn see(&mut self) -> io::Result<Option<Last>> {
        const ATTEMPTS: usize = 3;
        let Some(nf_tables) = &mut self.nf_tables else {
            return Ok(None);
        };
        for _ in 0..ATTEMPTS {
            let generation = nf_tables.generation()?;
            let shape = nf_tables.shape(self.family)?;
            if nf_tables.generation()? == generation {
                return Ok(Some(Last {
                    generation,
                    shape,
                    doubtful_looks: None,
                }));
            }
        }
        Ok(None)
    }
}
