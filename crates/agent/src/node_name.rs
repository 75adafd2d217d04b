//! The name of the Kubernetes node that we run on.

use anyhow::{Context, bail};
use edgemesh_catalog::NodeName;

/// The longest name the Kubernetes API admits (RFC 1123 subdomain).
const MAX_LENGTH: usize = 253;

/// `given` (`--node-name` or `NODE_NAME`), else the host name in lower case, as
/// kubelet derives it.
///
/// # Errors
///
/// When the name is not one that a Node can have, or the host name cannot be read.
pub(crate) fn node_name(given: Option<&str>) -> anyhow::Result<NodeName> {
    match given {
        Some(name) => parse(name).context("--node-name (or NODE_NAME)"),
        None => {
            let host = nix::unistd::gethostname().context("read the host name")?;
            let host = host.to_string_lossy().trim().to_lowercase();
            parse(&host).context("the host name; give --node-name instead")
        }
    }
}

fn parse(name: &str) -> anyhow::Result<NodeName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > MAX_LENGTH || !name.chars().all(allowed) {
        bail!(
            "{name:?} is no node name: 1 to {MAX_LENGTH} lower-case letters, digits, '-' and '.'"
        );
    }
    Ok(NodeName::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_name_is_taken_as_it_is() {
        assert_eq!(
            node_name(Some("edge-1.site")).unwrap().as_str(),
            "edge-1.site"
        );
    }

    #[test]
    fn name_that_no_node_can_have_is_refused_with_its_origin() {
        let error = format!("{:#}", node_name(Some("Edge 1")).unwrap_err());
        assert!(
            error.contains("--node-name") && error.contains("\"Edge 1\""),
            "{error}"
        );
    }
}
