//! Whether our rules are still as they were last known to be, found out cheaply.

use crate::chain_names::OwnChain;
use crate::iptables::installed::Tools;
use crate::nf_tables::{Fingerprint, NfTables};
use crate::{Family, Flavour};

/// Watches over the rules of one family in one flavour.
///
/// iptables-legacy offers nothing to look at but the rules themselves: there, nothing is
/// ever known to be unchanged.
#[derive(Debug)]
pub(crate) struct Watch {
    family: Family,
    nf_tables: Option<NfTables>,
    last: Option<Last>,
}

/// The last moment at which the rules were known to be right.
#[derive(Clone, Copy, Debug)]
struct Last {
    generation: u32,
    /// Taken at the first look after a change, which needs not be soon.
    fingerprint: Option<Fingerprint>,
}

const TABLE: &str = "nat";

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
            last: None,
        }
    }

    /// To be called before the rules are read or changed: what happens from here on is
    /// noticed.
    pub(crate) fn begin(&mut self) {
        let generation = self.generation();
        self.last = generation.map(|generation| Last {
            generation,
            fingerprint: None,
        });
    }

    /// To be called after changes of ours, of that many transactions. If somebody else
    /// changed something too, the rules count as changed.
    pub(crate) fn note_own_changes(&mut self, transactions: usize) {
        let generation = self.generation();
        let expected = self.last.and_then(|last| {
            u32::try_from(transactions)
                .ok()
                .map(|own| last.generation.wrapping_add(own))
        });
        self.last = match (generation, expected) {
            (Some(generation), Some(expected)) if generation == expected => Some(Last {
                generation,
                fingerprint: None,
            }),
            (_, _) => None,
        };
    }

    /// To be called when it is unclear what is there.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Whether the rules are surely as they were at [`Self::begin`], but for changes of
    /// ours. Changes of other chains don't matter.
    pub(crate) async fn is_unchanged(&mut self) -> bool {
        let (Some(last), Some(generation)) = (self.last, self.generation()) else {
            return false;
        };
        if generation == last.generation && last.fingerprint.is_some() {
            return true;
        }
        let fingerprint = self.fingerprint().await;
        if generation != last.generation
            && (fingerprint.is_none() || fingerprint != last.fingerprint)
        {
            self.last = None;
            return false;
        }
        // A fingerprint is worth something only if it shows the rules of this generation.
        let still = self.generation() == Some(generation);
        self.last = Some(Last {
            generation,
            fingerprint: if still { fingerprint } else { last.fingerprint },
        });
        true
    }

    /// Whether a chain exists in the watched family's table; false where it can't be told.
    pub(crate) fn has_chain(&mut self, table: &str, chain: &str) -> bool {
        self.nf_tables
            .as_mut()
            .and_then(|nf_tables| nf_tables.has_chain(self.family, table, chain).ok())
            .unwrap_or(false)
    }

    fn generation(&mut self) -> Option<u32> {
        self.nf_tables.as_mut()?.generation().ok()
    }

    /// Reads tens of thousands of rules, so not on a thread that others need.
    async fn fingerprint(&mut self) -> Option<Fingerprint> {
        let mut nf_tables = self.nf_tables.take()?;
        let family = self.family;
        let read = tokio::task::spawn_blocking(move || {
            let chains: Vec<&str> = OwnChain::BOTH
                .into_iter()
                .flat_map(|chain| [chain.hook(), chain.name()])
                .collect();
            let fingerprint = nf_tables.fingerprint(family, TABLE, &chains);
            (nf_tables, fingerprint)
        });
        match read.await {
            Ok((nf_tables, fingerprint)) => {
                self.nf_tables = Some(nf_tables);
                fingerprint.ok().flatten()
            }
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }
}
