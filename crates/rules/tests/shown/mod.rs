//! Tables of nftables as nft shows them.

#![allow(dead_code, reason = "each lab uses a part of it")]

use anyhow::Result;
use edgemesh_lab::{Node, Place};
use edgemesh_rules::Family;

/// A table as nft lists it, without what differs from one moment or owner to another.
pub(crate) fn table(node: &Node, family: Family, name: &str) -> Result<String> {
    let text = node
        .program("nft")
        .args(["-s", "list", "table", family.nft_name(), name])
        .run()?;
    Ok(text
        .lines()
        .filter(|line| !line.is_empty() && *line != "\tflags owner")
        .map(|line| line.split(" # progname ").next().unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect())
}

/// Whether the table exists.
pub(crate) fn has_table(node: &Node, family: Family, name: &str) -> Result<bool> {
    let tables = node.program("nft").args(["list", "tables"]).run()?;
    let line = format!("table {} {name}", family.nft_name());
    Ok(tables.lines().any(|found| found.trim_end() == line))
}
