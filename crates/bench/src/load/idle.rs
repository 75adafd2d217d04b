//! Connections over which nothing goes any more.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Error, Result};
use edgemesh_lab::Namespace;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::requests::first;

/// Files that this process has open besides connections.
const OTHER_FILES: usize = 600;

/// Opens up to `count` connections, one after the other, and sends one request over each:
/// those that were answered, and why there are no more if there are less.
///
/// # Errors
///
/// When already the first one is refused or not answered.
pub fn open(
    client: &Namespace,
    to: SocketAddr,
    count: usize,
) -> Result<(Vec<TcpStream>, Option<Error>)> {
    client.run(|| {
        let mut open = Vec::new();
        while open.len() < count {
            match first(to) {
                Ok(stream) => open.push(stream),
                Err(error) if open.is_empty() => return Err(error),
                Err(error) => return Ok((open, Some(error))),
            }
        }
        Ok((open, None))
    })?
}

/// How many connections with both ends in this process its file limit allows.
///
/// # Errors
///
/// As [`files`].
pub fn most() -> Result<usize> {
    Ok(files()?.saturating_sub(OTHER_FILES) / 2)
}

/// How many files this process and those it starts may have open, after asking for as many as
/// there are to be had.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn files() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot ask for the file limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the file limit")?;
    Ok(usize::try_from(hard)?)
}
