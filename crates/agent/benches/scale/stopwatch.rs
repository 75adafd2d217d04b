//! When a Service answers, seen from a pod.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgemesh_bench::load::pause;
use edgemesh_lab::{ClusterService, Place, Pod};

use crate::services::PORT;

/// The longest that anybody is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one attempt waits for the connection, and how long until the next one. Attempts
/// that nobody intercepts end at the router, which tells that there is no such place.
const ATTEMPT: Duration = Duration::from_millis(5);
const BETWEEN: Duration = Duration::from_millis(1);

/// Runs `event` and returns how long after its beginning the first connection from `client`
/// to `service` was answered.
pub(crate) fn until_answered<T: Send>(
    client: &Pod,
    service: &ClusterService,
    event: impl FnOnce() -> Result<T>,
) -> Result<(Duration, T)> {
    let ip = service.cluster_ips.first().context("no ClusterIP")?;
    let to = SocketAddr::new(ip.parse()?, PORT);
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || client.namespace().run(|| first_answer(to)));
        let began = Instant::now();
        let outcome = event()?;
        let answered = watching
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))???;
        ensure!(answered >= began, "{to} answered before it should");
        Ok((answered - began, outcome))
    })
}

fn first_answer(to: SocketAddr) -> Result<Instant> {
    let began = Instant::now();
    loop {
        match attempt(to) {
            Ok(()) => return Ok(Instant::now()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("{to} never answered"));
            }
            Err(_) => pause(BETWEEN),
        }
    }
}

fn attempt(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ATTEMPT)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.read_exact(&mut [0])
}
