//! The way into a lab: this executable is run again inside private namespaces.
//!
//! `unshare` (util-linux) makes the namespaces; the process inside is the first of its
//! pid namespace, so that its end is the end of everything in the lab. It also ends when
//! the process outside does, which it notices by its standard input.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::await_until::pause;
use crate::iptables::Flavour;
use crate::lab::Lab;
use crate::process::{Output, Program, pid_of};
use crate::way_in::{WayIn, way_in, way_in_of_root};

/// Tells the process inside that it is inside, and which case of a test to run.
pub(crate) const CASE: &str = "EDGEMESH_LAB_CASE";
/// How many seconds a test in a lab may take, over [`TEST_LIMIT`].
const LIMIT: &str = "EDGEMESH_LAB_SECONDS";
const TEST_LIMIT: Duration = Duration::from_secs(120);
/// The exit status of a test that ran and passed. Not 0: that is what a test binary
/// ends with when it found no test of the given name.
const PASSED: i32 = 96;
const FAILED: i32 = 1;

/// Runs `body` in a lab of its own. To be called by a `#[test]`, with a closure that is
/// written in it: the closure's type tells the name of the test to run inside.
///
/// Returns in the outer process only; what follows it in the test runs outside the lab.
/// The lab may take 120 s, or as many as `EDGEMESH_LAB_SECONDS` says.
///
/// # Errors
///
/// When no lab can be made here, with what to enable; when the body fails, panics or takes
/// too long, with everything it wrote.
pub fn test<F>(body: F) -> Result<()>
where
    F: FnOnce(&Lab) -> Result<()>,
{
    test_within(TEST_LIMIT, body)
}

/// As [`test()`], but in a lab that has all users of this machine in it, where root runs the
/// test: a user namespace as anybody may make has one user alone. Where that can't be had, the
/// lab is as others are; [`has_users`] tells.
///
/// # Errors
///
/// As [`test()`].
pub fn test_among_users<F>(body: F) -> Result<()>
where
    F: FnOnce(&Lab) -> Result<()>,
{
    match std::env::var_os(CASE) {
        Some(_) => finish_test(body),
        None => run_again_in(way_in_of_root()?, &test_name::<F>()?, "lab", TEST_LIMIT),
    }
}

/// Whether there are other users than root where this process is.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn has_users() -> Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map").context("cannot read uid_map")?;
    // First one inside, first one outside, how many.
    let counts = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    Ok(counts
        .filter_map(|count| count.parse::<u64>().ok())
        .sum::<u64>()
        > 1)
}

/// As [`test()`], with a time limit of its own (`EDGEMESH_LAB_SECONDS` still wins).
///
/// # Errors
///
/// As [`test()`].
pub fn test_within<F>(limit: Duration, body: F) -> Result<()>
where
    F: FnOnce(&Lab) -> Result<()>,
{
    match std::env::var_os(CASE) {
        Some(_) => finish_test(body),
        None => run_again_for_test(&test_name::<F>()?, "lab", limit),
    }
}

/// Runs `body` once for each iptables flavour, each time in a lab of its own; else as
/// [`test()`].
///
/// # Errors
///
/// As [`test()`], naming the flavour.
pub fn test_each_flavour<F>(body: F) -> Result<()>
where
    F: FnOnce(&Lab, Flavour) -> Result<()>,
{
    if let Some(case) = std::env::var_os(CASE) {
        let flavour = Flavour::ALL
            .into_iter()
            .find(|flavour| case == flavour.name())
            .ok_or_else(|| anyhow!("{CASE} names no iptables flavour: {case:?}"))?;
        finish_test(|lab| body(lab, flavour));
    }
    let name = test_name::<F>()?;
    for flavour in Flavour::ALL {
        run_again_for_test(&name, flavour.name(), TEST_LIMIT)
            .with_context(|| format!("with iptables-{}", flavour.name()))?;
    }
    Ok(())
}

/// Where [`enter()`] returned.
#[derive(Debug)]
pub enum Entered {
    /// Inside a new lab.
    Inside(Inside),
    /// Outside, after the process inside has ended, with the exit code it ended with.
    Over(i32),
}

/// A command's view of the lab it runs in.
#[derive(Debug)]
pub struct Inside {
    /// The lab.
    pub lab: Lab,
    outside: Outside,
    interrupted: Arc<AtomicBool>,
}

impl Inside {
    /// The words before a command that take another terminal of the same user into the lab,
    /// ready for `ip netns exec NAME …`.
    #[must_use]
    pub fn nsenter(&self) -> String {
        let pid = self.outside.pid;
        let user = match self.outside.way_in {
            WayIn::UserNamespace => "--user --preserve-credentials ",
            WayIn::Root => "",
        };
        format!("nsenter --target {pid} {user}--mount --pid")
    }

