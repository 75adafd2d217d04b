use edgemesh_sockets::OutwardSockets;
use edgemesh_wire::LaneToken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::super::CarrierOptions;
use super::super::key_proof::dialler_tls;
use super::super::lobby::Expected;
use super::*;
use crate::counters::Counters;
use crate::identity::NodeKey;
use crate::relay_stage::{LOOPBACK, believed, mesh_node};

const TOKEN: LaneToken = LaneToken([7; 16]);
const OTHER_TOKEN: LaneToken = LaneToken([8; 16]);

/// A node that takes connections for lanes, and two peers that it believes.
struct Stage {
    carrier: Arc<Carrier>,
    node: NodeKey,
    peers: [NodeKey; 2],
    door: TcpListener,
    side: SideDoor,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Stage {
    async fn new() -> Self {
        let node = NodeKey::of_seed(1);
        let peers = [NodeKey::of_seed(2), NodeKey::of_seed(3)];
        let names = ["one", "other"];
        let known: Vec<_> = names
            .iter()
            .zip(&peers)
            .map(|(name, key)| mesh_node(name, key))
            .collect();
        let options = CarrierOptions {
            key: node.clone(),
            sockets: OutwardSockets::new(None),
            peers: watch::Sender::new(Arc::new(believed(&known))).subscribe(),
            runtime: Handle::current(),
            counters: Arc::new(Counters::default()),
        };
        let carrier = Arc::new(Carrier::new(options).unwrap());
        let stop = CancellationToken::new();
        let (side, entrance) = side_door();
        let mut tasks = JoinSet::new();
        let listening = keep_listening(Arc::clone(&carrier), Vec::new(), entrance, stop.clone());
        tasks.spawn(listening);
        Self {
            carrier,
            node,
            peers,
            door: TcpListener::bind(LOOPBACK).await.unwrap(),
            side,
            stop,
            tasks,
        }
    }

    fn expect(&self, token: LaneToken) -> Expected {
        self.carrier.lobby.expect(token, self.peers[0].public())
    }

    async fn dial(&self) -> TcpStream {
        let dialled = TcpStream::connect(self.door.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dialled, self.door.accept());
        self.side.send(accepted.unwrap().0).await.unwrap();
        dialled.unwrap()
    }

    /// Who has `key` brings `token`.
    async fn present(&self, key: &NodeKey, token: LaneToken) -> Result<Secured, HandshakeFault> {
        let tls = Arc::new(dialler_tls(key, self.node.public()).unwrap());
        let mut secured = Secured::dialled(self.dial().await, tls).await?;
        secured.present(token).await?;
        Ok(secured)
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_token_opens_a_lane_once_and_for_the_peer_that_it_was_agreed_on_with() {
    let stage = Stage::new().await;
    let mut expected = stage.expect(TOKEN);
    let [peer, other] = &stage.peers;
    let stranger = NodeKey::of_seed(9);
    assert!(stage.present(&stranger, TOKEN).await.is_err());
    assert!(stage.present(other, TOKEN).await.is_err());
    assert!(stage.present(peer, OTHER_TOKEN).await.is_err());
    let opened = stage.present(peer, TOKEN).await.unwrap();
    let arrived = expected.arrived().await.unwrap();
    assert_eq!(
        (opened.key, arrived.key),
        (stage.node.public(), peer.public())
    );
    assert!(stage.present(peer, TOKEN).await.is_err());
    stage.end().await;
}

#[tokio::test]
async fn what_a_peer_has_sent_once_is_good_for_nothing_when_it_is_sent_again() {
    let stage = Stage::new().await;
    let _expected = stage.expect(TOKEN);
    // What the peer says to the node, and what that answers, passes by somebody who keeps it.
    let between = TcpListener::bind(LOOPBACK).await.unwrap();
    let tls = Arc::new(dialler_tls(&stage.peers[0], stage.node.public()).unwrap());
    let at = between.local_addr().unwrap();
    let peer = async {
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut secured = Secured::dialled(tcp, tls).await.unwrap();
        secured.present(TOKEN).await.unwrap();
    };
    let thief = async {
        let (near, _) = between.accept().await.unwrap();
        pass_and_keep(near, stage.dial().await).await
    };
    let ((), kept) = tokio::join!(peer, thief);
    assert!(!kept.is_empty());

    let _expected_anew = stage.expect(TOKEN);
    let mut again = stage.dial().await;
    again.write_all(&kept).await.unwrap();
    let mut heard = Vec::new();
    // The node's first flight is new, so that the rest of what was kept does not fit to it.
    let _ = again.read_to_end(&mut heard).await;
    assert!(
        stage
            .carrier
            .lobby
            .find(&TOKEN, &stage.peers[0].public())
            .is_some()
    );
    stage.end().await;
}

/// Passes on what both sides say until the first ends; returns what that has said.
async fn pass_and_keep(near: TcpStream, far: TcpStream) -> Vec<u8> {
    let (mut near_reader, mut near_writer) = near.into_split();
    let (mut far_reader, mut far_writer) = far.into_split();
    let mut kept = Vec::new();
    let there = async {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = near_reader.read(&mut chunk).await {
            kept.extend_from_slice(&chunk[..count]);
            let passed = far_writer.write_all(&chunk[..count]);
            if passed.await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = there => {}
        _ = tokio::io::copy(&mut far_reader, &mut near_writer) => {}
    }
    kept
}
