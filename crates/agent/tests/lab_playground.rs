//! The first thing an operator tries: it must keep every promise it prints, leave nothing
//! behind, and end in order when it is interrupted.

use std::time::Duration;

use anyhow::{Result, ensure};
use edgemesh_lab::{Program, Signal, await_ok};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LONG: Duration = Duration::from_secs(120);
/// Columns of a terminal.
const WIDTH: usize = 80;

#[test]
fn two_at_once_keep_every_promise_one_in_each_flavour() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut running = Vec::new();
    for flavour in ["nft", "legacy"] {
        let playground = Program::new(AGENT)
            .args(["playground", "--flavour", flavour])
            .start(folder.path().join(flavour))?;
        running.push(playground);
    }
    for mut playground in running {
        let status = playground.wait(LONG)?;
        let screen = playground.log();
        assert_eq!(status.code(), Some(0), "{screen}");
        for shown in ["KUBE-SERVICES", "direct", "hole-punched", "relayed"] {
            assert!(screen.contains(shown), "no {shown}:\n{screen}");
        }
        assert!(!screen.contains("   NO  "), "{screen}");
        assert!(screen.contains("promises kept"), "{screen}");
        // To a file, so without colours.
        assert!(!screen.contains('\x1b'), "{screen}");
        let wide = screen.lines().find(|line| line.chars().count() > WIDTH);
        assert_eq!(wide, None, "{screen}");
    }
    Ok(())
}

#[test]
fn held_it_tells_the_way_in_and_goes_on_when_interrupted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut playground = Program::new(AGENT)
        .args(["playground", "--hold"])
        .start(folder.path().join("screen"))?;
    playground.await_log(LONG, "  in=\"")?;
    let screen = playground.log();
    let way_in = screen
        .lines()
        .find_map(|line| line.trim().strip_prefix("in=\"")?.strip_suffix('"'))
        .unwrap_or_default();
    let inside = |command: &str| {
        Program::new("sh")
            .args(["-c", &format!("{way_in} edge-1 {command}")])
            .run()
    };
    let rules = inside("iptables-nft -t nat -S")?;
    assert!(rules.contains("default/camera:http"), "{rules}");
    // After an uplink was away, the connections that replace those from before choose their
    // paths when they are there.
    await_ok(LONG, "the cloud is reached directly", || {
        let status = inside(&format!("{AGENT} status"))?;
        ensure!(status.contains("cloud-1: direct"), "{status}");
        Ok(())
    })?;

    playground.signal(Signal::SIGINT)?;
    let status = playground.wait(LONG)?;
    assert_eq!(status.code(), Some(0), "{}", playground.log());
    assert!(playground.log().contains("promises kept"));
    Ok(())
}
