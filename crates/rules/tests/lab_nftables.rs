//! The nftables backend on a real kernel.

mod on_node;

use anyhow::Result;
use edgemesh_lab::{Node, Place, test};
use edgemesh_rules::{Change, Family, render_nftables};
use on_node::{nftables, on_node, rules_for};

/// The table as nft lists it, without counters and remaining times.
fn listed(node: &Node, family: Family, table: &str) -> Result<String> {
    let text = node
        .program("nft")
        .args(["-s", "list", "table", family.nft_name(), table])
        .run()?;
    Ok(text
        .lines()
        .filter(|line| !line.is_empty() && *line != "\tflags owner")
        .map(|line| line.split(" # progname ").next().unwrap_or(line))
        .map(|line| format!("{line}\n"))
        .collect())
}

#[test]
fn what_nft_lists_is_what_was_rendered() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let other = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            let rules = rules_for(family, 5)?;
            let own = on_node(&node, async || -> Result<String> {
                let mut backend = nftables(family).await?;
                let applied = backend.apply(&rules).await?;
                assert_eq!(applied.change, Change::Rewritten);
                listed(&node, family, "edgemesh")
            })??;
            other
                .program("nft")
                .args(["-f", "-"])
                .input(render_nftables(&rules))
                .run()?;
            assert_eq!(own, listed(&other, family, "edgemesh")?);
        }
        Ok(())
    })
}
