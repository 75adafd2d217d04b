//! What is decided before any rule is there, and what a fault of ours costs.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use edgemesh_forward::{BindError, Forwarder, Refused, ResolveOriginalDst, Settings};
use edgemesh_plan::Plan;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn settings() -> Settings {
    Settings {
        intercept_v4: Some(LOOPBACK),
        listen_port: 0,
        ..Settings::default()
    }
}

/// Connects to the listener and returns how that ends.
async fn connect_to(forwarder: &Forwarder) -> Result<ErrorKind> {
    let listener = forwarder.listen_addrs().next().context("no listener")?;
    let stream = TcpStream::connect(listener.0)?;
    how_it_ends(stream).await
}

async fn how_it_ends(mut stream: TcpStream) -> Result<ErrorKind> {
    let read = tokio::task::spawn_blocking(move || stream.read(&mut [0])).await?;
    match read {
        Ok(n) => bail!("read {n} bytes instead of being refused"),
        Err(error) => Ok(error.kind()),
    }
}

#[tokio::test]
async fn without_any_family_there_is_nothing_to_start() {
    let refused = Forwarder::bind(&Settings::default());
    assert!(matches!(refused.err(), Some(BindError::NoFamily)));
}

#[tokio::test]
async fn a_listen_port_that_somebody_holds_is_replaced_by_another() {
    let holder = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let taken = holder.local_addr().unwrap();
    let forwarder = Forwarder::bind(&Settings {
        listen_port: taken.port(),
        ..settings()
    })
    .unwrap();
    let listen = forwarder.listen_addrs().next().unwrap().0;
    assert_eq!(listen.ip(), taken.ip());
    assert_ne!(listen.port(), taken.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_arrives_before_the_start_waits() {
    let resolve: ResolveOriginalDst = Arc::new(|_, _| Err(ErrorKind::Unsupported.into()));
    let mut forwarder = Forwarder::bind_with(&settings(), resolve).unwrap();
    let listener = forwarder.listen_addrs().next().unwrap().0;
    let early = TcpStream::connect(listener).unwrap();
    forwarder.start();
    assert_eq!(
        how_it_ends(early).await.unwrap(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_cannot_tell_the_destination_means_a_counted_refusal() {
    let resolve: ResolveOriginalDst = Arc::new(|_, _| Err(ErrorKind::Unsupported.into()));
    let mut forwarder = Forwarder::bind_with(&settings(), resolve).unwrap();
    forwarder.start();
    assert_eq!(
        connect_to(&forwarder).await.unwrap(),
        ErrorKind::ConnectionReset
    );
    let counters = forwarder.counters();
    forwarder.drain(std::time::Duration::from_secs(5)).await;
    assert_eq!(counters.refused(Refused::NoOriginalDestination), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_costs_its_own_connection_and_is_counted() {
    let resolve: ResolveOriginalDst = Arc::new(|_, _| panic!("a test's panic"));
    let mut forwarder = Forwarder::bind_with(&settings(), resolve).unwrap();
    forwarder.start();
    let counters = forwarder.counters();
    for _ in 0..2 {
        assert_eq!(
            connect_to(&forwarder).await.unwrap(),
            ErrorKind::ConnectionReset
        );
    }
    forwarder.drain(std::time::Duration::from_secs(5)).await;
    assert_eq!(counters.panicked_tasks(), 2);
}

#[tokio::test]
async fn an_empty_plan_needs_no_ports() {
    let mut forwarder = Forwarder::bind(&settings()).unwrap();
    let destinations = forwarder.prepare(&Plan::default());
    assert!(destinations.ports.is_empty() && destinations.failed.is_empty());
    forwarder.retire();
}
