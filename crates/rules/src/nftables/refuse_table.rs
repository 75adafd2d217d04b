//! The table in the kernel that refuses what nobody took. It belongs to nobody, so that it
//! outlives the agent; and anybody may change it, which has to be seen.

use std::collections::BTreeMap;
use std::io;

use edgemesh_plan::Frontend;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::nftables_error::NftablesError;
use super::refused_element::RefusedElement;
use super::refusing_rules::{SetChanges, chain_names};
use super::table::{ATTEMPTS, ELEMENTS_PER_STEP, Look};
use super::table_look::{self as look, Shape, TableFacts};
use super::table_name::{PORTALS, TableName};
use super::transaction::Transaction;
use crate::netlink::NetlinkSocket;
use crate::{Family, Ruleset};

/// The table, and the socket by which it is spoken of.
#[derive(Debug)]
pub(super) struct RefuseTable {
    socket: NetlinkSocket,
    name: TableName,
    made: Option<Made>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    facts: TableFacts,
    shape: Shape,
    /// The generation in which it was last known to be as it was made.
    seen_in: Option<u32>,
}

impl RefuseTable {
    /// Makes ready; changes nothing.
    pub(super) fn open(family: Family) -> Result<Self, NftablesError> {
        let name = TableName::refusing(family);
        let socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)
            .map_err(|error| NftablesError::reading(name, error))?;
        Ok(Self {
            socket,
            name,
            made: None,
        })
    }

    /// Makes the table anew, with all portals that are wanted.
    pub(super) fn make(&mut self, wanted: &Ruleset) -> Result<(), NftablesError> {
        let mut begin = Transaction::on(self.name);
        if self.facts()?.is_some() {
            begin.delete_table();
        }
        begin.make_refusing_table();
        let portals = SetChanges::everything(wanted);
        let mut whole = begin.clone();
        whole.change_refused(&portals);
        whole.make_refusing_chains(wanted);
        self.made = None;
        match whole.commit(&mut self.socket) {
            Err(error) if error.is_too_long() => {
                begin.commit(&mut self.socket)?;
                self.change_in_steps(&portals)?;
                let mut end = Transaction::on(self.name);
                end.make_refusing_chains(wanted);
                end.commit(&mut self.socket)?;
            }
            outcome => outcome?,
        }
        let facts = self
            .facts()?
            .ok_or_else(|| self.reading(Errno::ENOENT.into()))?;
        let shape = self.shape(wanted).map_err(|error| self.reading(error))?;
        self.made = Some(Made {
            facts,
            shape,
            seen_in: None,
        });
        Ok(())
    }

    /// Changes the portals of a table that was made.
    pub(super) fn change(&mut self, changes: &SetChanges) -> Result<(), NftablesError> {
        if changes.is_nothing() {
            return Ok(());
        }
        let mut transaction = Transaction::on(self.name);
        transaction.change_refused(changes);
        match transaction.commit(&mut self.socket) {
            Err(error) if error.is_too_long() => self.change_in_steps(changes),
            outcome => outcome,
        }
    }

    fn change_in_steps(&mut self, changes: &SetChanges) -> Result<(), NftablesError> {
        for step in changes.steps(ELEMENTS_PER_STEP) {
            let mut transaction = Transaction::on(self.name);
            transaction.change_refused(&step);
            transaction.commit(&mut self.socket)?;
        }
        Ok(())
    }

    /// Takes the portals that are not wanted out of a table that an agent before this one
    /// left, if there is one.
    pub(super) fn keep_only(&mut self, wanted: &Ruleset) -> Result<(), NftablesError> {
        if self.facts()?.is_none() {
            return Ok(());
        }
        let found = portals(&mut self.socket, self.name).map_err(|error| self.reading(error))?;
        let delete = found.into_keys();
        self.change(&SetChanges {
            delete: delete
                .filter(|frontend| !wanted.portals().contains_key(frontend))
                .collect(),
            add: Vec::new(),
        })
    }

    /// Looks whether the table that was made still holds `known`. If anything in nf_tables
    /// changed since the last look, all of it is read.
    pub(super) fn look(&mut self, known: &Ruleset) -> Result<Look, NftablesError> {
        let Some(made) = self.made else {
            return Ok(Look::Gone);
        };
        self.look_at(made, known)
            .map_err(|error| self.reading(error))
    }

    fn look_at(&mut self, made: Made, known: &Ruleset) -> io::Result<Look> {
        for _ in 0..ATTEMPTS {
            let generation = look::generation(&mut self.socket)?;
            if made.seen_in == Some(generation) {
                return Ok(Look::Same);
            }
            let seen = self.see(made, known)?;
            if look::generation(&mut self.socket)? == generation {
                if seen == Look::Same {
                    self.made = Some(Made {
                        seen_in: Some(generation),
                        ..made
                    });
                }
                return Ok(seen);
            }
        }
        // Changes keep coming; the next look may find a quieter moment.
        Ok(Look::Same)
    }

    fn see(&mut self, made: Made, known: &Ruleset) -> io::Result<Look> {
        match look::table(&mut self.socket, self.name)? {
            None => return Ok(Look::Gone),
            Some(facts) if facts != made.facts => return Ok(Look::Altered),
            Some(_) => {}
        }
        let same = match self.shape(known) {
            Ok(shape) if shape != made.shape => false,
            Ok(_) => {
                let found = portals(&mut self.socket, self.name)?;
                let wanted = SetChanges::everything(known).add.into_iter();
                wanted
                    .map(|element| (element.frontend, element.comment))
                    .eq(found)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        Ok(if same { Look::Same } else { Look::Altered })
    }

    /// Takes the table out; tells whether there was one.
    pub(super) fn delete(&mut self) -> Result<bool, NftablesError> {
        self.made = None;
        if self.facts()?.is_none() {
            return Ok(false);
        }
        let mut transaction = Transaction::on(self.name);
        transaction.delete_table();
        match transaction.commit(&mut self.socket) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn facts(&mut self) -> Result<Option<TableFacts>, NftablesError> {
        look::table(&mut self.socket, self.name).map_err(|error| self.reading(error))
    }

    fn shape(&mut self, rules: &Ruleset) -> io::Result<Shape> {
        let chains = chain_names(rules);
        look::shape(&mut self.socket, self.name, &chains, &[PORTALS])
    }

    fn reading(&self, error: io::Error) -> NftablesError {
        NftablesError::reading(self.name, error)
    }
}

/// The portals in the set, each with the service port that it names.
fn portals(socket: &mut NetlinkSocket, table: TableName) -> io::Result<BTreeMap<Frontend, String>> {
    let mut portals = BTreeMap::new();
    look::elements(socket, table, PORTALS, |bytes| {
        if let Some(element) = RefusedElement::read(table.family, bytes) {
            portals.insert(element.frontend, element.comment);
        }
    })?;
    Ok(portals)
}

/// The portals of a family that the kernel refuses where nobody else takes them, each with
/// the service port that it names; none where there is no such table. Changes nothing.
///
/// # Errors
///
/// When the kernel has no nf_tables, or does not let us ask.
pub fn refused_portals(family: Family) -> io::Result<BTreeMap<Frontend, String>> {
    let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)?;
    match portals(&mut socket, TableName::refusing(family)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        outcome => outcome,
    }
}
