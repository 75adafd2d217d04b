//! What nf_tables tells of our tables.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::time::Duration;

use super::table_name::{ALIVE, TableName};
use super::wire::{
    Attributes, FIXED_PART, GET_CHAIN, GET_ELEMENT, GET_GENERATION, GET_RULE, GET_SET, GET_TABLE,
    LISTED, comment_text, kind,
};
use crate::netlink::{Message, NetlinkSocket, nested};

const TABLE_FLAGS: u16 = 2;
const TABLE_HANDLE: u16 = 4;
const TABLE_OWNER: u16 = 7;
const CHAIN_USE: u16 = 6;
const CHAIN_COUNTERS: u16 = 8;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const SET_HANDLE: u16 = 16;
const ELEMENTS: u16 = 3;

/// A table that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableFacts {
    /// Not used again for another table. 0 on kernels before 4.16, which number none.
    pub(super) handle: u64,
    pub(super) flags: u32,
    /// Port of the netlink socket that the table belongs to.
    pub(super) owner: Option<u32>,
}

/// Stands for all that is in a table except elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u64);

/// The number of the last change of anything in nf_tables.
pub(super) fn generation(socket: &mut NetlinkSocket) -> io::Result<u32> {
    const ID: u16 = 1;
    let mut generation = None;
    socket.ask(kind(GET_GENERATION), &[0; FIXED_PART], |message| {
        generation = number(message, ID);
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The table; none when it does not exist.
pub(super) fn table(socket: &mut NetlinkSocket, name: TableName) -> io::Result<Option<TableFacts>> {
    let mut facts = None;
    let request = Attributes::default().text(1, name.name);
    let asked = socket.ask(kind(GET_TABLE), &request.message(name.family), |message| {
        facts = Some(TableFacts {
            handle: long(message, TABLE_HANDLE).unwrap_or(0),
            flags: number(message, TABLE_FLAGS).unwrap_or(0),
            owner: number(message, TABLE_OWNER),
        });
    });
    match asked {
        Ok(()) => Ok(facts),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The chains as they are, and which rules and sets there are.
///
/// # Errors
///
/// `ENOENT` when a chain or a set is missing.
pub(super) fn shape(
    socket: &mut NetlinkSocket,
    table: TableName,
    chains: &[&str],
    sets: &[&str],
) -> io::Result<Shape> {
    let mut hasher = DefaultHasher::new();
    for &name in chains {
        let request = Attributes::default().text(1, table.name).text(3, name);
        socket.ask(kind(GET_CHAIN), &request.message(table.family), |message| {
            for (kind, value) in message.attributes(FIXED_PART) {
                if !matches!(kind, CHAIN_USE | CHAIN_COUNTERS) {
                    hasher.write_u16(kind);
                    hasher.write(value);
                }
            }
        })?;
        let request = Attributes::default().text(1, table.name).text(2, name);
        socket.dump(kind(GET_RULE), &request.message(table.family), |message| {
            // Kernels before 4.10 don't filter but send all rules.
            if has_name(message, RULE_TABLE, table.name) && has_name(message, RULE_CHAIN, name) {
                hasher.write_u64(long(message, RULE_HANDLE).unwrap_or(0));
            }
        })?;
    }
    for set in sets {
        let request = Attributes::default().text(1, table.name).text(2, set);
        socket.ask(kind(GET_SET), &request.message(table.family), |message| {
            hasher.write_u64(long(message, SET_HANDLE).unwrap_or(0));
        })?;
    }
    Ok(Shape(hasher.finish()))
}

/// Hands over the attributes of each element of a map or set.
pub(super) fn elements(
    socket: &mut NetlinkSocket,
    table: TableName,
    set: &str,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let request = Attributes::default().text(1, table.name).text(2, set);
    socket.dump(
        kind(GET_ELEMENT),
        &request.message(table.family),
        |message| elements_in(message).for_each(&mut each),
    )
}

/// Hands over the place (counted from 1), the comment and the expressions of each rule of a
/// chain.
pub(super) fn rules(
    socket: &mut NetlinkSocket,
    table: TableName,
    chain: &str,
    mut each: impl FnMut(usize, &str, &[u8]),
) -> io::Result<()> {
    const EXPRESSIONS: u16 = 4;
    const USER_DATA: u16 = 7;
    let request = Attributes::default().text(1, table.name).text(2, chain);
    let mut place = 0;
    socket.dump(kind(GET_RULE), &request.message(table.family), |message| {
        // Kernels before 4.10 don't filter but send all rules.
        if has_name(message, RULE_TABLE, table.name) && has_name(message, RULE_CHAIN, chain) {
            place += 1;
            let comment = attribute(message, USER_DATA).and_then(comment_text);
            let expressions = attribute(message, EXPRESSIONS);
            each(
                place,
                comment.unwrap_or_default(),
                expressions.unwrap_or_default(),
            );
        }
    })
}

/// How long the gate stays open without another sign of life; none when it is closed.
pub(super) fn open_for(
    socket: &mut NetlinkSocket,
    table: TableName,
) -> io::Result<Option<Duration>> {
    const KEY: u16 = 1;
    const EXPIRATION: u16 = 5;
    let key = Attributes::default().value(KEY, &[0]);
    let request = Attributes::default()
        .text(1, table.name)
        .text(2, ALIVE)
        .nested(ELEMENTS, &Attributes::default().nested(LISTED, &key));
    let mut left = None;
    let asked = socket.ask(
        kind(GET_ELEMENT),
        &request.message(table.family),
        |message| {
            left = elements_in(message)
                .flat_map(nested)
                .find(|(kind, _)| *kind == EXPIRATION)
                .and_then(|(_, value)| value.try_into().ok())
                .map(|bytes| Duration::from_millis(u64::from_be_bytes(bytes)));
        },
    );
    match asked {
        Ok(()) => Ok(left),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn elements_in(message: Message<'_>) -> impl Iterator<Item = &[u8]> {
    message
        .attributes(FIXED_PART)
        .filter(|(kind, _)| *kind == ELEMENTS)
        .flat_map(|(_, list)| nested(list))
        .map(|(_, element)| element)
}

fn attribute(message: Message<'_>, kind: u16) -> Option<&[u8]> {
    message
        .attributes(FIXED_PART)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

fn number(message: Message<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(
        attribute(message, kind)?.try_into().ok()?,
    ))
}

fn long(message: Message<'_>, kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(
        attribute(message, kind)?.try_into().ok()?,
    ))
}

fn has_name(message: Message<'_>, kind: u16, name: &str) -> bool {
    attribute(message, kind).and_then(|value| value.strip_suffix(b"\0")) == Some(name.as_bytes())
}
