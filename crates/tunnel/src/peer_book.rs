//! Who is believed to be which node.
//!
//! Everybody who can write a `MeshNode` says who it is; this decides what of that is true.
//! The rules keep an impostor out that can write some `MeshNode`, but not delete one: no
//! claim ever takes the place of a peer that is believed, and where nothing tells two
//! claims apart, neither is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use edgemesh_catalog::{Catalog, MeshNode, NodeName, PublicKey};

use crate::identity::{is_name_signed, is_successor};

/// A node that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its agent says of itself, its name and key among it. While a later word of it is
    /// refused, this is the last one that was believed.
    pub mesh_node: Arc<MeshNode>,
    /// The key that it proved to be before. Connections that were made with it go on; there
    /// are no new ones.
    pub previous: Option<PublicKey>,
}

impl Peer {
    /// The node.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.mesh_node.name
    }

    /// The key that it has to prove.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        &self.mesh_node.public_key
    }

    /// The key that it has, and the one that it had.
    pub(crate) fn keys(&self) -> impl Iterator<Item = PublicKey> {
        [Some(*self.key()), self.previous].into_iter().flatten()
    }
}

/// A `MeshNode` that is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPeer {
    /// Its name.
    pub node: NodeName,
    /// The key that it claims.
    pub key: PublicKey,
    /// Why not.
    pub reason: NotBelieved,
}

/// Why a `MeshNode` is not believed. The text says what an administrator can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotBelieved {
    /// There is no Node of that name.
    NodeGone,
    /// Other nodes claim the same key, or had it until lately.
    DuplicateKey {
        /// Which nodes, sorted.
        with: Vec<NodeName>,
    },
    /// It claims the key of this very node.
    OwnKey,
    /// It was believed with another key, which did not sign this one.
    ChangedKey {
        /// The key with which it still is believed.
        believed: PublicKey,
    },
    /// The bytes are no key, or one for which anybody could sign.
    NoKey,
    /// The key did not sign the node's name.
    NotSigned,
}

impl NotBelieved {
    /// One word for it, for metrics and events.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NodeGone => "NodeGone",
            Self::DuplicateKey { .. } => "DuplicateKey",
            Self::OwnKey => "OwnKey",
            Self::ChangedKey { .. } => "ChangedKey",
            Self::NoKey => "NoKey",
            Self::NotSigned => "NotSigned",
        }
    }
}

impl fmt::Display for NotBelieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeGone => f.write_str(
                "there is no Node of that name; if it is gone for good, delete its MeshNode",
            ),
            Self::DuplicateKey { with } => {
                f.write_str("the same key is claimed by")?;
                for (at, name) in with.iter().enumerate() {
                    let separator = if at == 0 { " " } else { ", " };
                    write!(f, "{separator}{name}")?;
                }
                f.write_str(
                    "; if the state directory was copied from node to node, remove tunnel.key \
                     from all but one",
                )
            }
            Self::OwnKey => f.write_str(
                "it claims the key of this node; if the state directory was copied, remove \
                 tunnel.key from the copy",
            ),
            Self::ChangedKey { believed } => write!(
                f,
                "its key changed without a word of the key that is believed ({believed}); if \
                 its state directory was lost, delete the MeshNode, and its agent makes it anew"
            ),
            Self::NoKey => f.write_str("what it shows as its key is none"),
            Self::NotSigned => f.write_str(
                "its key did not sign its name, so whoever wrote it need not have that key; its \
                 own agent writes it with the signature",
            ),
        }
    }
}

/// All peers as of one moment. Never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    by_node: BTreeMap<NodeName, Arc<Peer>>,
    /// By the key in use, and by the one before.
    by_key: BTreeMap<PublicKey, Arc<Peer>>,
    refused: Vec<RefusedPeer>,
}

impl Peers {
    /// The peer that is that node.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Peer>> {
        self.by_node.get(name)
    }

    /// The peer that has this key now: who may make a new connection.
    #[must_use]
    pub fn with_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key).filter(|peer| peer.key() == key)
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Peer>> {
        self.by_node.values()
    }

    /// Every key that some peer has or had, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.by_key.keys()
    }

    /// What is not believed, sorted by name.
    #[must_use]
    pub fn refused(&self) -> &[RefusedPeer] {
        &self.refused
    }
}

/// Remembers who was believed, for that is what a changed key is judged by.
#[derive(Debug, Default)]
pub struct PeerBook {
    /// By node, as long as its `MeshNode` is there.
    known: BTreeMap<NodeName, Known>,
}

