//! The page `docs/configuration.md`, made from the table of keys.

use std::fmt::{self, Write};

use super::key::{Key, Origin, Reload, Role};
use super::keys::{self, API_VERSION, KIND};
use super::settings::Config;

/// The sections of the page, with what each is for.
const SECTIONS: [(&str, &str); 6] = [
    ("kubeAPIConfig", "How the agent reaches the Kubernetes API."),
    ("commonConfig", "What isn't the business of one module."),
    (
        "modules.edgeProxy",
        "Interception of ClusterIPs, and forwarding.",
    ),
    ("modules.edgeDNS", "EdgeMesh's DNS server."),
    (
        "modules.edgeTunnel",
        "The encrypted tunnel to nodes that this one doesn't reach by itself, in cloud and edge.",
    ),
    ("modules.edgeCNI", "EdgeMesh's pod networks."),
];

/// The page.
pub(super) fn reference() -> Result<String, fmt::Error> {
    let mut page = String::new();
    write!(
        page,
        "# Configuration\n\n\
         <!-- Made from crates/agent/src/config/keys.rs by `make bless`; edit that. -->\n\n\
         `edgemesh-agent run --config FILE` reads EdgeMesh's file, `apiVersion: {API_VERSION}`, \
         `kind: {KIND}` (both may be left out, as EdgeMesh's own ConfigMap does). A file made for \
         EdgeMesh 1.12 or later works unchanged:\n\n\
         * A key that is not honoured is checked and named in one warning, which says what happens \
         instead.\n\
         * Unknown keys and bad values are errors. All of them are reported at once, each with its \
         line, and the agent doesn't start; at a reload the last good configuration stays in force.\n\
         * The case of a key doesn't count, a key without a value is at its default, and the words \
         that EdgeMesh's parser takes for true and false (`yes`, `on`, …) are taken too.\n\n\
         Durations have a unit, as in `1m30s` or `500ms`. Where it says *reload*, a changed value \
         takes effect as soon as the file is read again; all others wait for the next start, and the \
         log says so.\n\n\
         A file that changes nothing but what it must:\n\n\
         ```yaml\nmodules:\n  edgeProxy:\n    enable: true\n```\n"
    )?;
    for (section, purpose) in SECTIONS {
        write_section(&mut page, section, purpose)?;
    }
    Ok(page)
}

fn write_section(page: &mut String, section: &str, purpose: &str) -> fmt::Result {
    let prefix = format!("{section}.");
    let keys = || keys::all().filter_map(|key| Some((key, key.path.strip_prefix(&prefix)?)));
    write!(page, "\n## {section}\n\n{purpose}\n")?;
    let honoured = |key: &Key| matches!(key.role, Role::Honoured { .. });
    if keys().any(|(key, _)| honoured(key)) {
        page.push_str("\n| key | value | default | what it does |\n| --- | --- | --- | --- |\n");
        for (key, name) in keys() {
            write_honoured(page, key, name)?;
        }
    }
    if keys().any(|(key, _)| !honoured(key)) {
        page.push_str(
            "\nNot honoured:\n\n| key | value | EdgeMesh's default | what happens instead |\n\
             | --- | --- | --- | --- |\n",
        );
        for (key, name) in keys() {
            write_not_honoured(page, key, name)?;
        }
    }
    Ok(())
}

fn write_honoured(page: &mut String, key: &Key, name: &str) -> fmt::Result {
    let Role::Honoured {
        show, reload, doc, ..
    } = &key.role
    else {
        return Ok(());
    };
    let own = match key.origin {
        Origin::Own => "",
        Origin::EdgeMesh => " (EdgeMesh's)",
    };
    let reload = match reload {
        Reload::Live => " *reload*",
        Reload::Restart => "",
    };
    let (accepts, default) = ((key.accepts)(), show(&Config::default()));
    writeln!(
        page,
        "| `{name}`{own} | {} | `{default}` | {doc}{reload} |",
        cell(&accepts)
    )
}

fn write_not_honoured(page: &mut String, key: &Key, name: &str) -> fmt::Result {
    let Role::NotHonoured {
        default, instead, ..
    } = &key.role
    else {
        return Ok(());
    };
    let default = match *default {
        "" => String::new(),
        default => format!("`{default}`"),
    };
    writeln!(
        page,
        "| `{name}` | {} | {default} | {instead} |",
        cell(&(key.accepts)())
    )
}

/// Text within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('*', "\\*")
}
