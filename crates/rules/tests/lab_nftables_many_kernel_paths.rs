//! Ten thousand Services that the kernel serves itself: what a change costs must not depend on
//! how many others there are. Times and memory are printed (`cargo test -- --nocapture`), not
//! asserted.

mod kernel_paths;
mod on_node;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edgemesh_catalog::Protocol;
use edgemesh_lab::test_within;
use edgemesh_rules::{Backend, Change, Family, KernelEndpoint, Mark, Ruleset, Sharing};
use kernel_paths::{add, endpoints, intercept, with_agent};
use on_node::{nftables, on_node};

const SERVICES: u16 = 10_000;
const LIMIT: Duration = Duration::from_secs(300);
const FAMILY: Family = Family::V4;

#[test]
fn one_service_or_endpoint_more_among_ten_thousand_of_two_is_a_small_transaction() -> Result<()> {
    test_within(LIMIT, |lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || follow(2).await)?
    })
}

#[test]
fn one_service_or_endpoint_more_among_ten_thousand_of_ten_is_a_small_transaction() -> Result<()> {
    test_within(LIMIT, |lab| {
        let node = lab.node("edge-1").create()?;
        on_node(&node, async || follow(10).await)?
    })
}

async fn follow(each: u8) -> Result<()> {
    let what = |name: &str| format!("{SERVICES} services of {each}: {name}");
    let many = Arc::new(services(each)?);
    let before = Memory::now()?;
    let mut backend = nftables(FAMILY).await?;
    let applied = backend.apply(&many).await?;
    assert_eq!(applied.change, Change::Rewritten);
    say(&what("all in"), applied.took);
    Memory::now()?.say_since(&before, &what("all in"));
    say(&what("look"), backend.verify(&many).await?.took);

    let pods = pods(each, 1);
    let mut more = Ruleset::clone(&many);
    let new = (SERVICES, Protocol::Tcp, 80);
    add(
        &mut more,
        new,
        "default/new:http",
        Some((&pods, Sharing::Alone)),
    )?;
    // The agent's part, that it is among so many, its address, what chooses among so many; and its
    // endpoints, which may have other numbers from now on.
    let lines = 5 + 2 * usize::from(each);
    change(
        &mut backend,
        [&many, &Arc::new(more)],
        lines,
        &what("one service"),
    )
    .await?;

    let mut larger = Ruleset::clone(&many);
    let pods = self::pods(each + 1, 1);
    let changed = (1, Protocol::Tcp, 80);
    add(
        &mut larger,
        changed,
        &name(1),
        Some((&pods, Sharing::Alone)),
    )?;
    // The element that says among how many, the endpoint, and what chooses among so many.
    change(
        &mut backend,
        [&many, &Arc::new(larger)],
        lines,
        &what("one endpoint"),
    )
    .await?;

    let mut shared = Ruleset::clone(&many);
    let pods = self::pods(each - 1, 1);
    add(
        &mut shared,
        changed,
        &name(1),
        Some((&pods, with_agent(1)?)),
    )?;
    change(
        &mut backend,
        [&many, &Arc::new(shared)],
        lines,
        &what("one to the agent"),
    )
    .await?;

    let started = Instant::now();
    backend.remove().await?;
    say(&what("all out"), started.elapsed());
    Ok(())
}

/// From one ruleset to the other and back, several times.
async fn change(
    backend: &mut Backend,
    [one, other]: [&Arc<Ruleset>; 2],
    lines: usize,
    what: &str,
) -> Result<()> {
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let started = Instant::now();
        let applied = backend.apply(other).await?;
        there.push(started.elapsed());
        assert_eq!(applied.change, Change::Incremental, "{what}");
        assert!(applied.lines <= lines, "{what}: {} lines", applied.lines);
        let started = Instant::now();
        let applied = backend.apply(one).await?;
        back.push(started.elapsed());
        assert_eq!(applied.change, Change::Incremental);
    }
    for (times, word) in [(&mut there, "there"), (&mut back, "back")] {
        times.sort_unstable();
        say(&format!("{what}, {word} (median)"), times[times.len() / 2]);
        say(&format!("{what}, {word} (longest)"), times[times.len() - 1]);
    }
    Ok(())
}

fn services(each: u8) -> Result<Ruleset> {
    let mut rules = Ruleset::new(intercept(FAMILY), 20008, Mark::AGENT);
    for number in 0..SERVICES {
        let pods = pods(each, number);
        let path = Some((&pods[..], Sharing::Alone));
        add(&mut rules, (number, Protocol::Tcp, 80), &name(number), path)?;
    }
    Ok(rules)
}

fn name(number: u16) -> String {
    format!("default/service-{number}:http")
}

fn pods(each: u8, service: u16) -> Vec<KernelEndpoint> {
    let [high, low] = service.to_be_bytes();
    let pods: Vec<_> = (0..each)
        .map(|n| (1 + n % 4, low ^ n.rotate_left(4)))
        .collect();
    endpoints(FAMILY, &pods, 8000 + u16::from(high))
}

/// What the kernel and this process have taken, in KiB.
#[derive(Debug)]
struct Memory {
    kernel: i64,
    own: i64,
    most: i64,
}

impl Memory {
    fn now() -> Result<Self> {
        let field = |text: &str, name: &str| -> Result<i64> {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
            let value = lines.next().context("no such field")?;
            Ok(value
                .trim_start_matches(':')
                .trim()
                .trim_end_matches(" kB")
                .parse()?)
        };
        let host = std::fs::read_to_string("/proc/meminfo")?;
        let own = std::fs::read_to_string("/proc/self/status")?;
        Ok(Self {
            kernel: field(&host, "SUnreclaim")?
                + field(&host, "Percpu")?
                + field(&host, "VmallocUsed")?,
            own: field(&own, "VmRSS")?,
            most: field(&own, "VmHWM")?,
        })
    }

    #[expect(clippy::print_stdout, reason = "for whoever runs it with --nocapture")]
    fn say_since(&self, before: &Self, what: &str) {
        println!(
            "{what}: kernel +{} KiB (whatever else the host does), own +{} KiB (at most +{} KiB)",
            self.kernel - before.kernel,
            self.own - before.own,
            self.most - before.own
        );
    }
}

#[expect(clippy::print_stdout, reason = "for whoever runs it with --nocapture")]
fn say(what: &str, took: Duration) {
    println!("{what}: {took:.1?}");
}
