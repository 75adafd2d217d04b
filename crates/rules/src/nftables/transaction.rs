//! Changes of nf_tables that the kernel takes over all or none.

use super::nftables_error::{NftablesError, SHOWN_BYTES};
use super::rule::Rule;
use super::table_name::TableName;
use super::wire::{
    APPEND, Attributes, CREATE, DELETE_TABLE, LISTED, NEW_RULE, SUBSYSTEM, comment, kind,
};
use crate::netlink::{NetlinkSocket, Outgoing, Refused};

/// What frames a transaction (`NFNL_MSG_BATCH_*`): it is told the subsystem.
const BEGIN: u16 = 16;
const END: u16 = 17;
const FRAME: [u8; 4] = [0, 0, 0, SUBSYSTEM];

/// One message, and the same as a command of nft.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    message: u8,
    flags: u16,
    payload: Vec<u8>,
    command: String,
}

/// Changes of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) table: TableName,
    steps: Vec<Step>,
    /// What it changes, counted as nft's commands and elements.
    lines: usize,
}

impl Transaction {
    pub(super) fn on(table: TableName) -> Self {
        Self {
            table,
            steps: Vec::new(),
            lines: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn lines(&self) -> usize {
        self.lines
    }

    pub(super) fn delete_table(&mut self) {
        let attributes = Attributes::default().text(1, self.table.name);
        let command = format!("delete table {}", self.table);
        self.push(DELETE_TABLE, 0, &attributes, command);
    }

    pub(super) fn append_rule(&mut self, chain: &str, rule: &Rule) {
        let attributes = Attributes::default()
            .text(1, self.table.name)
            .text(2, chain)
            .nested(4, rule.expressions.attributes())
            .bytes(7, &comment(&rule.comment));
        let command = format!(
            "add rule {} {chain} {} comment \"{}\"",
            self.table, rule.text, rule.comment
        );
        self.push(NEW_RULE, CREATE | APPEND, &attributes, command);
    }

    /// A number for a new set by which this transaction could refer to it; those below have
    /// their own meaning.
    pub(super) fn free_set_id(&self) -> u32 {
        const FIRST: u32 = 16;
        u32::try_from(self.steps.len())
            .unwrap_or_default()
            .saturating_add(FIRST)
    }

    pub(super) fn set(&self, name: &str) -> Attributes {
        Attributes::default().text(1, self.table.name).text(2, name)
    }

    pub(super) fn elements(
        &self,
        set: &str,
        elements: impl IntoIterator<Item = Attributes>,
    ) -> Attributes {
        let list = elements
            .into_iter()
            .fold(Attributes::default(), |list, element| {
                list.nested(LISTED, &element)
            });
        self.set(set).nested(3, &list)
    }

    pub(super) fn push(
        &mut self,
        message: u8,
        flags: u16,
        attributes: &Attributes,
        command: String,
    ) {
        self.push_many(message, flags, attributes, command, 1);
    }

    /// A message that changes so many elements.
    pub(super) fn push_many(
        &mut self,
        message: u8,
        flags: u16,
        attributes: &Attributes,
        command: String,
        lines: usize,
    ) {
        self.lines += lines;
        self.steps.push(Step {
            message,
            flags,
            payload: attributes.message(self.table.family),
            command,
        });
    }

    /// Hands the changes to the kernel, which takes them over all or none.
    pub(super) fn commit(&self, socket: &mut NetlinkSocket) -> Result<(), NftablesError> {
        self.send(socket, true)
    }

    /// Asks the kernel whether it would take the changes over, and changes nothing: for
    /// the kernel a transaction without its end is one to be given up.
    pub(super) fn try_out(&self, socket: &mut NetlinkSocket) -> Result<(), NftablesError> {
        self.send(socket, false)
    }

    fn send(&self, socket: &mut NetlinkSocket, whole: bool) -> Result<(), NftablesError> {
        let frame = |kind| Outgoing {
            kind,
            flags: 0,
            payload: &FRAME,
        };
        let mut messages = vec![frame(BEGIN)];
        messages.extend(self.steps.iter().map(|step| Outgoing {
            kind: kind(step.message),
            flags: step.flags,
            payload: &step.payload,
        }));
        let answered = messages.len() - 1;
        if whole {
            messages.push(frame(END));
        }
        socket
            .send_together(&messages, answered)
            .map_err(|refused| self.error(refused))
    }

    fn error(&self, Refused { at, error }: Refused) -> NftablesError {
        let step = at.checked_sub(1).and_then(|at| self.steps.get(at));
        NftablesError {
            table: self.table,
            command: step.map(|step| step.command.clone()),
            cause: error,
            input: self.text(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            text.push_str(&step.command);
            text.push('\n');
            if text.len() > SHOWN_BYTES {
                break;
            }
        }
        text
    }
}
