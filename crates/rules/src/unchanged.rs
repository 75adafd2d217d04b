//! Whether our rules are still as they were last known to be, found out cheaply.

use std::collections::VecDeque;
use std::io;

use crate::iptables::installed::Tools;
use crate::nf_hook::{Content, fault, our_jump};
use crate::nf_tables::{NfTables, Standing};
use crate::{Family, Flavour, OwnChain, Repair};

/// For every so many lines of the nat table, reading it is put off by one look after a
/// foreign change that left our chains as long as they were.
pub(crate) const LINES_PER_LOOK: usize = 2000;

/// The kernel's word that a transaction was made for an older generation (`ERESTART`,
/// kernel `include/linux/errno.h`).
const ERESTART: i32 = 85;

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
    /// Our jumps as they were when they were right.
    jumps: [Option<Content>; 2],
    own: OwnGenerations,
}

/// What was seen when the rules were known to be right.
#[derive(Clone, Debug)]
struct Last {
    generation: u32,
    standing: Standing,
    /// Looks since somebody changed something that left all as long as it was. Nearly always
    /// that is kube-proxy at its own chains, but one of our rules may have been exchanged
    /// for another; reading the table would tell, but tens of thousands of rules are too
    /// much to read after each change of kube-proxy's.
    doubtful_looks: Option<usize>,
}

/// The generations that transactions of ours have made, the latest last.
#[derive(Debug, Default)]
struct OwnGenerations(VecDeque<(u32, u32)>);

impl OwnGenerations {
    const REMEMBERED: usize = 64;

    /// Everything after `since`, up to `last`, is ours, or can't be told from ours.
    fn add(&mut self, since: u32, last: u32) {
        self.0.push_back((since, last));
        if self.0.len() > Self::REMEMBERED {
            self.0.pop_front();
        }
    }

    fn contains(&self, generation: u32) -> bool {
        self.0
            .iter()
            .any(|(since, last)| (since + 1..=*last).contains(&generation))
    }
}

