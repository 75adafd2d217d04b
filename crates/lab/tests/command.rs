//! A command that runs itself again inside a lab, tested from outside: this test binary is
//! both the command (with the argument `command`) and the test.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use edgemesh_lab::{Background, Entered, Place, Program, await_until, enter};
use nix::sys::signal::Signal;

const LONG: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some("command") {
        return command();
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        a_signal_reaches_the_command_inside_which_ends_in_its_own_way(signal)?;
    }
    a_killed_command_takes_its_lab_down()
}

/// Says that it is up, waits for the end, and then exits with a code of its own.
#[expect(
    clippy::print_stdout,
    reason = "the test reads what the command prints"
)]
fn command() -> Result<()> {
    let inside = match enter()? {
        Entered::Over(code) => std::process::exit(code),
        Entered::Inside(inside) => inside,
    };
    let node = inside.lab.node("edge-1").create()?;
    println!("{}", node.program("echo").arg("up").run()?.trim());
    await_until(LONG, "the interrupt", || inside.interrupted())?;
    println!("interrupted");
    std::process::exit(7);
}

fn a_signal_reaches_the_command_inside_which_ends_in_its_own_way(signal: Signal) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = start_command(&folder, "signalled")?;
    command.signal(signal)?;
    let status = command.wait(LONG)?;
    ensure!(status.code() == Some(7), "{signal}: {status}");
    ensure!(command.log() == "up\ninterrupted\n", "{}", command.log());
    Ok(())
}

fn a_killed_command_takes_its_lab_down() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mark = format!("killed-{}", std::process::id());
    let mut command = start_command(&folder, &mark)?;
    let running = processes_with(&mark);
    if running < 3 {
        bail!("the command, unshare and the command inside should run, but {running} do");
    }
    command.kill()?;
    await_until(LONG, "the command inside is gone too", || {
        processes_with(&mark) == 0
    })?;
    Ok(())
}

fn start_command(folder: &tempfile::TempDir, mark: &str) -> Result<Background> {
    let mut command = Program::new(std::env::current_exe()?)
        .args(["command", mark])
        .start(folder.path().join("log"))?;
    command.await_log(LONG, "up\n")?;
    Ok(command)
}

fn processes_with(mark: &str) -> usize {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return 0;
    };
    processes
        .filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok())
        .filter(|line| {
            String::from_utf8_lossy(line)
                .split('\0')
                .any(|word| word == mark)
        })
        .count()
}
