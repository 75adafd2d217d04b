//! Our table in the kernel, and the socket that it belongs to.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::change::{Change, Changes, everything};
use super::element::{Element, Key};
use super::fixed_chain::going_on;
use super::kernel_support::KernelSupport;
use super::nftables_error::NftablesError;
use super::own_table_parts::{fixed_sets, own_chains};
use super::sign_of_life::ALIVE_FOR;
use super::table_look::{self as look, Shape, TableFacts};
use super::table_name::{ALIVE, TableName};
use super::transaction::Transaction;
use crate::netlink::NetlinkSocket;
use crate::{Family, Ruleset};

/// Elements per step, once the kernel refused a message for its length: in a user namespace
/// a socket's buffer can't be enlarged beyond `net.core.wmem_max` (208 KiB by default).
pub(super) const ELEMENTS_PER_STEP: usize = 1000;

/// How often a look is tried while others change the ruleset.
pub(super) const ATTEMPTS: usize = 3;

/// The socket, and the table that was made through it. Dropping it closes the socket, and
/// a table with the owner flag goes with it.
#[derive(Debug)]
pub(super) struct OwnTable {
    socket: NetlinkSocket,
    family: Family,
    /// Whether this kernel knows the owner flag.
    owned: bool,
    support: Arc<KernelSupport>,
    made: Option<Made>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    name: TableName,
    facts: TableFacts,
    /// For a table that others can change: what it was like, and the generation in which
    /// it was last known to be so.
    shape: Option<Shape>,
    seen_in: Option<u32>,
}

/// What had to be done about the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Gate {
    pub(super) renewed: bool,
    pub(super) was_closed: bool,
}

/// What a look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Same,
    /// There is no such table any more.
    Gone,
    /// It is another one, or holds something else.
    Altered,
}