/// What a glance tells.
#[derive(Debug)]
pub(crate) enum Glance {
    /// Nothing was added to our chains or removed from them, and our jumps stand right; now
    /// they do, after these repairs.
    Right(Vec<Repair>),
    /// Only the rules themselves can tell.
    CannotTell,
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
            jumps: [None, None],
            own: OwnGenerations::default(),
        }
    }

    /// Whether changes can be told without reading the rules.
    pub(crate) fn can_tell(&self) -> bool {
        self.nf_tables.is_some()
    }

    /// Whether a transaction of ours made this generation, as far as can be told.
    pub(crate) fn has_made(&self, generation: u32) -> bool {
        self.own.contains(generation)
    }

    /// Looks whether our rules are as they were when it was last [settled](Self::settle),
    /// and puts our jumps where they must be. Unlike [`look`](Self::look) it does not care
    /// whether others changed the hooks, as long as our jumps stand right among them.
    pub(crate) fn glance(&mut self) -> Glance {
        const ATTEMPTS: usize = 3;
        let mut repairs = Vec::new();
        for _ in 0..ATTEMPTS {
            let Some(last) = self.last.clone() else {
                return Glance::CannotTell;
            };
            if self.generation().is_ok_and(|now| now == last.generation) {
                return Glance::Right(repairs);
            }
            let Ok(Some(seen)) = self.see() else {
                return Glance::CannotTell;
            };
            if !seen.standing.same_chains(&last.standing) {
                return Glance::CannotTell;
            }
            match self.move_jumps(&seen) {
                Ok(moved) if moved.is_empty() => {
                    self.since = Some(seen.generation);
                    self.last = Some(Last {
                        doubtful_looks: last.doubtful_looks.or(Some(0)),
                        ..seen
                    });
                    return Glance::Right(repairs);
                }
                Ok(moved) => repairs.extend(moved),
                // Somebody else was quicker; what there is to do may be different now.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "can't move our jumps; reading the rules back");
                    return Glance::CannotTell;
                }
            }
        }
        Glance::CannotTell
    }

    /// Moves the jumps that don't stand right in what was seen; none when all do.
    fn move_jumps(&mut self, seen: &Last) -> io::Result<Vec<Repair>> {
        let mut faults = Vec::new();
        for chain in OwnChain::BOTH {
            let jump = self.jumps[chain.index()]
                .as_ref()
                .ok_or(io::ErrorKind::NotFound)?;
            if let Some(fault) = fault(seen.standing.hook(chain), jump) {
                faults.push((chain, fault, jump));
            }
        }
        let Some(nf_tables) = self.nf_tables.as_mut().filter(|_| !faults.is_empty()) else {
            return Ok(Vec::new());
        };
        nf_tables
            .move_jumps(self.family, seen.generation, &faults)
            .map_err(|error| match error.raw_os_error() {
                Some(code) if code == ERESTART => io::ErrorKind::Interrupted.into(),
                _ => error,
            })?;
        let made = seen.generation.wrapping_add(1);
        self.own.add(seen.generation, made);
        Ok(faults
            .iter()
            .map(|(chain, fault, _)| Repair::Jump {
                chain: *chain,
                because: fault.because,
            })
            .collect())
    }

    /// The number of the last change, by anybody.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        match &mut self.nf_tables {
            Some(nf_tables) => nf_tables.generation(),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Looks whether our rules are as they were when it was last [settled](Self::settle).
    pub(crate) fn look(&mut self) -> Look {
        let Some(last) = self.last.clone() else {
            return Look::CannotTell;
        };
        let Ok(Some(seen)) = self.see() else {
            return Look::CannotTell;
        };
        if seen.standing != last.standing {
            return Look::Changed;
        }
        let doubt = (seen.generation != last.generation).then_some(0);
        self.since = Some(seen.generation);
        self.last = Some(Last {
            doubtful_looks: last.doubtful_looks.map(|looks| looks + 1).or(doubt),
            ..seen
        });
        Look::Same
    }

    /// Whether a table of so many lines should be read back although our rules
    /// [look](Self::look) the same.
    pub(crate) fn is_overdue(&self, lines: usize) -> bool {
        self.last
            .as_ref()
            .and_then(|last| last.doubtful_looks)
            .is_some_and(|looks| looks >= lines / LINES_PER_LOOK)
    }

    /// To be called when the rules were read and found right, and nothing changed meanwhile.
    pub(crate) fn trust(&mut self) {
        if let Some(last) = &mut self.last {
            last.doubtful_looks = None;
        }
    }

    /// To be called before the rules are read: what happens from here on counts.
    pub(crate) fn begin(&mut self) {
        self.last = None;
        self.since = self.nf_tables.as_mut().and_then(|n| n.generation().ok());
    }

    /// To be called when the rules are right, after so many transactions of ours. If
    /// somebody else changed something meanwhile, the next look can't tell.
    pub(crate) fn settle(&mut self, own_transactions: usize) {
        let doubtful_looks = self.last.as_ref().and_then(|last| last.doubtful_looks);
        let expected = self.since.and_then(|since| {
            u32::try_from(own_transactions)
                .ok()
                .map(|own| since.wrapping_add(own))
        });
        let seen = self.see().ok().flatten();
        if let (Some(since), Some(seen), 1..) = (self.since, &seen, own_transactions) {
            self.own.add(since, seen.generation);
        }
        self.last = seen
            .filter(|seen| Some(seen.generation) == expected)
            .map(|seen| Last {
                doubtful_looks,
                ..seen
            });
        self.since = self.last.as_ref().map(|last| last.generation);
        if let Some(last) = &self.last {
            self.jumps = OwnChain::BOTH.map(|chain| our_jump(last.standing.hook(chain), chain));
        }
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
            let standing = nf_tables.standing(self.family)?;
            if nf_tables.generation()? == generation {
                return Ok(Some(Last {
                    generation,
                    standing,
                    doubtful_looks: None,
                }));
            }
        }
        Ok(None)
    }
}
