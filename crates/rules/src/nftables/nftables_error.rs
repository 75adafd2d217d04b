//! Why the kernel did not do what was asked of it.

use std::fmt;
use std::io;

use nix::errno::Errno;

use super::table_name::TableName;

/// How much of an input is shown in an error.
pub(super) const SHOWN_BYTES: usize = 4096;

/// The kernel did not take over a change of our table, or did not tell of it.
#[derive(Debug)]
pub struct NftablesError {
    pub(super) table: TableName,
    /// What it refused; none when that was the whole.
    pub(super) command: Option<String>,
    pub(super) cause: io::Error,
    /// The whole as nft's commands, or their beginning.
    pub(super) input: String,
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
        // A name that is longer than older kernels take is out of range.
        matches!(
            self.errno(),
            Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE)
        )
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::ENOENT)
    }

    /// Whether the input was too long for one message.
    pub(super) fn is_too_long(&self) -> bool {
        self.errno() == Some(Errno::EMSGSIZE)
    }

    /// What was refused and why, in one line without advice.
    pub(super) fn short(&self) -> String {
        let command = self.command.as_deref().unwrap_or("a change of its table");
        let what = command.lines().next().unwrap_or_default();
        format!("nf_tables refused `{}`: {}", beginning(what), self.cause)
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
