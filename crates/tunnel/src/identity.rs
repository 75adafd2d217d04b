//! Who a node is: its key, kept below the agent's state directory.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use edgemesh_catalog::{KeySignature, MeshNode, NodeName, PreviousKey, PublicKey};
use iroh::SecretKey;

use crate::key_text::{KeyText, NotAKey};

/// The key in use.
const FILE: &str = "tunnel.key";
/// The key that takes its place at the next start.
const NEXT: &str = "tunnel.key.next";
/// Where a key is written before it gets its name.
const TEMPORARY: &str = "tunnel.key.new";
/// Anything longer is no key of ours.
const LONGEST: u64 = 4096;
/// What a key says of its node begins with this: the same key also signs TLS handshakes and
/// the challenges of relays, none of which begin so.
const NAMING: &[u8] = b"edgemesh tunnel: the name of this key's node, v1\0";
/// And so does what it says of the key after it.
const SUCCESSION: &[u8] = b"edgemesh tunnel: the key after this one, v1\0";

/// The key pair of this node's agent. The private half is never shown: not by [`fmt::Debug`],
/// not in an error, not in the log.
#[derive(Clone)]
pub struct NodeKey {
    secret: SecretKey,
    previous: Option<PreviousKey>,
}

/// What [`NodeKey::rotate`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotated {
    /// A new key waits for the agent's next start.
    Made {
        /// The key in use until then.
        current: PublicKey,
        /// The key from then on.
        next: PublicKey,
    },
    /// One was waiting already and was left as it is: nobody has ever seen it, and a second
    /// step before the first is made known would leave peers without a link between the
    /// key that they know and the newest.
    AlreadyWaiting {
        /// The key in use until the next start.
        current: PublicKey,
        /// The key from then on.
        next: PublicKey,
    },
}

/// Why there is no key. What to do about it is part of the text.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others can read or write the file.
    #[error(
        "{} can be used by others (mode {mode:04o}): if somebody may have read it, remove it, \
         and the agent makes a new key; if not, chmod 600 it", path.display()
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is somebody else's.
    #[error(
        "{} belongs to user {owner}, not to user {user} that the agent runs as: chown it, or \
         remove it, and the agent makes a new key", path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// The file holds no key.
    #[error(
        "{} holds no key that can be used: bring it back from where it was saved, or remove it, \
         and the agent makes a new one (a peer believes that one only when this node's \
         MeshNode is deleted, too)", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never a part of its content.
        source: NotAKey,
    },
    /// The file for the next start holds no key; the one in use may be all right.
    #[error(
        "{} holds no key that can be used: remove it, and the agent goes on with the key that \
         it has; then make another with rotate-key", path.display()
    )]
    DamagedNext {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never a part of its content.
        source: NotAKey,
    },
    /// There is nothing to be rotated.
    #[error(
        "there is no {}: the agent makes one when it starts for the first time", path.display()
    )]
    NoKeyYet {
        /// The file that was looked for.
        path: PathBuf,
    },
}

impl NodeKey {
    /// The key below `state_dir`, made when there is none; a key that [`NodeKey::rotate`] has
    /// made takes the place of the one before. Reads and writes files.
    ///
    /// A file that cannot be read or that others can read is an error: a key is never
    /// silently replaced, for peers would take its successor for an impostor.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(FILE);
        if let Some(next) = read(&state_dir.join(NEXT))? {
            put_in_place(&state_dir.join(NEXT), &path)?;
            return Ok(next);
        }
        if let Some(key) = read(&path)? {
            return Ok(key);
        }
        make_dir(state_dir)?;
        let key = Self::generate();
        let temporary = key.write(state_dir)?;
        // A link, not a rename: what another process has put there meanwhile stays.
        let linked = fs::hard_link(&temporary, &path);
        let removed = fs::remove_file(&temporary);
        match linked {
            Ok(()) => {
                removed.map_err(at("remove", &temporary))?;
                sync(state_dir)?;
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read(&path)?.ok_or(KeyError::NoKeyYet { path })
            }
            Err(error) => Err(at("make", &path)(error)),
        }
    }

    /// The public half of the key that the agent has, or will have at its next start; none
    /// while there is none. Changes nothing.
    pub fn look(state_dir: &Path) -> Result<Option<PublicKey>, KeyError> {
        let key = match read(&state_dir.join(NEXT))? {
            Some(next) => Some(next),
            None => read(&state_dir.join(FILE))?,
        };
        Ok(key.map(|key| key.public()))
    }

    /// Makes the key that takes the place of the one below `state_dir` at the agent's next
    /// start. The old key signs the new one, so that peers see that nobody else made it.
    pub fn rotate(state_dir: &Path) -> Result<Rotated, KeyError> {
        let path = state_dir.join(FILE);
        let Some(current) = read(&path)? else {
            return Err(KeyError::NoKeyYet { path });
        };
        let waiting = state_dir.join(NEXT);
        if let Some(next) = read(&waiting)? {
            return Ok(Rotated::AlreadyWaiting {
                current: current.public(),
                next: next.public(),
            });
        }
        let mut next = Self::generate();
        next.previous = Some(current.statement_for(next.public()));
        let temporary = next.write(state_dir)?;
        put_in_place(&temporary, &waiting)?;
        Ok(Rotated::Made {
            current: current.public(),
            next: next.public(),
        })
    }

    /// A new key, kept nowhere.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            // From the kernel, which waits until it has gathered enough of what is
            // unpredictable: this may run in the first second of a device's first start.
            secret: SecretKey::generate(),
            previous: None,
        }
    }

    /// The public half: who this node is for its peers.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::from_bytes(*self.secret.public().as_bytes())
    }

    /// The key before this one and its word for this one, to be published with this one.
    #[must_use]
    pub fn previous(&self) -> Option<&PreviousKey> {
        self.previous.as_ref()
    }

    /// The signature of `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> KeySignature {
        KeySignature::from_bytes(self.secret.sign(message).to_bytes())
    }

    /// This key's word that it is the one of `node`, to be published with it.
    #[must_use]
    pub fn sign_name(&self, node: &NodeName) -> KeySignature {
        self.sign(&naming(node))
    }

    /// Both halves, for the transport.
    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    /// This key's word for the one after it.
    pub(crate) fn statement_for(&self, next: PublicKey) -> PreviousKey {
        let public_key = self.public();
        PreviousKey {
            public_key,
            signature: self.sign(&succession(&public_key, &next)),
        }
    }

    /// The key of a test, always the same.
    #[cfg(test)]
    pub(crate) fn of_seed(seed: u8) -> Self {
        Self {
            secret: SecretKey::from_bytes(&[seed; 32]),
            previous: None,
        }
    }

    /// Writes it to the temporary file, whose path is returned.
    fn write(&self, state_dir: &Path) -> Result<PathBuf, KeyError> {
        let path = state_dir.join(TEMPORARY);
        let text = KeyText {
            secret: self.secret.to_bytes(),
            previous: self.previous.clone(),
        };
        let mut file = create(&path)?;
        file.write_all(text.print().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(at("write", &path))?;
        Ok(path)
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey")
            .field("public", &self.public())
            .finish_non_exhaustive()
    }
}

