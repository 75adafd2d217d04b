//! Portals that the kernel serves itself, by nftables: what stands in the kernel.

mod kernel_paths;
mod on_node;
mod shown;

use std::sync::Arc;

use anyhow::Result;
use edgemesh_lab::{Place, test};
use edgemesh_rules::{Change, Family, render_nftables};
use kernel_paths::example;
use on_node::{nftables, on_node};
use shown::table;

#[test]
fn what_nft_lists_is_what_was_rendered() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let other = lab.node("edge-2").create()?;
        for family in Family::BOTH {
            let rules = Arc::new(example(family)?);
            let own = on_node(&node, async || -> Result<String> {
                let mut backend = nftables(family).await?;
                assert_eq!(backend.no_kernel_path(), None);
                assert_eq!(backend.no_affinity(), None);
                let applied = backend.apply(&rules).await?;
                assert_eq!(applied.change, Change::Rewritten);
                assert_eq!(backend.verify(&rules).await?.repairs, []);
                table(&node, family, "edgemesh")
            })??;
            let rendered = render_nftables(&rules);
            other
                .program("nft")
                .args(["-f", "-"])
                .input(rendered)
                .run()?;
            assert_eq!(own, table(&other, family, "edgemesh")?);
        }
        Ok(())
    })
}
