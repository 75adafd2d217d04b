//! The one door through which the lab starts programs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::await_until::await_until;
use crate::enter::CASE;
use crate::namespace::Namespace;

/// A program to be run, by default in the network namespace of the lab itself.
#[derive(Debug, Clone)]
#[must_use]
pub struct Program {
    name: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    namespace: Option<Namespace>,
    input: Vec<u8>,
}

/// What a program that ran to its end left: its status and all it wrote.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Program {
    /// A program by name (looked up in `PATH`) or path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self {
            name: name.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            namespace: None,
            input: Vec::new(),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self.arguments.push(argument.as_ref().to_owned());
        }
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What the program reads from standard input; default nothing.
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = text.into();
        self
    }

    /// Runs it in `namespace`'s network.
    pub(crate) fn inside(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Runs the program to its end and hands over whatever it did.
    ///
    /// # Errors
    ///
    /// When it can't be started; a failing exit status is no error here, see [`Self::run`].
    pub fn output(&self) -> Result<Finished> {
        let input = unlinked_file(&self.input)?;
        let output = self.in_its_namespace(|| {
            self.command()
                .stdin(input)
                .output()
                .with_context(|| format!("cannot start `{}`", self.line()))
        })?;
        Ok(Finished {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the program to its end and returns what it wrote to standard output.
    ///
    /// # Errors
    ///
    /// When it can't be started or fails: the error carries the command line, the exit
    /// status and what it wrote to standard error.
    pub fn run(&self) -> Result<String> {
        let finished = self.output()?;
        if !finished.status.success() {
            let stderr = finished.stderr.trim_end();
            bail!("`{}` failed ({}): {stderr}", self.line(), finished.status);
        }
        Ok(finished.stdout)
    }

    /// Starts the program and leaves it running; what it writes goes to the file `log`.
    ///
    /// It gets a process group of its own, so that Ctrl-C at the terminal reaches the
    /// lab alone, which then ends its programs in its own order.
    ///
    /// # Errors
    ///
    /// When the log can't be made or the program can't be started.
    pub fn start(&self, log: impl Into<PathBuf>) -> Result<Background> {
        let log = log.into();
        let written = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        let errors = written.try_clone().context("cannot share the log file")?;
        let input = unlinked_file(&self.input)?;
        let child = self.in_its_namespace(|| {
            self.command()
                .stdin(input)
                .stdout(written)
                .stderr(errors)
                .process_group(0)
                .spawn()
                .with_context(|| format!("cannot start `{}`", self.line()))
        })?;
        Ok(Background {
            line: self.line(),
            child,
            log,
        })
    }

    /// Starts the program in the foreground: it shares this process's terminal and
    /// process group. Standard input and output are the caller's choice.
    pub(crate) fn spawn_foreground(&self, input: Stdio, output: Output) -> Result<Child> {
        let mut command = self.command();
        command.stdin(input);
        if let Output::File(file) = output {
            let copy = file.try_clone().context("cannot share the output file")?;
            command.stdout(file).stderr(copy);
        }
        command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.line()))
    }

    fn in_its_namespace<T: Send>(&self, start: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.namespace {
            // A child inherits the network namespace of the thread that starts it.
            Some(namespace) => namespace.run(start)?,
            None => start(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the lab's one door for processes"
    )]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.name);
        command.args(&self.arguments);
        // What is started inside a lab may want a lab of its own.
        command.env_remove(CASE);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Another program, in this one's place, that runs this one: its words go last, e.g.
    /// `timeout 20 PROGRAM ARGUMENTS…`.
    pub fn run_by(&self, mut runner: Self) -> Self {
        runner.namespace.clone_from(&self.namespace);
        runner.args(self.words())
    }

    /// The program and its arguments.
    fn words(&self) -> impl Iterator<Item = &OsStr> {
        let arguments = self.arguments.iter().map(OsString::as_os_str);
        std::iter::once(self.name.as_os_str()).chain(arguments)
    }

    /// The command line as a person would type it.
    #[must_use]
    pub fn line(&self) -> String {
        let mut words = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.push(format!("ip netns exec {}", namespace.name()));
        }
        words.push(self.name.to_string_lossy().into_owned());
        for argument in &self.arguments {
            words.push(argument.to_string_lossy().into_owned());
        }
        words.join(" ")
    }
}

/// Where a program in the foreground writes to.
pub(crate) enum Output {
    /// This process's standard output and error.
    Shared,
    /// Both into one file.
    File(File),
}

/// Standard input from a file that has no name: unlike a pipe it needs nobody to
/// feed it while the program's output is read, however long both are.
fn unlinked_file(content: &[u8]) -> Result<Stdio> {
    if content.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = tempfile::tempfile().context("cannot make a temporary file for input")?;
    file.write_all(content)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .context("cannot write a temporary file for input")?;
    Ok(Stdio::from(file))
}

/// A program that runs until it is told to end or this value is dropped.
#[derive(Debug)]
pub struct Background {
    line: String,
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Its process id in the lab.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with everything it wrote.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it wrote so far, to standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(cannot read {}: {error})", self.log.display()),
        }
    }

    /// The last `lines` lines it wrote, for error messages.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot ask for the state of `{}`", self.line))
    }

    /// Processor time that it has used so far, to a hundredth of a second (`USER_HZ`, which is
    /// 100 everywhere; proc_pid_stat(5), `utime` and `stime`).
    ///
    /// # Errors
    ///
    /// When it has ended, or the kernel tells otherwise than it is known to.
    pub fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The name before may hold anything.
        let (_, fields) = stat.rsplit_once(") ").context("no process name")?;
        let ticks = |field: usize| -> Result<u64> {
            let text = fields.split(' ').nth(field).context("too few fields")?;
            text.parse().with_context(|| format!("{text} is no time"))
        };
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid_of(&self.child)?, signal)
            .with_context(|| format!("cannot send {signal} to `{}`", self.line))
    }

    /// Waits at most `limit` for its end.
    ///
    /// # Errors
    ///
    /// When it still runs then: the error shows the end of its log.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        let child = &mut self.child;
        let waited = await_until(limit, &format!("`{}` ends", self.line), || {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        match (waited, status) {
            (Ok(_), Some(status)) => Ok(status),
            (Ok(_), None) => bail!("`{}` ended without a status", self.line),
            (Err(error), _) => Err(error.context(self.what_it_said())),
        }
    }

    /// Asks it to end (SIGTERM) and waits at most `limit`.
    ///
    /// # Errors
    ///
    /// As [`Self::signal`] and [`Self::wait`].
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map(|_| ())
            .with_context(|| format!("cannot kill `{}`", self.line))
    }

    /// Waits until its log contains `text`.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`, or the program ended before: the error shows the
    /// end of its log.
    pub fn await_log(&mut self, limit: Duration, text: &str) -> Result<()> {
        let mut over = None;
        let what = format!("`{}` logs \"{text}\"", self.line);
        await_until(limit, &what, || {
            over = self.child.try_wait().ok().flatten();
            self.log().contains(text) || over.is_some()
        })
        .map_err(|error| error.context(self.what_it_said()))?;
        match over {
            Some(status) if !self.log().contains(text) => {
                bail!("`{}` ended ({status}); {}", self.line, self.what_it_said())
            }
            Some(_) | None => Ok(()),
        }
    }

    fn what_it_said(&self) -> String {
        format!("the end of {}:\n{}", self.log.display(), self.log_tail(30))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Already gone is as good as killed, and a destructor has nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn pid_of(child: &Child) -> Result<Pid> {
    let number = i32::try_from(child.id()).context("a process id beyond i32")?;
    Ok(Pid::from_raw(number))
}