/// Whether the key of `mesh_node` signed its name.
pub(crate) fn is_name_signed(mesh_node: &MeshNode) -> bool {
    let Ok(key) = iroh::PublicKey::from_bytes(mesh_node.public_key.as_bytes()) else {
        return false;
    };
    mesh_node.name_signature.as_ref().is_some_and(|signature| {
        let signature = iroh::Signature::from_bytes(signature.as_bytes());
        key.verify(&naming(&mesh_node.name), &signature).is_ok()
    })
}

fn naming(node: &NodeName) -> Vec<u8> {
    [NAMING, node.as_str().as_bytes()].concat()
}

/// Whether `signature` is that of `key` for `message`. Bytes that are no key have signed
/// nothing.
#[must_use]
pub fn is_signed_by(key: &PublicKey, message: &[u8], signature: &KeySignature) -> bool {
    iroh::PublicKey::from_bytes(key.as_bytes()).is_ok_and(|key| {
        let signature = iroh::Signature::from_bytes(signature.as_bytes());
        key.verify(message, &signature).is_ok()
    })
}

/// Whether `previous` says that `next` is the key after it, and is right to say so.
///
/// The name of the node is no part of it. Nothing is gained by showing the statement for
/// another node: a peer accepts it only for the node of which it believed that very key.
#[must_use]
pub fn is_successor(previous: &PreviousKey, next: &PublicKey) -> bool {
    let Ok(key) = iroh::PublicKey::from_bytes(previous.public_key.as_bytes()) else {
        return false;
    };
    let signature = iroh::Signature::from_bytes(previous.signature.as_bytes());
    let message = succession(&previous.public_key, next);
    key.verify(&message, &signature).is_ok()
}

fn succession(old: &PublicKey, new: &PublicKey) -> Vec<u8> {
    [SUCCESSION, old.as_bytes(), new.as_bytes()].concat()
}

/// The key in a file; none when there is no file.
fn read(path: &Path) -> Result<Option<NodeKey>, KeyError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("read", path)(error)),
    };
    check_access(&file, path)?;
    let damaged = |source| {
        let path = path.to_owned();
        if path.ends_with(NEXT) {
            KeyError::DamagedNext { path, source }
        } else {
            KeyError::Damaged { path, source }
        }
    };
    let mut bytes = Vec::new();
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(at("read", path))?;
    if bytes.len() as u64 > LONGEST {
        return Err(damaged(NotAKey::TooLong));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged(NotAKey::NotText))?;
    let KeyText { secret, previous } = KeyText::parse(text).map_err(damaged)?;
    let key = NodeKey {
        secret: SecretKey::from_bytes(&secret),
        previous,
    };
    if let Some(previous) = &key.previous
        && !is_successor(previous, &key.public())
    {
        return Err(damaged(NotAKey::WrongStatement));
    }
    Ok(Some(key))
}

/// The opened file is asked, not its name: nobody can change it in between.
fn check_access(file: &File, path: &Path) -> Result<(), KeyError> {
    let found = file.metadata().map_err(at("look at", path))?;
    let mode = found.mode() & 0o7777;
    let user = nix::unistd::geteuid().as_raw();
    if found.uid() != user {
        return Err(KeyError::NotOurs {
            path: path.to_owned(),
            owner: found.uid(),
            user,
        });
    }
    if mode & 0o077 != 0 {
        return Err(KeyError::TooOpen {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// A new file that only its owner can use. What an agent that died has left there goes.
fn create(path: &Path) -> Result<File, KeyError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path).map_err(at("remove", path))?;
            options.open(path).map_err(at("make", path))
        }
        made => made.map_err(at("make", path)),
    }
}

fn put_in_place(from: &Path, to: &Path) -> Result<(), KeyError> {
    fs::rename(from, to).map_err(at("replace", to))?;
    to.parent().map_or(Ok(()), sync)
}

fn make_dir(path: &Path) -> Result<(), KeyError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at("make the folder", path))
}

/// After a power cut, too, the name shall be there.
fn sync(dir: &Path) -> Result<(), KeyError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(at("write the folder", dir))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
