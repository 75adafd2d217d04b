//! The first thing an operator tries: it must keep every promise it prints, leave nothing
//! behind, and end in order when it is interrupted.

use std::time::Duration;

use anyhow::Result;
use edgemesh_lab::{Program, Signal};

const AGENT: &str = env!("CARGO_BIN_EXE_edgemesh-agent");
const LONG: Duration = Duration::from_secs(60);

#[test]
fn every_promise_is_kept_in_both_flavours() -> Result<()> {
    for flavour in ["nft", "legacy"] {
        let shown = Program::new(AGENT)
            .args(["playground", "--flavour", flavour])
            .output()?;
        let screen = format!("{}{}", shown.stdout, shown.stderr);
        assert!(shown.status.success(), "{screen}");
        assert!(screen.contains("EDGEMESH-PORTALS-CONTAINER"), "{screen}");
        assert!(!screen.contains("   NO  "), "{screen}");
        assert!(screen.contains("promises kept"), "{screen}");
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
    let rules = Program::new("sh")
        .args(["-c", &format!("{way_in} edge-1 iptables-nft -t nat -S")])
        .run()?;
    assert!(rules.contains("default/web:http"), "{rules}");

    playground.signal(Signal::SIGINT)?;
    let status = playground.wait(LONG)?;
    assert_eq!(status.code(), Some(0), "{}", playground.log());
    assert!(playground.log().contains("promises kept"));
    Ok(())
}
