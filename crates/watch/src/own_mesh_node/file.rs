//! The own MeshNode in the manifests directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use edgemesh_catalog::MeshNode;
use tokio::task::spawn_blocking;

use super::document;

/// Makes the MeshNode's file what it shall be, in a blocking thread. A file that is so
/// already is not touched, for whoever follows the directory would read it again.
///
/// # Errors
///
/// Text that says what was tried, what happened and what to do.
pub(super) async fn put(directory: PathBuf, node: MeshNode) -> Result<(), String> {
    let wrote = spawn_blocking(move || {
        let name = file_name(&node)?;
        let path = directory.join(name);
        let text = document::manifest(&node);
        if fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(());
        }
        replace(&directory, &path, &text).map_err(|error| {
            format!(
                "cannot write {}: {error}. Let the agent write to this directory, or take the \
                 manifests from one that it can write to; until then peers do not know this \
                 node, and there is no tunnel to it",
                path.display()
            )
        })
    });
    wrote
        .await
        .unwrap_or_else(|error| Err(format!("writing the MeshNode did not end well: {error}")))
}

/// `meshnode-<node>.yaml`. Node names are DNS names; any other must not lead elsewhere.
fn file_name(node: &MeshNode) -> Result<String, String> {
    let name = node.name.as_str();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(format!(
            "{name:?} is not the name of a node; correct --node-name"
        ));
    }
    Ok(format!("meshnode-{name}.yaml"))
}

/// Readers find the old text or the new one, after a loss of power too. The temporary file
/// is hidden, and so no manifest to anybody.
fn replace(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.new"));
    write_whole(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(directory)?.sync_all())
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    // What is left of an earlier attempt may be a link to somewhere else.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    // Whatever the umask is: other nodes' agents read it, perhaps as other users.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use edgemesh_catalog::{NodeName, PublicKey};

    use super::*;

    fn node(name: &str, boot: &str) -> MeshNode {
        MeshNode {
            name: NodeName::new(name),
            uid: None,
            public_key: PublicKey::from_bytes([7; 32]),
            name_signature: None,
            addresses: Vec::new(),
            relay_url: None,
            relay_server: None,
            pod_cidrs: Vec::new(),
            probe: None,
            version: "".into(),
            boot_id: boot.into(),
            previous_key: None,
        }
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn file_is_replaced_as_a_whole_and_can_be_read_by_all() {
        let dir = tempfile::tempdir().unwrap();
        let at = || dir.path().to_owned();
        // Left over by a crash.
        fs::write(dir.path().join(".meshnode-edge-1.yaml.new"), "half").unwrap();
        for boot in ["1", "2"] {
            put(at(), node("edge-1", boot)).await.unwrap();
            assert_eq!(files(dir.path()), ["meshnode-edge-1.yaml"]);
            let path = dir.path().join("meshnode-edge-1.yaml");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text, document::manifest(&node("edge-1", boot)));
        }
    }

    #[tokio::test]
    async fn file_that_is_right_already_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path().to_owned(), node("edge-1", "1"))
            .await
            .unwrap();
        let path = dir.path().join("meshnode-edge-1.yaml");
        let inode = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(path).unwrap().ino()
        };
        let before = inode(&path);
        put(dir.path().to_owned(), node("edge-1", "1"))
            .await
            .unwrap();
        assert_eq!(inode(&path), before);
    }

    #[tokio::test]
    async fn directory_that_cannot_be_written_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        // Refused to root as well.
        let no_directory = dir.path().join("file");
        fs::write(&no_directory, "").unwrap();
        let error = put(no_directory, node("edge-1", "1")).await.unwrap_err();
        assert!(error.contains("meshnode-edge-1.yaml"), "{error}");
        assert!(error.contains("Let the agent write"), "{error}");
    }

    #[tokio::test]
    async fn name_that_leads_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", "../x", "a/b", "a\0b"] {
            let error = put(dir.path().to_owned(), node(name, "1"))
                .await
                .unwrap_err();
            assert!(error.contains("--node-name"), "{error}");
        }
        assert_eq!(files(dir.path()), Vec::<String>::new());
    }
}
