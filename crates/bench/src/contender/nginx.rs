//! nginx's stream module, from the node's address to the server.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use edgemesh_lab::{Background, Lab, Place, manifests};

use super::await_listening;
use crate::load::{DATAGRAMS, TCP_PORTS};
use crate::stage::OneNode;

/// Where Debian's libnginx-mod-stream puts the module.
pub(super) const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Files of a worker besides those of connections.
const OTHER_FILES: usize = 100;

/// Starts it, with a worker for each core.
pub(super) fn start(lab: &Lab, stage: &OneNode) -> Result<Background> {
    let folder = lab.new_folder(&format!("nginx-on-{}", stage.node.name()))?;
    manifests::put(&folder, "nginx.conf", &configuration(stage, &folder)?)?;
    let program = super::find("nginx").context("there is no nginx")?;
    let mut running = stage
        .node
        .program(program)
        .arg("-e")
        .arg(folder.join("errors"))
        .arg("-p")
        .arg(&folder)
        .arg("-c")
        .arg(folder.join("nginx.conf"))
        .start(folder.join("log"))?;
    let to = (stage.node.ipv4(), TCP_PORTS[0]).into();
    await_listening(&mut running, &stage.client, to).context("nginx")?;
    Ok(running)
}

fn configuration(stage: &OneNode, folder: &Path) -> Result<String> {
    let files = crate::load::idle::files()?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "daemon off;\nuser root;\nworker_processes {workers};\npid {}/pid;\n\
         load_module {STREAM};\n\
         events {{ worker_connections {}; }}\n\
         stream {{\n  proxy_timeout 10m;\n",
        folder.display(),
        files.saturating_sub(OTHER_FILES),
    );
    let ports = TCP_PORTS
        .map(|port| (port, ""))
        .into_iter()
        .chain([(DATAGRAMS, " udp")]);
    for (port, protocol) in ports {
        let _ = writeln!(
            text,
            "  server {{ listen {}:{port}{protocol} reuseport; proxy_pass {}; }}",
            stage.node.ipv4(),
            stage.server_at(port)
        );
    }
    Ok(text + "}\n")
}
