//! wireguard-go between two nodes: WireGuard in user mode, over a TUN device at each end.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use edgemesh_lab::{Background, Lab, Node, Place, Program, await_ok, manifests};

use super::{PATIENCE, find};
use crate::processes::Processes;

/// Where the listening end listens (UDP).
const PORT: u16 = 51820;
/// The addresses in the tunnel: of the end that listens, and of the one that dials.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
/// The devices; both ends share one folder of control sockets.
const DEVICES: [&str; 2] = ["wg-listens", "wg-dials"];

/// Both ends, while they run.
#[derive(Debug)]
pub struct WireGuard {
    ends: [Background; 2],
}

impl WireGuard {
    /// What has to be installed for it, as `apt-get install` knows it; `None` when it is.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        let has = find("wireguard-go").is_some() && find("wg").is_some();
        (!has).then_some("wireguard-go wireguard-tools")
    }

    /// Starts both ends.
    ///
    /// # Errors
    ///
    /// When a device can't be made: says what wireguard-go wrote.
    pub fn start(lab: &Lab, listens: &Node, dials: &Node) -> Result<Self> {
        let folder = lab.new_folder("wireguard")?;
        let keys = [Keys::make()?, Keys::make()?];
        let start = |end: usize, node: &Node| -> Result<Background> {
            let program = find("wireguard-go").context("there is no wireguard-go")?;
            let mut running = node
                .program(program)
                .args(["--foreground", DEVICES[end]])
                .start(folder.join(DEVICES[end]))?;
            let name = format!("key-{end}");
            manifests::put(&folder, &name, &keys[end].private)?;
            let configured = await_ok(PATIENCE, "wg reaches its device", || {
                if running.ended()?.is_some() {
                    return Ok(());
                }
                let command = node
                    .program("wg")
                    .args(["set", DEVICES[end], "private-key"])
                    .arg(folder.join(&name))
                    .args(["peer", &keys[1 - end].public, "allowed-ips"])
                    .arg(format!("{}/32", INSIDE[1 - end]));
                let command = match end {
                    0 => command.args(["persistent-keepalive", "0"]),
                    _ => command
                        .arg("endpoint")
                        .arg(format!("{}:{PORT}", listens.ipv4())),
                };
                command.run().map(|_| ())
            });
            configured.with_context(|| running.log_tail(10))?;
            let lines = format!(
                "address add {}/24 dev {device}\nlink set {device} up\n",
                INSIDE[end],
                device = DEVICES[end]
            );
            let ip = node.program("ip").args(["-batch", "-"]).input(lines);
            ip.run().with_context(|| running.log_tail(10))?;
            Ok(running)
        };
        let ends = [start(0, listens)?, start(1, dials)?];
        listens
            .program("wg")
            .args(["set", DEVICES[0], "listen-port"])
            .arg(PORT.to_string())
            .run()?;
        Ok(Self { ends })
    }

    /// The address of the end that listens, seen through the tunnel.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        INSIDE[0]
    }

    /// Both processes.
    #[must_use]
    pub fn processes(&self) -> Processes {
        Processes::of(&[self.ends[0].pid(), self.ends[1].pid()])
    }
}

struct Keys {
    private: String,
    public: String,
}

impl Keys {
    fn make() -> Result<Self> {
        let private = Program::new("wg").arg("genkey").run()?;
        let public = Program::new("wg")
            .arg("pubkey")
            .input(private.clone())
            .run()?;
        Ok(Self {
            private,
            public: public.trim().to_owned(),
        })
    }
}
