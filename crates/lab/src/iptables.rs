//! The two flavours of iptables and their tools.

use std::fmt;

use anyhow::Result;

use crate::client::Place;

/// Which of the kernel's two rule stores iptables works on. They don't see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// `iptables-nft`: rules in nf_tables.
    Nft,
    /// `iptables-legacy`: rules in x_tables.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// As it stands in the names of the tools: `nft` or `legacy`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The name of a tool, e.g. `ip6tables-legacy-restore` for the action `restore`;
    /// the empty action is the command itself, `ip6tables-legacy`.
    #[must_use]
    pub fn tool(self, family: Family, action: &str) -> String {
        let (command, flavour) = (family.command(), self.name());
        if action.is_empty() {
            format!("{command}-{flavour}")
        } else {
            format!("{command}-{flavour}-{action}")
        }
    }

    /// Loads `text` (in the format of iptables-save) in one transaction per table,
    /// leaving all it does not mention as it is.
    ///
    /// # Errors
    ///
    /// The tool's own, with its command line.
    pub fn restore(self, place: &impl Place, family: Family, text: &str) -> Result<()> {
        place
            .program(self.tool(family, "restore"))
            .args(["--wait", "5", "--noflush", "--counters"])
            .input(text)
            .run()
            .map(|_| ())
    }

    /// Everything in one table, with counters, in the format of iptables-save.
    ///
    /// # Errors
    ///
    /// The tool's own, with its command line.
    pub fn save(self, place: &impl Place, family: Family, table: Table) -> Result<String> {
        place
            .program(self.tool(family, "save"))
            .args(["--counters", "--table", table.name()])
            .run()
    }

    /// Runs one command, e.g. `["-t", "nat", "-F"]`, and returns what it printed.
    ///
    /// # Errors
    ///
    /// The tool's own, with its command line.
    pub fn command<A: AsRef<std::ffi::OsStr>>(
        self,
        place: &impl Place,
        family: Family,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        place
            .program(self.tool(family, ""))
            .args(["--wait", "5"])
            .args(arguments)
            .run()
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The address family a set of rules is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4, programmed by `iptables`.
    V4,
    /// IPv6, programmed by `ip6tables`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `iptables` or `ip6tables`.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Packets may be refused.
    Filter,
    /// Packets may be marked.
    Mangle,
    /// The first packet of a connection may be sent elsewhere.
    Nat,
}

impl Table {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}
