use std::net::UdpSocket;

use iroh::endpoint::Connection;
use iroh::{EndpointAddr, TransportAddr};

use super::*;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn options() -> EndpointOptions {
    EndpointOptions {
        key: NodeKey::generate(),
        alpns: vec![b"test".to_vec()],
        bind: vec![LOOPBACK],
        port: 0,
        advertise: Vec::new(),
        lookup: MemoryLookup::new(),
        trust: RelayTrust::default(),
        relay_dialer: None,
    }
}

fn port(endpoint: &Endpoint) -> u16 {
    endpoint.bound_sockets()[0].port()
}

async fn connected(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let address = TransportAddr::Ip(SocketAddr::new(LOOPBACK, port(to)));
    let address = EndpointAddr::from_parts(to.id(), [address]);
    let accept = async { to.accept().await.unwrap().await.unwrap() };
    let connect = async { from.connect(address, b"test").await.unwrap() };
    tokio::join!(connect, accept)
}

#[tokio::test]
async fn peer_that_opens_very_many_streams_is_not_kept_waiting() {
    let (here, there) = (options(), options());
    let [here, there] = [&here, &there].map(bind_endpoint);
    let (here, there) = tokio::try_join!(here, there).unwrap();
    let (outgoing, _incoming) = connected(&here, &there).await;
    let mut held = Vec::new();
    for _ in 0..2000 {
        held.push(outgoing.open_bi().await.unwrap());
    }
    assert_eq!(held.len(), 2000);
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn packets_grow_until_they_fill_an_ethernet_frame() {
    let (here, there) = (options(), options());
    let [here, there] = [&here, &there].map(bind_endpoint);
    let (here, there) = tokio::try_join!(here, there).unwrap();
    let (outgoing, _incoming) = connected(&here, &there).await;
    let is_filled = || {
        let paths = outgoing.paths();
        let mut sizes = paths.iter().map(|path| path.stats().current_mtu);
        sizes.any(|size| size == LARGEST_PACKET)
    };
    let mut look = tokio::time::interval(Duration::from_millis(1));
    while !is_filled() {
        look.tick().await;
    }
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn port_that_is_taken_is_replaced_by_another() {
    let predecessor = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let taken = predecessor.local_addr().unwrap().port();
    let endpoint = bind_endpoint(&EndpointOptions {
        port: taken,
        ..options()
    })
    .await
    .unwrap();
    assert_ne!(port(&endpoint), taken);
    endpoint.close().await;
}

#[tokio::test]
async fn free_port_is_used() {
    let free = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let wanted = free.local_addr().unwrap().port();
    drop(free);
    let endpoint = bind_endpoint(&EndpointOptions {
        port: wanted,
        ..options()
    })
    .await
    .unwrap();
    assert_eq!(port(&endpoint), wanted);
    endpoint.close().await;
}

#[tokio::test]
async fn host_without_ipv6_has_an_endpoint_all_the_same() {
    // An address that this host does not have stands for a family that it does not have.
    let elsewhere: IpAddr = "2001:db8::1".parse().unwrap();
    let endpoint = bind_endpoint(&EndpointOptions {
        bind: vec![LOOPBACK, elsewhere],
        ..options()
    })
    .await
    .unwrap();
    assert_eq!(endpoint.bound_sockets().len(), 1);
    endpoint.close().await;
}

#[tokio::test]
async fn advertised_address_is_told_to_others() {
    let public: SocketAddr = "192.0.2.7:20006".parse().unwrap();
    let endpoint = bind_endpoint(&EndpointOptions {
        advertise: vec![public],
        ..options()
    })
    .await
    .unwrap();
    assert!(endpoint.addr().ip_addrs().any(|told| *told == public));
    endpoint.close().await;
}

#[tokio::test]
async fn names_are_not_asked_for() {
    let endpoint = bind_endpoint(&options()).await.unwrap();
    let resolver = endpoint.dns_resolver().unwrap();
    let answer = resolver
        .lookup_ipv4_ipv6("relay.example", Duration::from_secs(1))
        .await;
    // An answer without an address, at once, and no error of a server or of a time-out.
    assert_eq!(answer.map(Iterator::count).unwrap_or_default(), 0);
    endpoint.close().await;
}