    /// Whether the lab is in a user namespace, which [`enter_as_root_if_possible`] may avoid.
    #[must_use]
    pub fn is_in_user_namespace(&self) -> bool {
        self.outside.way_in == WayIn::UserNamespace
    }

    /// Whether the user asked for the end (SIGINT, SIGTERM or SIGHUP).
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// Runs the current command again, with the same arguments, inside a new lab: the process
/// inside gets [`Entered::Inside`]; the one outside passes signals on, waits for it and
/// gets [`Entered::Over`]. To be called before any other thread is started.
///
/// Standard output and error are the terminal's; standard input is not available inside.
///
/// # Errors
///
/// When no lab can be made here, with what to enable.
pub fn enter() -> Result<Entered> {
    enter_by(way_in)
}

/// As [`enter()`], but without a user namespace where root calls it: within one,
/// iptables-nft can't enlarge its socket's buffer, so that programs that want more than
/// some hundred rules in one transaction fail ("Message too long").
///
/// # Errors
///
/// As [`enter()`].
pub fn enter_as_root_if_possible() -> Result<Entered> {
    enter_by(way_in_of_root)
}

fn enter_by(way_in: fn() -> Result<WayIn>) -> Result<Entered> {
    if std::env::var_os(CASE).is_none() {
        return run_again_for_command(way_in()?).map(Entered::Over);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    // The first process of a pid namespace ignores every signal it has no handler for.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("cannot handle signals")?;
    }
    Ok(Entered::Inside(Inside {
        outside: hold_on_to_outside()?,
        lab: furnish()?,
        interrupted,
    }))
}

fn test_name<F>() -> Result<String> {
    let closure = std::any::type_name::<F>();
    closure
        .strip_suffix("::{{closure}}")
        .and_then(|path| path.split_once("::"))
        .map(|(_crate, name)| name.to_owned())
        .ok_or_else(|| {
            anyhow!("a lab test takes a closure written in the test itself, not `{closure}`")
        })
}

/// Runs the body and ends this process: the rest of the test is for the outer one.
#[expect(
    clippy::print_stderr,
    reason = "the process outside reads there why the test failed"
)]
fn finish_test(body: impl FnOnce(&Lab) -> Result<()>) -> ! {
    let outcome = hold_on_to_outside()
        .and_then(|_| furnish())
        .and_then(|lab| body(&lab));
    match outcome {
        Ok(()) => std::process::exit(PASSED),
        Err(error) => {
            eprintln!("{error:?}");
            std::process::exit(FAILED)
        }
    }
}

/// What the process outside tells the one inside, in one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outside {
    /// The process id of the lab's first process as the world outside knows it.
    pid: i32,
    way_in: WayIn,
}

impl Outside {
    fn to_line(self) -> String {
        format!("{} {}", self.pid, self.way_in.name())
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, way_in) = line.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            way_in: WayIn::ALL.into_iter().find(|way| way.name() == way_in)?,
        })
    }
}

/// Reads what the process outside has to tell, then ends this process, and the lab with
/// it, as soon as the process outside is gone.
fn hold_on_to_outside() -> Result<Outside> {
    let mut line = String::new();
    let mut outside = BufReader::new(std::io::stdin());
    outside
        .read_line(&mut line)
        .context("cannot read from the process outside the lab")?;
    let told = Outside::parse(&line)
        .with_context(|| format!("{line:?} is not what a process outside the lab writes"))?;
    thread::Builder::new()
        .name("outside".to_owned())
        .spawn(move || {
            let _ = std::io::copy(&mut outside, &mut std::io::sink());
            std::process::exit(FAILED);
        })
        .context("cannot start a thread")?;
    Ok(told)
}

/// What every lab has: its own `/run` (names of network namespaces, lock of iptables,
/// logs) and a loopback device.
fn furnish() -> Result<Lab> {
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755"),
    )
    .context("cannot mount a tmpfs on /run inside the lab")?;
    Program::new("ip").args(["link", "set", "lo", "up"]).run()?;
    Lab::new()
}

fn run_again_for_test(name: &str, case: &str, default_limit: Duration) -> Result<()> {
    run_again_in(way_in()?, name, case, default_limit)
}

