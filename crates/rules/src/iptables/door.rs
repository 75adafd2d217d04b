//! The one place that starts processes: the iptables programs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// How long a program may take. Seconds of it may pass waiting for the xtables lock;
/// tens of thousands of rules take iptables-legacy a second or two on a slow node.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// An input of at most this many lines is shown whole in an error.
const SHOWN_LINES: usize = 12;

/// A program to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Invocation<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [&'a str],
    /// What it reads from its standard input.
    pub(crate) input: &'a str,
}

/// A program of iptables didn't do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.report())]
pub struct ToolError {
    command: String,
    failure: Failure,
    input: String,
}

#[derive(Debug)]
enum Failure {
    NotStarted(io::Error),
    Input(io::Error),
    TimedOut,
    Exit {
        status: std::process::ExitStatus,
        stderr: String,
    },
    NotText,
}

/// Runs the program to its end and returns what it printed.
pub(crate) async fn run(invocation: Invocation<'_>) -> Result<String, ToolError> {
    let started = Instant::now();
    let outcome = timeout(TIME_LIMIT, start_and_wait(invocation)).await;
    let failed = |failure| ToolError {
        command: command_line(invocation),
        failure,
        input: invocation.input.to_owned(),
    };
    let output = outcome
        .map_err(|_| failed(Failure::TimedOut))?
        .map_err(failed)?;
    tracing::trace!(
        command = command_line(invocation),
        took = ?started.elapsed(),
        input = invocation.input,
        "ran"
    );
    if !output.status.success() {
        return Err(failed(Failure::Exit {
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }));
    }
    String::from_utf8(output.stdout).map_err(|_| failed(Failure::NotText))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the crate's one door for processes"
)]
async fn start_and_wait(invocation: Invocation<'_>) -> Result<Output, Failure> {
    let mut child = Command::new(invocation.program)
        .args(invocation.arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::NotStarted)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(invocation.input.as_bytes()).await?;
        }
        io::Result::Ok(())
    };
    // A program that gives up early closes its input; its own message says why.
    let (fed, output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(Failure::Input)?;
    match fed {
        Err(error) if output.status.success() => Err(Failure::Input(error)),
        Ok(()) | Err(_) => Ok(output),
    }
}

fn command_line(invocation: Invocation<'_>) -> String {
    let mut line = invocation.program.display().to_string();
    for argument in invocation.arguments {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

impl ToolError {
    /// Whether the same call may succeed a little later: another program held the lock or
    /// changed the rules meanwhile, or the node was short of something.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match &self.failure {
            Failure::NotStarted(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory
            ),
            Failure::Input(_) | Failure::TimedOut => true,
            Failure::Exit { status, stderr } => {
                status.code().is_none_or(|code| code == RESOURCE_PROBLEM)
                    || PASSING_CONDITIONS.iter().any(|text| stderr.contains(text))
            }
            Failure::NotText => false,
        }
    }

    /// Whether the kernel refused the input for its size alone.
    pub(crate) fn is_too_long(&self) -> bool {
        match &self.failure {
            Failure::Exit { stderr, .. } => stderr.contains("Message too long"),
            Failure::NotStarted(_) | Failure::Input(_) | Failure::TimedOut | Failure::NotText => {
                false
            }
        }
    }

    /// The line of the input that the program stumbled over.
    fn failing_line(&self) -> Option<&str> {
        let Failure::Exit { stderr, .. } = &self.failure else {
            return None;
        };
        let number: usize = ["line: ", "line "].iter().find_map(|before| {
            let (_, after) = stderr.rsplit_once(before)?;
            after
                .split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse()
                .ok()
        })?;
        self.input.lines().nth(number.checked_sub(1)?)
    }

    fn report(&self) -> String {
        let mut report = format!("`{}` {}", self.command, self.failure);
        match self.failing_line() {
            Some("COMMIT" | "*nat") | None => {}
            Some(line) => {
                report.push_str("; the line in question: ");
                report.push_str(line);
            }
        }
        report.push_str("; to reproduce: ");
        report.push_str(&self.reproduction());
        report
    }

    fn reproduction(&self) -> String {
        if self.input.is_empty() {
            return self.command.clone();
        }
        let short = self.input.lines().nth(SHOWN_LINES).is_none();
        let input = match (short, self.failing_line()) {
            (false, Some(line)) if line != "COMMIT" => format!("*nat\n{line}\nCOMMIT\n"),
            (false, Some(_) | None) => {
                return format!(
                    "run the agent at log level trace, which shows the {} lines of input",
                    self.input.lines().count()
                );
            }
            (true, _) => self.input.clone(),
        };
        format!("{} <<'EOF'\n{input}EOF", self.command)
    }
}

