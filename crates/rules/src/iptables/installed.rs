//! The iptables programs of this host, by flavour.

use std::path::PathBuf;

use crate::Family;
use crate::iptables::door::{self, Invocation, ToolError};
use crate::iptables::flavour::Flavour;

/// How long iptables-restore waits for the lock of iptables-legacy before it gives up.
const WAIT_FOR_LOCK: &str = "--wait=5";

/// The programs by which one family's nat table is read and changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    pub(crate) family: Family,
    pub(crate) flavour: Flavour,
    save: PathBuf,
    restore: PathBuf,
    /// Whether they know `MASQUERADE --random-fully`, as since 1.6.2.
    pub(crate) random_fully: bool,
}

impl Tools {
    /// All of a table, as `iptables-save` prints it.
    pub(crate) async fn save(&self, table: &str) -> Result<String, ToolError> {
        door::run(Invocation {
            program: &self.save,
            arguments: &["-t", table],
            input: "",
        })
        .await
    }

    /// The same with how many packets each rule matched.
    pub(crate) async fn save_with_counters(&self, table: &str) -> Result<String, ToolError> {
        door::run(Invocation {
            program: &self.save,
            arguments: &["-c", "-t", table],
            input: "",
        })
        .await
    }

    /// Changes what the input names, and nothing else.
    pub(crate) async fn restore(&self, input: &str) -> Result<(), ToolError> {
        door::run(Invocation {
            program: &self.restore,
            arguments: &[WAIT_FOR_LOCK, "--noflush"],
            input,
        })
        .await
        .map(|_| ())
    }

    /// Whether the kernel may have the table; false only if it certainly has not.
    ///
    /// iptables-legacy makes a table by looking at it, which then counts as a table in
    /// use for whoever looks next. The kernel's own list tells without making one.
    pub(crate) fn may_have_table(&self, table: &str) -> bool {
        match self.flavour {
            Flavour::Nft => true,
            Flavour::Legacy => std::fs::read_to_string(self.family.legacy_table_names())
                .is_ok_and(|names| names.lines().any(|name| name == table)),
        }
    }
}

/// What a program says of its version, in one line; none when it is not there.
pub(crate) async fn version_of(program: &str, flag: &str) -> Option<Result<String, String>> {
    let program = door::find(program)?;
    let answer = door::run(Invocation {
        program: &program,
        arguments: &[flag],
        input: "",
    })
    .await;
    Some(
        answer
            .map_err(|error| error.to_string())
            .map(|text| text.lines().next().unwrap_or_default().trim().to_owned()),
    )
}

/// The tools of every flavour that is installed, nft first.
pub(crate) async fn installed(family: Family) -> Vec<Tools> {
    let mut found = Vec::new();
    for flavour in Flavour::BOTH {
        found.extend(named_for(family, flavour));
    }
    if found.len() < Flavour::BOTH.len() {
        let unnamed = without_flavour_in_name(family).await;
        found.extend(unnamed.filter(|tools| found.iter().all(|f| f.flavour != tools.flavour)));
        found.sort_by_key(|tools| tools.flavour);
    }
    found
}

fn named_for(family: Family, flavour: Flavour) -> Option<Tools> {
    let program = |what| door::find(&format!("{}-{flavour}-{what}", family.tool()));
    Some(Tools {
        family,
        flavour,
        save: program("save")?,
        restore: program("restore")?,
        // A flavour in the name came with 1.8.
        random_fully: true,
    })
}

/// Programs whose name doesn't tell their flavour: their version does.
async fn without_flavour_in_name(family: Family) -> Option<Tools> {
    let program = door::find(family.tool())?;
    let beside = |what| door::find(&format!("{}-{what}", family.tool()));
    let (save, restore) = (beside("save")?, beside("restore")?);
    let version = door::run(Invocation {
        program: &program,
        arguments: &["-V"],
        input: "",
    })
    .await
    .inspect_err(|error| tracing::warn!(%error, "can't tell the flavour of iptables"))
    .ok()?;
    Some(Tools {
        family,
        flavour: flavour_of_version(&version),
        save,
        restore,
        random_fully: knows_random_fully(&version),
    })
}

/// `iptables v1.8.9 (nf_tables)`, `iptables v1.8.9 (legacy)`; before 1.8 there was legacy
/// alone and nothing in parentheses.
fn flavour_of_version(version: &str) -> Flavour {
    if version.contains("nf_tables") {
        Flavour::Nft
    } else {
        Flavour::Legacy
    }
}

/// `iptables v1.6.2`; what can't be read is taken for older.
fn knows_random_fully(version: &str) -> bool {
    let numbers = version
        .split_once(" v")
        .map_or("", |(_, rest)| rest.split_whitespace().next().unwrap_or(""));
    let numbers: Vec<u32> = numbers.split('.').flat_map(str::parse).collect();
    numbers >= vec![1, 6, 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_fully_came_with_1_6_2() {
        for (version, knows) in [
            ("iptables v1.6.1\n", false),
            ("iptables v1.6.2\n", true),
            ("iptables v1.8.9 (legacy)\n", true),
            ("iptables v1.10\n", true),
            ("ip6tables v1.4.21", false),
            ("something else", false),
        ] {
            assert_eq!(knows_random_fully(version), knows, "{version}");
        }
    }

    #[test]
    fn the_version_tells_the_flavour() {
        assert_eq!(
            flavour_of_version("iptables v1.8.9 (nf_tables)\n"),
            Flavour::Nft
        );
        assert_eq!(
            flavour_of_version("ip6tables v1.8.9 (legacy)\n"),
            Flavour::Legacy
        );
        assert_eq!(flavour_of_version("iptables v1.6.1\n"), Flavour::Legacy);
    }
}
