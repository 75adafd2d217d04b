//! A real agent process on a node of the lab.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::await_until::await_ok;
use crate::client::Place;
use crate::lab::Lab;
use crate::manifests;
use crate::namespace::Namespace;
use crate::node::Node;
use crate::process::{Background, Program};
use crate::service::ClusterService;
use crate::shared_manifests::SharedManifests;

/// Where an agent answers `/readyz` and `/metrics` unless it is told otherwise.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 20008);
/// How long starting and stopping may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The configuration an agent gets unless a test has another: everything by default.
const CONFIGURATION: &str = "apiVersion: agent.edgemesh.config.kubeedge.io/v1alpha1\n\
                             kind: EdgeMeshAgent\n\
                             modules:\n  edgeProxy:\n    enable: true\n";

/// An agent on a node: its files, and its process while it runs.
///
/// It reads what [`Self::publish`] writes, from a manifests folder. Dropping it kills the
/// process.
#[derive(Debug)]
pub struct Agent {
    place: Namespace,
    executable: PathBuf,
    folder: PathBuf,
    manifests: PathBuf,
    running: Option<Background>,
}

impl Place for Agent {
    fn namespace(&self) -> &Namespace {
        &self.place
    }
}

impl Agent {
    /// Prepares the files of an agent on `node`; it does not run yet.
    ///
    /// # Errors
    ///
    /// When there are some already: one agent per node.
    pub fn prepare(lab: &Lab, node: &Node, executable: impl AsRef<Path>) -> Result<Self> {
        let agent = Self::prepare_without_manifests(lab, node, executable.as_ref())?;
        fs::create_dir(agent.manifests_folder()).context("cannot make the manifests folder")?;
        manifests::put(
            &agent.manifests_folder(),
            "node.yaml",
            &manifests::node(node),
        )?;
        Ok(agent)
    }

    /// As [`Self::prepare`], but the agent reads `shared` together with others, where its
    /// Node is put. Publish Services there, not by [`Self::publish`].
    ///
    /// # Errors
    ///
    /// As [`Self::prepare`].
    pub fn prepare_sharing(
        lab: &Lab,
        node: &Node,
        executable: impl AsRef<Path>,
        shared: &SharedManifests,
    ) -> Result<Self> {
        let mut agent = Self::prepare_without_manifests(lab, node, executable.as_ref())?;
        shared.folder().clone_into(&mut agent.manifests);
        shared.publish_node(node)?;
        Ok(agent)
    }

    fn prepare_without_manifests(lab: &Lab, node: &Node, executable: &Path) -> Result<Self> {
        let folder = lab.new_folder(&format!("agent-on-{}", node.name()))?;
        let agent = Self {
            place: node.namespace().clone(),
            executable: executable.to_owned(),
            manifests: folder.join("manifests"),
            folder,
            running: None,
        };
        agent.configure(CONFIGURATION)?;
        Ok(agent)
    }

    /// Writes another configuration file; an agent that runs will see it change.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn configure(&self, text: &str) -> Result<()> {
        manifests::put(&self.folder, "config.yaml", text)
    }

    /// Makes these Services, and no others, the ones the agent reads: a file each, and
    /// only files that change are written.
    ///
    /// # Errors
    ///
    /// The file system's; for an agent that shares its manifests.
    pub fn publish(&self, services: &[ClusterService]) -> Result<()> {
        let folder = self.manifests_folder();
        ensure!(
            folder.starts_with(&self.folder),
            "others read {} too: publish by SharedManifests",
            folder.display()
        );
        let mut wanted = manifests::put_services(&folder, services)?;
        wanted.insert("node.yaml".to_owned());
        for entry in fs::read_dir(&folder).context("cannot list the manifests folder")? {
            let entry = entry.context("cannot list the manifests folder")?;
            if !wanted.contains(entry.file_name().to_string_lossy().as_ref()) {
                fs::remove_file(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Starts the agent and waits until it says it is ready.
    ///
    /// # Errors
    ///
    /// When it isn't within 30 s, or ends: with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        self.running = Some(self.run_command().start(self.log_path())?);
        self.await_ready()
    }

    /// Starts the agent and does not wait.
    ///
    /// # Errors
    ///
    /// When the program can't be started.
    pub fn start_without_waiting(&mut self) -> Result<()> {
        self.running = Some(self.run_command().start(self.log_path())?);
        Ok(())
    }

    /// Waits until it says it is ready.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn await_ready(&mut self) -> Result<()> {
        let Some(mut process) = self.running.take() else {
            bail!("the agent was not started");
        };
        let mut ended = None;
        let waited = await_ok(PATIENCE, "the agent is ready", || {
            ended = process.ended()?;
            match ended {
                Some(_) => Ok(()),
                None => self.get("/readyz").map(|_| ()),
            }
        });
        self.running = Some(process);
        let last_words = || format!("the agent's last words:\n{}", self.log_tail());
        match ended {
            Some(status) => bail!("the agent ended ({status}); {}", last_words()),
            None => waited.with_context(last_words),
        }
    }

    /// Ends it by SIGTERM, as kubelet would, and returns how it ended.
    ///
    /// # Errors
    ///
    /// When it does not run, or still does after 30 s.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        match self.running.take() {
            Some(mut process) => process.stop(PATIENCE),
            None => bail!("the agent does not run"),
        }
    }

    /// Ends it by SIGKILL: it has no chance to clean up.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        match self.running.take() {
            Some(mut process) => process.kill(),
            None => bail!("the agent does not run"),
        }
    }

    /// Its process, while it runs.
    pub fn process(&mut self) -> Option<&mut Background> {
        self.running.as_mut()
    }

    /// Its `run` command with all arguments, for what [`Self::start`] does not do.
    pub fn run_command(&self) -> Program {
        self.command("run")
            .arg("--config")
            .arg(self.folder.join("config.yaml"))
            .args(["--node-name", self.place.name(), "--manifests"])
            .arg(self.manifests_folder())
            .arg("--state-dir")
            .arg(self.folder.join("state"))
    }

    /// Another of its commands, e.g. `cleanup`, on the same node.
    pub fn command(&self, name: &str) -> Program {
        self.program(&self.executable).arg(name)
    }

    /// The body of its answer to an HTTP request, e.g. for `/metrics`.
    ///
    /// # Errors
    ///
    /// When it does not answer, or not with status 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut stream = self
            .connect(ADMIN)
            .with_context(|| format!("no admin endpoint on {ADMIN}"))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("no HTTP answer to GET {path}: {answer:?}"))?;
        let status = head.lines().next().unwrap_or_default();
        if status.split_whitespace().nth(1) != Some("200") {
            bail!("GET {path}: {status}: {}", body.trim_end());
        }
        Ok(body.to_owned())
    }

    /// The folder it reads manifests from.
    #[must_use]
    pub fn manifests_folder(&self) -> PathBuf {
        self.manifests.clone()
    }

    /// The folder it keeps its state in.
    #[must_use]
    pub fn state_folder(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Everything it has written, over all its starts.
    ///
    /// # Errors
    ///
    /// When it never was started.
    pub fn log(&self) -> Result<String> {
        let path = self.log_path();
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
