//! HAProxy, from the node's address to the server.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use edgemesh_lab::{Background, Lab, Place, manifests};

use super::await_listening;
use crate::load::TCP_PORTS;
use crate::stage::OneNode;

/// Files that it needs besides those of connections, with the pipes of splice(2).
const OTHER_FILES: usize = 400;

/// Starts it, with as many threads as there are cores (its own default).
pub(super) fn start(lab: &Lab, stage: &OneNode, splice: bool) -> Result<Background> {
    let folder = lab.new_folder(&format!("haproxy-on-{}", stage.node.name()))?;
    let most = crate::load::idle::files()?.saturating_sub(OTHER_FILES) / 2;
    manifests::put(&folder, "haproxy.cfg", &configuration(stage, splice, most))?;
    let program = super::find("haproxy").context("there is no haproxy")?;
    let mut running = stage
        .node
        .program(program)
        .args(["-db", "-f"])
        .arg(folder.join("haproxy.cfg"))
        .start(folder.join("log"))?;
    let to = (stage.node.ipv4(), TCP_PORTS[0]).into();
    await_listening(&mut running, &stage.client, to).context("HAProxy")?;
    Ok(running)
}

fn configuration(stage: &OneNode, splice: bool, most: usize) -> String {
    let mut text = format!(
        "global\n  maxconn {most}\n  maxpipes 100\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n"
    );
    if splice {
        text += "  option splice-request\n  option splice-response\n";
    }
    for port in TCP_PORTS {
        let _ = write!(
            text,
            "listen on-{port}\n  bind {}:{port}\n  server one {}\n",
            stage.node.ipv4(),
            stage.server_at(port)
        );
    }
    text
}