/// iptables' exit status when the kernel or a lock was not to be had
/// (`enum xtables_exittype`, iptables `include/xtables.h`).
const RESOURCE_PROBLEM: i32 = 4;

const PASSING_CONDITIONS: [&str; 4] = [
    "xtables lock",
    "Resource temporarily unavailable",
    "Device or resource busy",
    "Interrupted system call",
];

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotStarted(error) => write!(f, "can't be started: {error}"),
            Failure::Input(error) => write!(f, "could not be talked to: {error}"),
            Failure::TimedOut => write!(
                f,
                "took longer than {} s and was stopped; does another program hold \
                 /run/xtables.lock?",
                TIME_LIMIT.as_secs()
            ),
            Failure::Exit { status, stderr } if stderr.is_empty() => {
                write!(f, "failed ({status}) without saying why")
            }
            Failure::Exit { status, stderr } => write!(f, "failed ({status}): {stderr}"),
            Failure::NotText => f.write_str("printed something that is no UTF-8 text"),
        }
    }
}

/// Where a program is: in `PATH`, or where distributions put iptables even when `PATH`
/// lacks it, as that of a service often does.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    const ALWAYS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ALWAYS.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, input: &str) -> Result<String, ToolError> {
        run(Invocation {
            program: Path::new("/bin/sh"),
            arguments: &["-c", script],
            input,
        })
        .await
    }

    #[tokio::test]
    async fn input_and_output_may_both_be_larger_than_a_pipe() {
        let long = "x".repeat(1 << 20);
        assert_eq!(shell("cat", &long).await.unwrap(), long);
    }

    #[tokio::test]
    async fn an_error_shows_the_failing_line_and_how_to_reproduce_it() {
        let input = "*nat\n-A A -j X\n-A B -j Y\nCOMMIT\n";
        let script = "cat >/dev/null; echo 'iptables-restore: line 3 failed' >&2; exit 1";
        let error = shell(script, input).await.unwrap_err();
        assert!(!error.is_retryable());
        assert_eq!(
            error.to_string(),
            format!(
                "`/bin/sh -c {script}` failed (exit status: 1): iptables-restore: line 3 \
                 failed; the line in question: -A B -j Y; to reproduce: /bin/sh -c {script} \
                 <<'EOF'\n{input}EOF"
            )
        );
    }

    #[tokio::test]
    async fn a_long_input_is_reproduced_by_its_failing_line() {
        let input = format!("*nat\n{}-A B -j Y\nCOMMIT\n", "-A A -j X\n".repeat(50));
        let script = "cat >/dev/null; echo 'Error occurred at line: 52' >&2; exit 2";
        let report = shell(script, &input).await.unwrap_err().to_string();
        assert!(
            report.ends_with("<<'EOF'\n*nat\n-A B -j Y\nCOMMIT\nEOF"),
            "{report}"
        );
    }

    #[tokio::test]
    async fn a_lock_held_by_another_is_worth_another_try() {
        let locked = "echo 'Another app is currently holding the xtables lock.' >&2; exit 4";
        assert!(shell(locked, "").await.unwrap_err().is_retryable());
        let busy = "echo 'iptables-save: Resource temporarily unavailable.' >&2; exit 1";
        assert!(shell(busy, "").await.unwrap_err().is_retryable());
        let missing = run(Invocation {
            program: Path::new("/nonexistent/iptables"),
            arguments: &[],
            input: "",
        });
        assert!(!missing.await.unwrap_err().is_retryable());
    }

    #[test]
    fn programs_are_found_without_starting_any() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-edgemesh"), None);
    }
}
