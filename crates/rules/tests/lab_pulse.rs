//! The gates go by the signs of life that a pulse gives, and by nothing else, whichever way the
//! rules go.

mod on_node;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgemesh_lab::{Node, Place, await_until, test};
use edgemesh_rules::{Backend, BackendSetting, Family, Flavour, FlavourSetting, own_tables};
use on_node::{Beating, on_node, rules_for};

const FAMILY: Family = Family::V4;
const WAYS: [BackendSetting; 2] = [
    BackendSetting::Nftables,
    BackendSetting::Iptables(FlavourSetting::Fixed(Flavour::Nft)),
];
/// Longer than a gate stays open by itself.
const LONG: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks of the agent.
const PERIOD: Duration = Duration::from_millis(200);

fn is_open(node: &Node, way: BackendSetting) -> Result<bool> {
    if way == BackendSetting::Nftables {
        let tables = own_tables(FAMILY)?;
        return Ok(tables.iter().any(|table| table.open_for.is_some()));
    }
    let test = ["test", "EDGEMESH-ALIVE", "10.96.0.1"];
    Ok(node.program("ipset").args(test).run().is_ok())
}

#[test]
fn a_gate_stays_open_while_the_runtime_can_do_nothing_and_closes_without_signs_of_life()
-> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        for way in WAYS {
            let rules = rules_for(FAMILY, 2)?;
            on_node(&node, async || -> Result<()> {
                let backend = Backend::open(FAMILY, way).await?;
                let mut beating = Beating::keep_open(backend);
                beating.apply(&rules).await?;
                // The runtime's only thread does nothing else, as in a system call that does
                // not return.
                let closes = await_until(LONG, "the gate is closed", || {
                    is_open(&node, way).is_ok_and(|open| !open)
                });
                ensure!(closes.is_err(), "{way:?}: the gate closed");
                let mut silent = beating.hold_still();
                await_until(PATIENCE, "the gate is closed", || {
                    is_open(&node, way).is_ok_and(|open| !open)
                })?;
                silent.remove().await?;
                Ok(())
            })??;
        }
        Ok(())
    })
}

#[test]
fn a_gate_that_is_let_close_is_opened_by_no_look_and_no_change_until_the_next_sign_of_life()
-> Result<()> {
    test(|lab| {
        let node = lab.node("edge-1").create()?;
        for way in WAYS {
            let (rules, more) = (rules_for(FAMILY, 2)?, rules_for(FAMILY, 3)?);
            on_node(&node, async || -> Result<()> {
                let mut backend = Backend::open(FAMILY, way).await?;
                let mut pulse = backend.pulse();
                backend.apply(&rules).await?;
                ensure!(is_open(&node, way)?, "{way:?}: not opened");

                pulse.withhold();
                let mut period = tokio::time::interval(PERIOD);
                let began = Instant::now();
                while is_open(&node, way)? {
                    ensure!(began.elapsed() < PATIENCE, "{way:?}: it is kept open");
                    assert_eq!(backend.verify(&rules).await?.repairs, []);
                    period.tick().await;
                }
                backend.apply(&more).await?;
                ensure!(!is_open(&node, way)?, "{way:?}: a change opened it");
                backend.forget();
                backend.apply(&more).await?;
                ensure!(!is_open(&node, way)?, "{way:?}: it was made open");
                assert_eq!(backend.verify(&more).await?.repairs, []);
                ensure!(!is_open(&node, way)?, "{way:?}: a look opened it");

                pulse.beat()?;
                ensure!(
                    is_open(&node, way)?,
                    "{way:?}: a sign of life did not open it"
                );
                backend.remove().await?;
                pulse.beat()?;
                ensure!(!is_open(&node, way)?, "{way:?}: it is there still");
                Ok(())
            })??;
        }
        Ok(())
    })
}
