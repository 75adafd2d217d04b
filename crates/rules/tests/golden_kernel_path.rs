//! The nftables table of an example in which the kernel serves portals itself, as text.
//! `BLESS=1 cargo test` writes the files anew.

mod kernel_paths;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use edgemesh_rules::{Family, render_nftables};
use kernel_paths::example;

#[test]
fn the_ipv4_table_is_as_agreed() -> Result<()> {
    compare("ipv4-kernel.nft", Family::V4)
}

#[test]
fn the_ipv6_table_is_as_agreed() -> Result<()> {
    compare("ipv6-kernel.nft", Family::V6)
}

fn compare(name: &str, family: Family) -> Result<()> {
    let text = render_nftables(&example(family)?);
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, &text)?;
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    ensure!(
        text == golden,
        "{} differs (BLESS=1 writes it anew) from\n{text}",
        file.display()
    );
    Ok(())
}
