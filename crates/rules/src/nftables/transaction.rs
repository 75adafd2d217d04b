//! Changes of nf_tables that the kernel takes over all or none.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::change::{Changes, ELEMENTS_PER_MESSAGE};
use super::element::{PortalElement, key_attributes, key_text};
use super::rule::{Rule, rules_of};
use super::table_name::{
    ALIVE, ALIVE_ID, PORTALS, PORTALS_ID, PRIORITY, TableName, chain_name, hook_name, hook_number,
};
use super::wire::{
    APPEND, Attributes, CREATE, DELETE_ELEMENT, DELETE_TABLE, EXCLUSIVE, LISTED, NEW_CHAIN,
    NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE, SUBSYSTEM, comment, kind,
};
use crate::netlink::{NetlinkSocket, Outgoing, Refused};
use crate::{Family, OwnChain, Ruleset};

/// What frames a transaction (`NFNL_MSG_BATCH_*`): it is told the subsystem.
const BEGIN: u16 = 16;
const END: u16 = 17;
const FRAME: [u8; 4] = [0, 0, 0, SUBSYSTEM];

/// How much of an input is shown in an error.
const SHOWN_BYTES: usize = 4096;

/// Says on the table itself what it is.
pub(super) const TABLE_COMMENT: &str = "ClusterIPs handled by edgemesh-agent";

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

    /// The table with all that is in it but the portals; its chains come
    /// [later](Self::make_chains).
    pub(super) fn make_table(&mut self, owned: bool) {
        const OWNED: u32 = 2;
        let (flag, text) = if owned {
            (OWNED, "flags owner; ")
        } else {
            (0, "")
        };
        let attributes = Attributes::default()
            .text(1, self.table.name)
            .number(2, flag)
            .bytes(6, &comment(TABLE_COMMENT));
        let command = format!(
            "add table {} {{ {text}comment \"{TABLE_COMMENT}\"; }}",
            self.table
        );
        self.push(NEW_TABLE, CREATE | EXCLUSIVE, &attributes, command);
        self.make_alive();
        self.make_portals();
    }

    fn make_alive(&mut self) {
        const TIMED_AND_DYNAMIC: u32 = 0x30;
        /// One is needed; what has just expired still counts for a while.
        const SIZE: u32 = 16;
        /// nft's number of the type `ct_dir`.
        const DIRECTION: u32 = 27;
        let attributes = self
            .set(ALIVE)
            .number(3, TIMED_AND_DYNAMIC)
            .number(4, DIRECTION)
            .number(5, 1)
            .nested(9, &Attributes::default().number(1, SIZE))
            .number(10, ALIVE_ID);
        let command = format!(
            "add set {} {ALIVE} {{ type ct_dir; size {SIZE}; flags dynamic,timeout; }}",
            self.table
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
        self.renew_alive();
    }

    /// Opens the gate, or begins its time anew.
    pub(super) fn renew_alive(&mut self) {
        const KEY: u16 = 1;
        const TIMEOUT: u16 = 4;
        let seconds = super::heartbeat::ALIVE_FOR.as_secs();
        let flush = self.set(ALIVE);
        let command = format!("flush set {} {ALIVE}", self.table);
        self.push(DELETE_ELEMENT, 0, &flush, command);
        let element = Attributes::default()
            .value(KEY, &[0])
            .long(TIMEOUT, seconds * 1000);
        let attributes = self.elements(ALIVE, [element]);
        let command = format!(
            "add element {} {ALIVE} {{ original timeout {seconds}s }}",
            self.table
        );
        self.push(NEW_ELEMENT, CREATE, &attributes, command);
    }

    fn make_portals(&mut self) {
        const MAP: u32 = 8;
        let (key, data) = portal_types(self.table.family);
        let counter = Attributes::default()
            .text(1, "counter")
            .nested(2, &Attributes::default());
        let attributes = self
            .set(PORTALS)
            .number(3, MAP)
            .number(4, key.number)
            .number(5, key.length)
            .number(6, data.number)
            .number(7, data.length)
            .number(10, PORTALS_ID)
            .nested(17, &counter);
        let command = format!(
            "add map {} {PORTALS} {{ type {}; counter; }}",
            self.table,
            portal_type_text(self.table.family)
        );
        self.push(NEW_SET, CREATE | EXCLUSIVE, &attributes, command);
    }

    /// The chains with their rules: from here on traffic is handled.
    pub(super) fn make_chains(&mut self, rules: &Ruleset) {
        for chain in OwnChain::BOTH {
            let hook = Attributes::default()
                .number(1, hook_number(chain))
                .number(2, PRIORITY.cast_unsigned());
            let attributes = Attributes::default()
                .text(1, self.table.name)
                .text(3, chain_name(chain))
                .nested(4, &hook)
                .number(5, 1)
                .text(7, "nat");
            let command = format!(
                "add chain {} {} {{ {} }}",
                self.table,
                chain_name(chain),
                chain_declaration(chain)
            );
            self.push(NEW_CHAIN, CREATE | EXCLUSIVE, &attributes, command);
            for rule in rules_of(chain, rules) {
                self.append_rule(chain_name(chain), &rule);
            }
        }
    }

    pub(super) fn append_rule(&mut self, chain: &str, rule: &Rule) {
        let attributes = Attributes::default()
            .text(1, self.table.name)
            .text(2, chain)
            .nested(4, rule.expressions.attributes())
            .bytes(7, &comment(rule.comment));
        let command = format!(
            "add rule {} {chain} {} comment \"{}\"",
            self.table, rule.text, rule.comment
        );
        self.push(NEW_RULE, CREATE | APPEND, &attributes, command);
    }

    /// Takes portals out and puts portals in.
    pub(super) fn change_portals(&mut self, changes: &Changes) {
        for some in changes.delete.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = self.elements(PORTALS, some.iter().map(key_attributes));
            let text = some.iter().map(key_text).collect::<Vec<_>>().join(", ");
            let command = format!("delete element {} {PORTALS} {{ {text} }}", self.table);
            self.push(DELETE_ELEMENT, 0, &attributes, command);
            self.lines += some.len() - 1;
        }
        for some in changes.add.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = self.elements(PORTALS, some.iter().map(PortalElement::attributes));
            let text: Vec<_> = some.iter().map(PortalElement::text).collect();
            let command = format!(
                "add element {} {PORTALS} {{ {} }}",
                self.table,
                text.join(", ")
            );
            self.push(NEW_ELEMENT, CREATE | EXCLUSIVE, &attributes, command);
            self.lines += some.len() - 1;
        }
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
        self.lines += 1;
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