fn run_again_in(way_in: WayIn, name: &str, case: &str, default_limit: Duration) -> Result<()> {
    let limit = limit_from_environment()?.unwrap_or(default_limit);
    let mut written = tempfile::tempfile().context("cannot make a file for the test's output")?;
    let output = written
        .try_clone()
        .context("cannot share the file for the test's output")?;
    // Whether a test is to be left out was decided outside.
    let arguments = [
        "--exact",
        name,
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
    ];
    let mut first = start_inside(way_in, &arguments, case, Output::File(output))?;
    let ended = wait_within(&mut first.unshare, limit)?;
    let report = read_from_start(&mut written)?;
    let Some(status) = ended else {
        bail!(
            "{name} was still running in its lab after {limit:?} ({LIMIT} sets the limit); \
             it wrote:\n{report}"
        );
    };
    match status.code() {
        Some(PASSED) => {
            forward(&report);
            Ok(())
        }
        Some(0) => bail!(
            "the test binary knows no test {name}: the closure given to the lab must be written \
             in the test itself; it wrote:\n{report}"
        ),
        Some(_) | None => bail!("{name} failed in its lab ({status}); it wrote:\n{report}"),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the test harness captures what the print macros write, and only that"
)]
fn forward(report: &str) {
    print!("{report}");
}

fn limit_from_environment() -> Result<Option<Duration>> {
    let Some(value) = std::env::var_os(LIMIT) else {
        return Ok(None);
    };
    let seconds = value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| anyhow!("{LIMIT} must be a whole number of seconds, not {value:?}"))?;
    Ok(Some(Duration::from_secs(seconds)))
}

fn read_from_start(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .context("cannot read the test's output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for the end; kills the lab when there is none in time.
fn wait_within(unshare: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        let status = unshare.try_wait().context("cannot wait for the lab")?;
        if status.is_some() {
            return Ok(status);
        }
        pause();
    }
    unshare.kill().context("cannot kill the lab")?;
    unshare.wait().context("cannot wait for the lab")?;
    Ok(None)
}

fn run_again_for_command(way_in: WayIn) -> Result<i32> {
    let asked_to_end: Vec<(Signal, Arc<AtomicBool>)> =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .map(|signal| (signal, Arc::new(AtomicBool::new(false))))
            .collect();
    for (signal, flag) in &asked_to_end {
        signal_hook::flag::register(*signal as i32, Arc::clone(flag))
            .context("cannot handle signals")?;
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let mut first = start_inside(way_in, &arguments, "command", Output::Shared)?;
    loop {
        if let Some(status) = first
            .unshare
            .try_wait()
            .context("cannot wait for the lab")?
        {
            return Ok(exit_code(status));
        }
        for (signal, flag) in &asked_to_end {
            if flag.swap(false, Ordering::Relaxed) {
                // It may have ended in this moment; the next look tells.
                let _ = kill(first.pid, *signal);
            }
        }
        pause();
    }
}

/// As a shell would: 128 and the signal's number for a process ended by a signal.
fn exit_code(status: ExitStatus) -> i32 {
    let by_signal = || status.signal().map(|number| 128 + number);
    status.code().or_else(by_signal).unwrap_or(1)
}

/// The first process of a lab as seen from outside. Dropping it ends the lab.
struct First {
    unshare: Child,
    pid: Pid,
}

fn start_inside<A: AsRef<std::ffi::OsStr>>(
    way_in: WayIn,
    arguments: &[A],
    case: &str,
    output: Output,
) -> Result<First> {
    let executable = std::env::current_exe().context("cannot find this executable")?;
    let mut unshare = Program::new("unshare")
        .args(way_in.options())
        .arg("--")
        .arg(executable)
        .args(arguments)
        .env(CASE, case)
        .spawn_foreground(Stdio::piped(), output)?;
    let pid = await_first_process(&mut unshare)?;
    if let Some(lifeline) = unshare.stdin.as_mut() {
        let pid = pid.as_raw();
        writeln!(lifeline, "{}", Outside { pid, way_in }.to_line())
            .context("the lab's first process is gone already")?;
    }
    Ok(First { unshare, pid })
}

fn await_first_process(unshare: &mut Child) -> Result<Pid> {
    let own = pid_of(unshare)?;
    let path = format!("/proc/{own}/task/{own}/children");
    loop {
        let children = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {path} to find the lab's first process"))?;
        if let Some(pid) = children.split_whitespace().next() {
            let number = pid
                .parse()
                .with_context(|| format!("no process id: {pid}"))?;
            return Ok(Pid::from_raw(number));
        }
        if let Some(status) = unshare.try_wait().context("cannot wait for unshare")? {
            bail!("unshare ended ({status}) before the lab's first process was there");
        }
        pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_from_outside_is_read_as_it_was_written() {
        let outside = Outside {
            pid: 4711,
            way_in: WayIn::Root,
        };
        assert_eq!(Outside::parse(&outside.to_line()), Some(outside));
        assert_eq!(Outside::parse("4711"), None);
    }
}
