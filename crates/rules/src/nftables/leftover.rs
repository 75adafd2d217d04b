//! Tables of ours that no process holds: what an agent leaves on a kernel without the owner
//! flag when it ends without notice.

use nix::sys::socket::SockProtocol;

use super::nftables_error::NftablesError;
use super::refuse_table::RefuseTable;
use super::table_look::{TableFacts, table};
use super::table_name::TableName;
use super::transaction::Transaction;
use crate::Family;
use crate::netlink::NetlinkSocket;

/// What became of the tables.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Those that were removed.
    pub(crate) removed: Vec<TableName>,
    /// Those that belong to a process that runs, and the port of its netlink socket.
    pub(crate) held: Vec<(TableName, u32)>,
}

/// Removes the tables of ours that no process holds, but the one in use. Without any,
/// nothing is changed.
pub(crate) fn remove_leftovers(
    family: Family,
    in_use: Option<TableName>,
) -> Result<Leftovers, NftablesError> {
    let mut leftovers = Leftovers::default();
    for name in TableName::all(family) {
        if in_use == Some(name) {
            continue;
        }
        let reading = |error| NftablesError::reading(name, error);
        let mut socket = NetlinkSocket::open(SockProtocol::NetlinkNetFilter, 0).map_err(reading)?;
        match table(&mut socket, name).map_err(reading)? {
            None => {}
            Some(TableFacts {
                owner: Some(owner), ..
            }) => leftovers.held.push((name, owner)),
            Some(TableFacts { owner: None, .. }) => {
                let mut transaction = Transaction::on(name);
                transaction.delete_table();
                transaction.commit(&mut socket)?;
                leftovers.removed.push(name);
            }
        }
    }
    Ok(leftovers)
}

/// Removes the table that refuses what nobody serves; tells whether there was one. Not to be
/// called while an agent needs it: it would put it back.
pub(crate) fn remove_refusing(family: Family) -> Result<bool, NftablesError> {
    RefuseTable::open(family)?.delete()
}