#[derive(Debug)]
struct Known {
    /// Of the object, also while what it says is refused.
    uid: Option<Arc<str>>,
    peer: Arc<Peer>,
    /// Whether it was among the peers the last time: its Node may be gone.
    believed: bool,
}

impl Known {
    /// Whether `mesh_node` is the object that this is known from. One that was deleted and
    /// made again is another: that is how an administrator says that a new key is right.
    fn is_from(&self, mesh_node: &MeshNode) -> bool {
        match (&self.uid, &mesh_node.uid) {
            (Some(then), Some(now)) => then == now,
            (_, None) | (None, Some(_)) => true,
        }
    }

    fn right(&self) -> Right {
        if self.believed {
            Right::Held
        } else {
            Right::Claimed
        }
    }
}

/// What is left of a node's word once its own history has been looked at.
struct Claim {
    peer: Peer,
    /// How good its right to the key is.
    right: Right,
    /// With what it stays if others have a better one.
    otherwise: Option<Arc<Peer>>,
}

/// How good a right to a key is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// It says so.
    Claimed,
    /// The key with which it is believed says so.
    VouchedFor,
    /// It is believed with it, or was until lately.
    Held,
}

/// By name, so that each node is refused for one reason.
type Refused = BTreeMap<NodeName, RefusedPeer>;

impl PeerBook {
    /// Who is believed now. `own` is the name of this node, `own_keys` its key and those it
    /// had before.
    ///
    /// The same catalog gives the same answer however often it is followed, and no node has
    /// an advantage by its name.
    pub fn follow(&mut self, catalog: &Catalog, own: &NodeName, own_keys: &[PublicKey]) -> Peers {
        let mut peers = self.step(catalog, own, own_keys);
        // A key that a node gives up in one step is another's in the next. There is an end
        // to it: who is believed stays so, and each step but the last adds somebody.
        loop {
            let again = self.step(catalog, own, own_keys);
            if again == peers {
                return again;
            }
            peers = again;
        }
    }

    fn step(&mut self, catalog: &Catalog, own: &NodeName, own_keys: &[PublicKey]) -> Peers {
        self.known.retain(|name, known| {
            let now = catalog.mesh_node(name);
            now.is_some_and(|now| known.is_from(now))
        });
        let mut refused = Refused::new();
        let mut claims = BTreeMap::new();
        for mesh_node in catalog.mesh_nodes().filter(|of| of.name != *own) {
            let judged = match catalog.node(&mesh_node.name) {
                None => Err((NotBelieved::NodeGone, None)),
                Some(_) => self.judge(mesh_node, own_keys),
            };
            let claim = judged.or_else(|(reason, instead)| {
                refuse(&mut refused, mesh_node, reason);
                instead.ok_or(())
            });
            if let Ok(claim) = claim {
                claims.insert(mesh_node.name.clone(), claim);
            }
        }
        let believed = self.without_duplicates(claims, catalog, &mut refused);
        self.remember(&believed, catalog);
        self.peers(refused)
    }

    /// From now on the key that this node had before is nobody's. To be told once no
    /// connection with it is left.
    pub fn forget_previous(&mut self, node: &NodeName) {
        if let Some(known) = self.known.get_mut(node) {
            Arc::make_mut(&mut known.peer).previous = None;
        }
    }

    /// Judges a word by what is known of the node itself. The error has the reason, and what
    /// the node stays with.
    fn judge(
        &self,
        mesh_node: &Arc<MeshNode>,
        own_keys: &[PublicKey],
    ) -> Result<Claim, (NotBelieved, Option<Claim>)> {
        let key = &mesh_node.public_key;
        let known = self.known.get(&mesh_node.name);
        let stays = || {
            known.map(|known| Claim {
                peer: (*known.peer).clone(),
                right: known.right(),
                otherwise: None,
            })
        };
        let believed = |right, previous| Claim {
            peer: Peer {
                mesh_node: Arc::clone(mesh_node),
                previous,
            },
            right,
            otherwise: known.map(|known| Arc::clone(&known.peer)),
        };
        if !is_key(key) {
            return Err((NotBelieved::NoKey, stays()));
        }
        if own_keys.contains(key) {
            return Err((NotBelieved::OwnKey, stays()));
        }
        // What is known already need not be verified again with every change of the cluster.
        let is_known = |known: &Known| {
            let before = &known.peer.mesh_node;
            before.public_key == *key && before.name_signature == mesh_node.name_signature
        };
        if !known.is_some_and(is_known) && !is_name_signed(mesh_node) {
            return Err((NotBelieved::NotSigned, stays()));
        }
        let Some(known) = known else {
            return Ok(believed(Right::Claimed, None));
        };
        let old = *known.peer.key();
        if old == *key {
            Ok(believed(known.right(), known.peer.previous))
        } else if is_rotated(&old, mesh_node) {
            Ok(believed(Right::VouchedFor.min(known.right()), Some(old)))
        } else {
            Err((NotBelieved::ChangedKey { believed: old }, stays()))
        }
    }

