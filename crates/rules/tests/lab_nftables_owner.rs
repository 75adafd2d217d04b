//! The owner of a table is another process, which is stopped or killed.

mod on_node;
mod shown;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use edgemesh_lab::{Background, Node, Place, Signal, await_ok, await_until, test};
use edgemesh_rules::Family;
use on_node::{nftables, on_node, rules_for};
use shown::{has_table, table};

/// By this variable of its environment a process knows that it is to be the owner.
const BE_OWNER: &str = "EDGEMESH_BE_OWNER";
const PATIENCE: Duration = Duration::from_secs(10);
/// What the agent promises about new connections when it is killed.
const AT_ONCE: Duration = Duration::from_secs(1);
const FAMILY: Family = Family::V4;

/// No test, but the process that the others start.
#[test]
fn owner() -> Result<()> {
    if std::env::var_os(BE_OWNER).is_none() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut backend = nftables(FAMILY).await?;
        backend.apply(&rules_for(FAMILY, 2)?).await?;
        std::future::pending().await
    })
}

fn start_owner(node: &Node) -> Result<Background> {
    let log = PathBuf::from(format!("/run/owner-of-{}.log", node.name()));
    let owner = node
        .program(std::env::current_exe()?)
        .args(["--exact", "owner", "--nocapture"])
        .env(BE_OWNER, "yes")
        .start(&log)?;
    await_ok(PATIENCE, "the owner has made its table", || {
        table(node, FAMILY, "edgemesh").with_context(|| owner.log())
    })?;
    Ok(owner)
}

fn gate_is_open(node: &Node) -> bool {
    table(node, FAMILY, "edgemesh").is_ok_and(|text| text.contains("elements = { original"))
}

#[test]
fn the_table_is_gone_at_once_when_its_owner_is_killed() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let mut owner = start_owner(&node)?;
        owner.kill()?;
        await_until(AT_ONCE, "the table is gone", || {
            has_table(&node, FAMILY, "edgemesh").is_ok_and(|there| !there)
        })?;
        Ok(())
    })
}

#[test]
fn signs_of_life_keep_the_gate_open_and_a_hung_owners_gate_closes() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let mut owner = start_owner(&node)?;
        // Longer than the gate stays open by itself.
        let stays_open = await_until(Duration::from_secs(4), "the gate is closed", || {
            !gate_is_open(&node)
        });
        assert!(stays_open.is_err(), "no sign of life kept the gate open");
        owner.signal(Signal::SIGSTOP)?;
        await_until(
            Duration::from_secs(5),
            "a hung owner's gate is closed",
            || !gate_is_open(&node),
        )?;
        owner.signal(Signal::SIGCONT)?;
        await_until(PATIENCE, "the gate is open again", || gate_is_open(&node))?;
        owner.kill()
    })
}

#[test]
fn while_the_one_before_still_holds_its_table_the_next_one_makes_another() -> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        let mut owner = start_owner(&node)?;
        let rules = rules_for(FAMILY, 3)?;
        on_node(&node, async || -> Result<()> {
            let mut backend = nftables(FAMILY).await?;
            backend.apply(&rules).await?;
            let own = table(&node, FAMILY, "edgemesh-2")?;
            assert!(own.contains("service-2") && has_table(&node, FAMILY, "edgemesh")?);
            owner.kill()?;
            await_until(AT_ONCE, "the first table is gone", || {
                has_table(&node, FAMILY, "edgemesh").is_ok_and(|there| !there)
            })?;
            assert_eq!(backend.verify(&rules).await?.repairs, []);
            assert_eq!(table(&node, FAMILY, "edgemesh-2")?, own);
            backend.remove().await?;
            drop(backend);
            assert!(!has_table(&node, FAMILY, "edgemesh-2")?);
            Ok(())
        })?
    })
}