impl OwnTable {
    /// Finds out what this kernel can do; changes nothing.
    pub(super) fn open(family: Family) -> Result<Self, NftablesError> {
        let [usual, _] = TableName::all(family);
        let socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0)
            .map_err(|error| NftablesError::reading(usual, error))?;
        let mut table = Self {
            socket,
            family,
            owned: true,
            support: Arc::default(),
            made: None,
        };
        table.find_out()?;
        Ok(table)
    }

    /// Tries out less and less, until the kernel would take it.
    fn find_out(&mut self) -> Result<(), NftablesError> {
        loop {
            match self.try_out() {
                Err(error) if error.is_unsupported() || error.is_not_found() => {
                    match self.support.less(&error) {
                        Some(less) => self.support = Arc::new(less),
                        None if self.owned => {
                            self.owned = false;
                            self.support = Arc::default();
                        }
                        None => return Err(error),
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// What of the kernel path this kernel can do.
    pub(super) fn support(&self) -> &Arc<KernelSupport> {
        &self.support
    }

    /// As on a kernel that doesn't know the flag.
    #[cfg(test)]
    pub(super) fn without_owner_flag(mut self) -> Self {
        self.owned = false;
        self
    }

    /// Whether the table vanishes with the process.
    pub(super) fn is_owned(&self) -> bool {
        self.owned
    }

    /// The table that was made.
    pub(super) fn name(&self) -> Option<TableName> {
        self.made.map(|made| made.name)
    }

    fn try_out(&mut self) -> Result<(), NftablesError> {
        for sample in self.support.samples(self.family) {
            let (mut transaction, _) = self.begin(true)?;
            transaction.change(everything(&sample).all());
            transaction.make_chains(&sample, self.support.can_share());
            transaction.try_out(&mut self.socket)?;
        }
        Ok(())
    }

    /// A transaction that makes the table without portals and chains, in the place of one
    /// that is nobody else's; its gate is open, or not.
    fn begin(&mut self, open: bool) -> Result<(Transaction, TableName), NftablesError> {
        let (name, exists) = self.free_name()?;
        let mut transaction = Transaction::on(name);
        if exists {
            transaction.delete_table();
        }
        transaction.make_table(self.owned, self.support.can_share());
        if open {
            transaction.open_gate();
        }
        Ok((transaction, name))
    }

    /// The first name that no other process holds, and whether a table of that name exists.
    fn free_name(&mut self) -> Result<(TableName, bool), NftablesError> {
        let [usual, second] = TableName::all(self.family);
        for name in [usual, second] {
            let reading = |error| NftablesError::reading(name, error);
            match look::table(&mut self.socket, name).map_err(reading)? {
                None => return Ok((name, false)),
                Some(facts) => {
                    let own = self.socket.port().map_err(reading)?;
                    if facts.owner.is_none_or(|owner| owner == own) {
                        return Ok((name, true));
                    }
                }
            }
        }
        Err(NftablesError::held(second))
    }

    /// Makes the table anew, with all that is wanted, its gate open or not; returns the number
    /// of lines.
    pub(super) fn make(&mut self, wanted: &Ruleset, open: bool) -> Result<usize, NftablesError> {
        let before = self.generation();
        let (begin, name) = self.begin(open)?;
        let portals = everything(wanted);
        let kernel_path = self.support.can_share();
        let mut whole = begin.clone();
        whole.change(portals.all());
        whole.make_chains(wanted, kernel_path);
        self.made = None;
        match whole.commit(&mut self.socket) {
            Err(error) if error.is_too_long() => {
                begin.commit(&mut self.socket)?;
                self.change_in_steps(name, &portals)?;
                let mut end = Transaction::on(name);
                end.make_chains(wanted, kernel_path);
                end.commit(&mut self.socket)?;
            }
            outcome => outcome?,
        }
        let reading = |error| NftablesError::reading(name, error);
        let facts = look::table(&mut self.socket, name)
            .and_then(|facts| facts.ok_or_else(|| Errno::ENOENT.into()))
            .map_err(reading)?;
        let shape = if self.owned {
            None
        } else {
            Some(self.shape(name, wanted).map_err(reading)?)
        };
        self.made = Some(Made {
            name,
            facts,
            shape,
            seen_in: before,
        });
        self.settle(before);
        Ok(whole.lines())
    }

    /// Changes the portals of a table that was made, so that it holds `wanted`; returns the
    /// number of lines.
    pub(super) fn change(
        &mut self,
        changes: &Changes,
        wanted: &Ruleset,
    ) -> Result<usize, NftablesError> {
        let Some(made) = self.made else {
            let [usual, _] = TableName::all(self.family);
            return Err(NftablesError::reading(usual, Errno::ENOENT.into()));
        };
        let mut transaction = Transaction::on(made.name);
        transaction.change(changes.all());
        if transaction.is_empty() {
            return Ok(0);
        }
        let before = self.generation();
        match transaction.commit(&mut self.socket) {
            Err(error) if error.is_too_long() => self.change_in_steps(made.name, changes)?,
            outcome => outcome?,
        }
        if made.shape.is_some() && changes.of_objects() {
            let shape = self.shape(made.name, wanted);
            let shape = shape.map_err(|error| NftablesError::reading(made.name, error))?;
            self.made = Some(Made {
                shape: Some(shape),
                ..made
            });
        }
        self.settle(before);
        Ok(transaction.lines())
    }

    fn change_in_steps(&mut self, name: TableName, changes: &Changes) -> Result<(), NftablesError> {
        for step in changes.steps(ELEMENTS_PER_STEP) {
            let mut transaction = Transaction::on(name);
            transaction.change(step);
            transaction.commit(&mut self.socket)?;
        }
        Ok(())
    }

    /// Renews the gate if it is about to close.
    pub(super) fn keep_open(&mut self) -> Result<Gate, NftablesError> {
        let Some(made) = self.made else {
            return Ok(Gate::default());
        };
        let left = look::open_for(&mut self.socket, made.name)
            .map_err(|error| NftablesError::reading(made.name, error))?;
        if left.is_some_and(|left| left > ALIVE_FOR * 2 / 3) {
            return Ok(Gate::default());
        }
        let before = self.generation();
        let mut transaction = Transaction::on(made.name);
        transaction.renew_gate();
        transaction.commit(&mut self.socket)?;
        self.settle(before);
        Ok(Gate {
            renewed: true,
            was_closed: left.is_none_or(|left| left == Duration::ZERO),
        })
    }

    /// Looks whether the table that was made still holds `known`.
    ///
    /// A table with the owner flag needs no more than one question: nobody else can change
    /// it. Of another one all is read, if anything in nf_tables changed since.
    pub(super) fn look(&mut self, known: &Ruleset) -> Result<Look, NftablesError> {
        let Some(made) = self.made else {
            return Ok(Look::Gone);
        };
        self.look_at(made, known)
            .map_err(|error| NftablesError::reading(made.name, error))
    }

    fn look_at(&mut self, made: Made, known: &Ruleset) -> io::Result<Look> {
        match look::table(&mut self.socket, made.name)? {
            None => return Ok(Look::Gone),
            Some(facts) if facts != made.facts => return Ok(Look::Altered),
            Some(_) => {}
        }
        let Some(shape) = made.shape else {
            return Ok(Look::Same);
        };
        for _ in 0..ATTEMPTS {
            let generation = look::generation(&mut self.socket)?;
            if made.seen_in == Some(generation) {
                return Ok(Look::Same);
            }
            let same = match self.shape(made.name, known) {
                Ok(found) => found == shape && self.holds(made.name, known)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if look::generation(&mut self.socket)? == generation {
                if !same {
                    return Ok(Look::Altered);
                }
                self.made = Some(Made {
                    seen_in: Some(generation),
                    ..made
                });
                return Ok(Look::Same);
            }
        }
        // Changes keep coming; the next look may find a quieter moment.
        Ok(Look::Same)
    }

    /// Takes the table out; tells whether there was one.
    pub(super) fn delete(&mut self) -> Result<bool, NftablesError> {
        let Some(made) = self.made.take() else {
            return Ok(false);
        };
        let mut transaction = Transaction::on(made.name);
        transaction.delete_table();
        match transaction.commit(&mut self.socket) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes out all that the table holds, and the table itself unless it goes with the process:
    /// until then connections go on that were sent elsewhere. Tells whether there was one.
    pub(super) fn empty(&mut self) -> Result<bool, NftablesError> {
        if !self.owned {
            return self.delete();
        }
        let Some(made) = self.made else {
            return Ok(false);
        };
        let mut transaction = Transaction::on(made.name);
        transaction.delete_table();
        transaction.make_empty_table(self.owned);
        transaction.make_chain(&going_on());
        match transaction.commit(&mut self.socket) {
            Ok(()) => {
                self.made = None;
                Ok(true)
            }
            // Whatever stands in the way of the new one, the old one goes.
            Err(_) => self.delete(),
        }
    }

    /// Takes the table out, but not another one that was made in its place since: on a
    /// kernel without the owner flag the next agent does.
    pub(super) fn let_go(&mut self) -> Result<bool, NftablesError> {
        let Some(made) = self.made else {
            return Ok(false);
        };
        let reading = |error| NftablesError::reading(made.name, error);
        if look::table(&mut self.socket, made.name).map_err(reading)? == Some(made.facts) {
            return self.delete();
        }
        self.made = None;
        Ok(false)
    }

    /// What the table is like that holds `rules`, but for its elements.
    fn shape(&mut self, name: TableName, rules: &Ruleset) -> io::Result<Shape> {
        let kernel_path = self.support.can_share();
        let all = everything(rules);
        let fixed = own_chains(rules, kernel_path).into_iter();
        let mut chains: Vec<&str> = fixed.map(|chain| chain.name).collect();
        let mut sets = vec![ALIVE];
        sets.extend(
            fixed_sets(self.family, kernel_path)
                .iter()
                .map(|set| set.name),
        );
        for change in all.all() {
            match change {
                Change::AddChain(name) => chains.push(name),
                Change::AddSet(name, _) => sets.push(name),
                Change::EmptyChain(_)
                | Change::AddRule(..)
                | Change::Delete(_)
                | Change::Add(_)
                | Change::DeleteChain(_)
                | Change::DeleteSet(_) => {}
            }
        }
        look::shape(&mut self.socket, name, &chains, &sets)
    }

    /// Whether maps and sets hold exactly what they do for `rules`.
    fn holds(&mut self, name: TableName, rules: &Ruleset) -> io::Result<bool> {
        let all = everything(rules);
        let mut wanted: BTreeMap<Key, &Element> = BTreeMap::new();
        for change in all.all() {
            if let Change::Add(element) = change {
                wanted.insert(element.key, element);
            }
        }
        let mut all_right = true;
        for set in fixed_sets(self.family, self.support.can_share()) {
            look::elements(&mut self.socket, name, set.name, |bytes| {
                let read = Element::read(set.name, name.family, bytes);
                all_right &= read.is_some_and(|read| {
                    let wanted = wanted.remove(&read.key);
                    wanted.is_some_and(|wanted| wanted.is_shown_as(&read))
                });
            })?;
        }
        Ok(all_right && wanted.is_empty())
    }

    fn generation(&mut self) -> Option<u32> {
        look::generation(&mut self.socket).ok()
    }

    /// After a transaction of ours, begun in the given generation: if the table was known
    /// then, and nobody else changed anything meanwhile, it is known in the next one.
    fn settle(&mut self, before: Option<u32>) {
        let after = self.generation();
        if let Some(made) = &mut self.made {
            let alone = before.map(|before| before.wrapping_add(1)) == after;
            made.seen_in = after.filter(|_| alone && made.seen_in == before);
        }
    }
}
