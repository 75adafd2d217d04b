use tokio::net::TcpListener;
use tokio::sync::watch;

use super::super::key_proof::{dialler_tls, listener_tls};
use super::*;
use crate::identity::NodeKey;
use crate::relay_stage::{LOOPBACK, believed, mesh_node};

const TOKEN: LaneToken = LaneToken([7; 16]);

type Ended = Result<Secured, HandshakeFault>;

/// Two TCP sockets with a connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap());
    let (dialled, accepted) = tokio::join!(dialled, listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// A listener that believes `believed` as `node` is dialled by who has the key `dialler` and
/// expects `expected`. Both say what they have to say about a token.
async fn meet(
    listener: &NodeKey,
    believes: &[&NodeKey],
    dialler: &NodeKey,
    expected: &NodeKey,
) -> (Ended, Ended) {
    let peers: Vec<_> = believes.iter().map(|key| mesh_node("peer", key)).collect();
    let (_peers, peers) = watch::channel(Arc::new(believed(&peers)));
    let at_listener = Arc::new(listener_tls(listener, peers).unwrap());
    let at_dialler = Arc::new(dialler_tls(dialler, expected.public()).unwrap());
    let (near, far) = connection().await;
    let dial = async {
        let mut secured = Secured::dialled(near, at_dialler).await?;
        secured.present(TOKEN).await?;
        Ok(secured)
    };
    let accept = async {
        let mut secured = Secured::accepted(far, at_listener).await?;
        assert_eq!(secured.token().await?, TOKEN);
        secured.open().await?;
        Ok(secured)
    };
    tokio::join!(dial, accept)
}

#[tokio::test]
async fn both_ends_know_the_key_of_the_other() {
    let (near, far) = (NodeKey::of_seed(1), NodeKey::of_seed(2));
    let (dialled, accepted) = meet(&far, &[&near], &near, &far).await;
    assert_eq!(dialled.unwrap().key, far.public());
    assert_eq!(accepted.unwrap().key, near.public());
}

#[tokio::test]
async fn who_has_no_believed_key_gets_no_lane() {
    let (near, far, other) = (
        NodeKey::of_seed(1),
        NodeKey::of_seed(2),
        NodeKey::of_seed(3),
    );
    let (dialled, accepted) = meet(&far, &[&other], &near, &far).await;
    assert!(dialled.is_err());
    assert!(matches!(accepted, Err(HandshakeFault::Tls(_))));
}

#[tokio::test]
async fn another_node_than_the_one_that_is_meant_gets_no_lane() {
    let (near, far, other) = (
        NodeKey::of_seed(1),
        NodeKey::of_seed(2),
        NodeKey::of_seed(3),
    );
    let (dialled, accepted) = meet(&far, &[&near], &near, &other).await;
    assert!(matches!(dialled, Err(HandshakeFault::Tls(_))));
    assert!(accepted.is_err());
}

#[tokio::test]
async fn who_speaks_no_tls_learns_nothing_but_that() {
    let key = NodeKey::of_seed(1);
    let (_peers, peers) = watch::channel(Arc::default());
    let tls = Arc::new(listener_tls(&key, peers).unwrap());
    for said in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[22, 3, 1, 0xff, 0xff],
        &[0; 600],
    ] {
        let (mut near, far) = connection().await;
        near.write_all(said).await.unwrap();
        near.shutdown().await.unwrap();
        assert!(Secured::accepted(far, Arc::clone(&tls)).await.is_err());
        let mut heard = Vec::new();
        // An alert at most; it may also be reset, for not all was read.
        let _ = near.read_to_end(&mut heard).await;
        assert!(heard.len() <= 7, "{heard:?}");
    }
}

#[tokio::test]
async fn a_handshake_that_breaks_off_is_no_lane() {
    let key = NodeKey::of_seed(1);
    let (_peers, peers) = watch::channel(Arc::default());
    let tls = Arc::new(listener_tls(&key, peers).unwrap());
    let hello = {
        let tls = Arc::new(dialler_tls(&key, key.public()).unwrap());
        let name = ServerName::try_from("192.0.2.1").unwrap();
        let mut hello = Vec::new();
        let mut dialler = ClientConnection::new(tls, name).unwrap();
        dialler.write_tls(&mut hello).unwrap();
        hello
    };
    for length in [0, 1, 4, 5, 6, hello.len() / 2, hello.len() - 1, hello.len()] {
        let (mut near, far) = connection().await;
        near.write_all(&hello[..length]).await.unwrap();
        near.shutdown().await.unwrap();
        let ended = Secured::accepted(far, Arc::clone(&tls)).await;
        assert!(matches!(ended, Err(HandshakeFault::Io(_))), "{length}");
    }
}
