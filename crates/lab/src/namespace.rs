//! A named network namespace.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::await_until::await_ok;
use crate::process::Program;

/// A network namespace with a name that `ip netns` knows inside the lab.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    handle: Arc<File>,
}

impl Namespace {
    /// Makes a namespace with its loopback device up and IPv6 addresses usable at once.
    pub(crate) fn create(name: &str) -> Result<Self> {
        Program::new("ip").args(["netns", "add", name]).run()?;
        let path = PathBuf::from("/run/netns").join(name);
        let handle =
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self {
            name: name.to_owned(),
            handle: Arc::new(handle),
        };
        // Duplicate address detection would keep each IPv6 address unusable for a second.
        for scope in ["all", "default"] {
            namespace.sysctl_if_present(&format!("net.ipv6.conf.{scope}.accept_dad"), "0")?;
            // Where a node sends a pod's packet back over the bridge it came by, it also tells
            // the pod of the shorter way; with DNAT in between that way is a wrong one.
            namespace.sysctl_if_present(&format!("net.ipv6.conf.{scope}.accept_redirects"), "0")?;
        }
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns exec NAME …` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `job` on a thread of its own inside the namespace. Sockets it opens belong
    /// to the namespace for good; only threads it starts and programs inherit the place.
    ///
    /// # Errors
    ///
    /// When the namespace can't be entered. A panic of `job` goes on in the caller.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = || -> Result<T> {
            setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network namespace {}", self.name))?;
            Ok(job())
        };
        let joined = thread::scope(|scope| {
            thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, entered)
                .map(thread::ScopedJoinHandle::join)
        })
        .context("cannot start a thread")?;
        match joined {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A program that will run inside the namespace.
    pub fn program(&self, name: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(name).inside(self)
    }

    /// Sets a kernel parameter of the namespace, named as sysctl names it.
    ///
    /// # Errors
    ///
    /// When the kernel has no such parameter or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} to {value} in {}", self.name))
    }

    /// As [`Self::sysctl`], but a kernel without the parameter is fine.
    pub(crate) fn sysctl_if_present(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        // Parameters of a device are only there where the device is.
        if self.run(|| path.exists())? {
            self.sysctl(key, value)
        } else {
            Ok(())
        }
    }

    /// Runs lines of `ip` commands (without the word `ip`) in one process.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        self.program("ip")
            .args(["-batch", "-"])
            .input(lines)
            .run()
            .map(|_| ())
            .with_context(|| format!("the commands were:\n{lines}"))
    }

    /// Waits until the kernel has noticed that a device's carrier is back: until then it
    /// drops what is sent there.
    pub(crate) fn await_carrier(&self, device: &str) -> Result<()> {
        let show = self
            .program("ip")
            .args(["-oneline", "link", "show", device]);
        await_ok(Duration::from_secs(10), "a carrier is noticed", || {
            let shown = show.run()?;
            let mut words = shown.split_whitespace().skip_while(|word| *word != "state");
            let state = words.nth(1).unwrap_or_default();
            ensure!(matches!(state, "UP" | "UNKNOWN"), "{device} is {state}");
            Ok(())
        })
        .with_context(|| format!("in {}", self.name))
    }

    /// Runs lines of `nft` commands in one transaction.
    pub(crate) fn nft(&self, text: &str) -> Result<()> {
        self.program("nft")
            .args(["-f", "-"])
            .input(text)
            .run()
            .map(|_| ())
            .with_context(|| format!("the commands were:\n{text}"))
    }
}

/// Where the kernel shows a parameter.
pub(crate) fn sysctl_path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key.replace('.', "/"))
}
