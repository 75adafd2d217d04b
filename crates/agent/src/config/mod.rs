//! The configuration file: EdgeMesh's `EdgeMeshAgent` v1alpha1, with keys of our own.
//!
//! One table, [`keys`], says of every key what it accepts, what it is by default and what
//! the agent does with it. Reading, the errors and warnings, the effective configuration
//! shown at the start, the keys that need a restart and `docs/configuration.md` all come
//! from it: a new key is one entry there and one field in [`settings`].
//!
//! EdgeMesh reads its file with `sigs.k8s.io/yaml` into Go structs, so a file that works
//! there may spell a key in another case, write `yes` for `true`, or a number where text
//! is meant. All of that is understood here too. What EdgeMesh silently drops, an unknown
//! key, is an error here.

mod consistency;
mod duration;
mod edge_tunnel;
mod effective;
mod file;
mod findings;
mod key;
mod keys;
mod keys_of_absent_modules;
mod keys_of_tunnel;
mod mapping;
mod near_match;
mod parse;
mod reachability;
mod readers;
#[cfg(test)]
mod reference;
mod settings;
mod tunnel_addresses;
mod values;

#[cfg(test)]
pub(crate) use edge_tunnel::AdvertisedAddress;
pub(crate) use edge_tunnel::{EdgeTunnelConfig, RelayNode, TunnelLimits};
pub(crate) use file::read;
pub(crate) use findings::ConfigErrors;
pub(crate) use near_match::near_matches;
pub(crate) use parse::Parsed;
#[cfg(test)]
pub(crate) use parse::parse;
pub(crate) use settings::{Backend, Config, Flavour, KubeApiConfig, MetaServer};

#[cfg(test)]
mod tests;