/// A type as nft numbers it, and how long its values are in the kernel.
pub(super) struct DataType {
    pub(super) number: u32,
    pub(super) length: u32,
}

/// The types of a portal and of where it leads. nft writes the number of a type made of
/// several as theirs, 6 bits each.
pub(super) fn portal_types(family: Family) -> (DataType, DataType) {
    const PROTOCOL: u32 = 12;
    const PORT: u32 = 13;
    let (address, length) = match family {
        Family::V4 => (7, 4),
        Family::V6 => (8, 16),
    };
    let key = DataType {
        number: (address << 12) | (PROTOCOL << 6) | PORT,
        length: length + 8,
    };
    let data = DataType {
        number: (address << 6) | PORT,
        length: length + 4,
    };
    (key, data)
}

/// The map's type as nft writes it.
pub(super) fn portal_type_text(family: Family) -> String {
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    format!("{address} . inet_proto . inet_service : {address} . inet_service")
}

/// Where the chain is hooked in, as nft writes it.
pub(super) fn chain_declaration(chain: OwnChain) -> String {
    format!(
        "type nat hook {} priority {PRIORITY}; policy accept;",
        hook_name(chain)
    )
}

/// The kernel did not take over a change of our table, or did not tell of it.
#[derive(Debug)]
pub struct NftablesError {
    table: TableName,
    /// What it refused; none when that was the whole.
    command: Option<String>,
    cause: io::Error,
    input: String,
}

impl NftablesError {
    pub(super) fn reading(table: TableName, cause: io::Error) -> Self {
        Self {
            table,
            command: Some(format!("list table {table}")),
            cause,
            input: String::new(),
        }
    }

    /// Other processes own every table that could be ours.
    pub(super) fn held(last: TableName) -> Self {
        Self {
            table: last,
            command: None,
            cause: Errno::EPERM.into(),
            input: String::new(),
        }
    }

    /// Whether the same call may succeed a little later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM | Errno::EBUSY)
        )
    }

    /// Whether the kernel lacks something that was asked for.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL))
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::ENOENT)
    }

    /// Whether the input was too long for one message.
    pub(super) fn is_too_long(&self) -> bool {
        self.errno() == Some(Errno::EMSGSIZE)
    }

    fn errno(&self) -> Option<Errno> {
        self.cause.raw_os_error().map(Errno::from_raw)
    }

    /// What to do about it, where that is known.
    fn advice(&self) -> Option<&'static str> {
        match self.errno()? {
            Errno::EPERM => Some(
                "the agent needs CAP_NET_ADMIN; and a table with the owner flag can be changed by \
                 its owner alone, which `nft list ruleset` names (progname): does another agent \
                 run on this node?",
            ),
            Errno::EPROTONOSUPPORT => {
                Some("this kernel has no nf_tables; set modules.edgeProxy.backend to iptables")
            }
            Errno::ENOENT | Errno::EOPNOTSUPP => Some(
                "does this kernel have nf_tables with nat (modules nf_tables, nft_chain_nat, \
                 nft_nat, nft_ct)? else set modules.edgeProxy.backend to iptables",
            ),
            _ => None,
        }
    }
}

impl std::error::Error for NftablesError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

impl fmt::Display for NftablesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, cause, .. } = self;
        match &self.command {
            Some(command) => write!(f, "nf_tables refused `{}`: {cause}", beginning(command))?,
            None => write!(f, "nf_tables refused a change of table {table}: {cause}")?,
        }
        if let Some(advice) = self.advice() {
            write!(f, "; {advice}")?;
        }
        match self.input.len() {
            0 => Ok(()),
            1..=SHOWN_BYTES => write!(f, "; to reproduce: nft -f - <<'EOF'\n{}EOF", self.input),
            _ => write!(
                f,
                "; to reproduce, begin with: nft -f - <<'EOF'\n{}EOF",
                beginning(&self.input)
            ),
        }
    }
}

/// As much of a long text as is of use, whole lines or at least whole characters.
fn beginning(text: &str) -> &str {
    let mut end = text.len().min(SHOWN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    match text[..end].rfind('\n') {
        Some(line_end) if end < text.len() => &text[..=line_end],
        _ => &text[..end],
    }
}