    /// Leaves one peer for each key: the one with the best right to it; none when several
    /// have the same.
    fn without_duplicates(
        &self,
        claims: BTreeMap<NodeName, Claim>,
        catalog: &Catalog,
        refused: &mut Refused,
    ) -> Vec<Peer> {
        let rights = self.rights(&claims);
        let mut believed = Vec::new();
        for (name, claim) in claims {
            let key = *claim.peer.key();
            let others = rights.get(&key).into_iter().flatten();
            let others: BTreeMap<_, _> = others.filter(|(other, _)| **other != name).collect();
            if others.values().all(|right| **right < claim.right) {
                believed.push(claim.peer);
                continue;
            }
            let with = others.into_keys().cloned().collect();
            if let Some(mesh_node) = catalog.mesh_node(&name) {
                refuse(refused, mesh_node, NotBelieved::DuplicateKey { with });
            }
            let stays = claim.otherwise.filter(|known| *known.key() != key);
            believed.extend(stays.map(Arc::unwrap_or_clone));
        }
        believed
    }

    /// Who has which right to which key, of those who claim something.
    fn rights(
        &self,
        claims: &BTreeMap<NodeName, Claim>,
    ) -> BTreeMap<PublicKey, BTreeMap<NodeName, Right>> {
        let mut rights: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (name, claim) in claims {
            let of_key = rights.entry(*claim.peer.key()).or_default();
            of_key.insert(name.clone(), claim.right);
        }
        let known = self.known.iter();
        for (name, known) in known.filter(|(name, of)| of.believed && claims.contains_key(*name)) {
            for key in known.peer.keys() {
                let of_key = rights.entry(key).or_default();
                of_key.insert(name.clone(), Right::Held);
            }
        }
        rights
    }

    fn remember(&mut self, believed: &[Peer], catalog: &Catalog) {
        for known in self.known.values_mut() {
            known.believed = false;
        }
        for peer in believed {
            let name = peer.name();
            let uid = catalog.mesh_node(name).and_then(|now| now.uid.clone());
            if let Some(known) = self.known.get_mut(name) {
                known.believed = true;
                known.uid = uid.or(known.uid.take());
                // Who compares by pointer sees that nothing changed.
                if *known.peer != *peer {
                    known.peer = Arc::new(peer.clone());
                }
                continue;
            }
            let known = Known {
                uid,
                peer: Arc::new(peer.clone()),
                believed: true,
            };
            self.known.insert(name.clone(), known);
        }
    }

    fn peers(&self, refused: Refused) -> Peers {
        let mut peers = Peers {
            refused: refused.into_values().collect(),
            ..Peers::default()
        };
        for (name, known) in self.known.iter().filter(|(_, known)| known.believed) {
            for key in known.peer.keys() {
                peers.by_key.insert(key, Arc::clone(&known.peer));
            }
            peers.by_node.insert(name.clone(), Arc::clone(&known.peer));
        }
        peers
    }
}

/// The first reason counts.
fn refuse(refused: &mut Refused, mesh_node: &MeshNode, reason: NotBelieved) {
    let name = mesh_node.name.clone();
    refused.entry(name).or_insert_with_key(|name| RefusedPeer {
        node: name.clone(),
        key: mesh_node.public_key,
        reason,
    });
}

/// Whether the key that was believed vouches for the one that is claimed.
fn is_rotated(believed: &PublicKey, mesh_node: &MeshNode) -> bool {
    mesh_node.previous_key.as_ref().is_some_and(|previous| {
        previous.public_key == *believed && is_successor(previous, &mesh_node.public_key)
    })
}

/// Whether the bytes are a point of the curve, and not one of the few of small order, for
/// which signatures can be made without a private half.
fn is_key(key: &PublicKey) -> bool {
    iroh::PublicKey::from_bytes(key.as_bytes())
        .is_ok_and(|point| !point.as_verifying_key().is_weak())
}

#[cfg(test)]
#[path = "peer_book_tests.rs"]
mod tests;
