use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, Connection, ServerConnection};

use super::super::key_proof::{dialler_tls, listener_tls};
use super::*;
use crate::identity::NodeKey;
use crate::relay_stage::{believed, mesh_node};

/// The two ends of a connection after their handshake, all in memory.
fn connected() -> (Connection, Connection) {
    let (near, far) = (NodeKey::of_seed(1), NodeKey::of_seed(2));
    let peers = believed(&[mesh_node("near", &near)]);
    let (_peers, peers) = watch::channel(Arc::new(peers));
    let dialler = dialler_tls(&near, far.public()).unwrap();
    let listener = listener_tls(&far, peers).unwrap();
    let name = ServerName::try_from("192.0.2.1").unwrap();
    let mut dialler: Connection = ClientConnection::new(Arc::new(dialler), name)
        .unwrap()
        .into();
    let mut listener: Connection = ServerConnection::new(Arc::new(listener)).unwrap().into();
    while dialler.is_handshaking() || listener.is_handshaking() {
        pass(&mut dialler, &mut listener);
        pass(&mut listener, &mut dialler);
    }
    (dialler, listener)
}

fn pass(from: &mut Connection, to: &mut Connection) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().unwrap();
    }
}

/// What one end seals and the other opens.
fn ends() -> (Sealer, Opener) {
    let (dialler, listener) = connected();
    let sealing = dialler.dangerous_extract_secrets().unwrap().tx;
    let opening = listener.dangerous_extract_secrets().unwrap().rx;
    (Sealer::new(sealing).unwrap(), Opener::new(opening).unwrap())
}

fn sealed(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    sealer.seal(plain, &mut record).unwrap();
    record
}

#[test]
fn rustls_reads_what_is_sealed_here() {
    let (dialler, mut listener) = connected();
    let secrets = dialler.dangerous_extract_secrets().unwrap();
    let mut sealer = Sealer::new(secrets.tx).unwrap();
    for plain in [&b"the first"[..], &[7; MOST], b"", b"the last"] {
        let record = sealed(&mut sealer, plain);
        let mut rest = &record[..];
        while !rest.is_empty() {
            listener.read_tls(&mut rest).unwrap();
            listener.process_new_packets().unwrap();
        }
        let mut read = vec![0; plain.len()];
        listener.reader().read_exact(&mut read).unwrap();
        assert_eq!(read, plain);
    }
}

#[test]
fn what_rustls_seals_is_opened_here() {
    let (mut dialler, listener) = connected();
    let secrets = listener.dangerous_extract_secrets().unwrap();
    let mut opener = Opener::new(secrets.rx).unwrap();
    for plain in [&b"the first"[..], &[7; MOST], b"the last"] {
        dialler.writer().write_all(plain).unwrap();
        let mut record = Vec::new();
        while dialler.wants_write() {
            dialler.write_tls(&mut record).unwrap();
        }
        assert_eq!(record_length(&record), Ok(Some(record.len())));
        let opened = opener.open(&mut record).unwrap();
        assert_eq!(&record[opened], plain);
    }
}

#[test]
fn the_end_that_rustls_tells_is_no_data() {
    let (mut dialler, listener) = connected();
    let secrets = listener.dangerous_extract_secrets().unwrap();
    let mut opener = Opener::new(secrets.rx).unwrap();
    dialler.send_close_notify();
    let mut record = Vec::new();
    dialler.write_tls(&mut record).unwrap();
    assert_eq!(opener.open(&mut record), Err(RecordFault::NoData));
}

#[test]
fn a_record_is_good_in_its_place_only() {
    let (mut sealer, mut opener) = ends();
    let [first, second] = [b"1", b"2"].map(|plain| sealed(&mut sealer, plain));
    assert_eq!(opener.open(&mut second.clone()), Err(RecordFault::Forged));
    let (mut sealer, mut opener) = ends();
    let again = sealed(&mut sealer, b"1");
    assert!(opener.open(&mut again.clone()).is_ok());
    assert_eq!(opener.open(&mut again.clone()), Err(RecordFault::Forged));
    assert_ne!(again, first, "each connection has keys of its own");
}

#[test]
fn a_key_is_not_used_for_more_records_than_it_is_good_for() {
    let (mut sealer, mut opener) = ends();
    sealer.0.next = MOST_RECORDS - 1;
    opener.0.next = MOST_RECORDS - 1;
    assert!(sealer.is_good_for(1) && !sealer.is_good_for(2));
    let mut last = sealed(&mut sealer, b"last");
    assert!(opener.open(&mut last).is_ok());
    let beyond = sealer.seal(b"beyond", &mut Vec::new());
    assert_eq!(beyond, Err(RecordFault::WornOut));
    assert_eq!(opener.open(&mut last), Err(RecordFault::WornOut));
}

#[test]
fn more_than_a_record_holds_is_not_sealed() {
    let (mut sealer, _) = ends();
    let mut nothing = Vec::new();
    let sealed = sealer.seal(&[0; MOST + 1], &mut nothing);
    assert_eq!(sealed, Err(RecordFault::TooLong));
    assert!(nothing.is_empty());
}

#[test]
fn only_encrypted_records_of_a_length_that_may_be_are_read() {
    assert_eq!(record_length(&[23, 3, 3, 0]), Ok(None));
    assert_eq!(record_length(&[23, 3, 3, 0, 17]), Ok(Some(22)));
    assert_eq!(record_length(&[22, 3, 3, 0, 17]), Err(RecordFault::Header));
    assert_eq!(record_length(b"GET / HTTP"), Err(RecordFault::Header));
    assert_eq!(
        record_length(&[23, 3, 3, 0x41, 0x01]),
        Err(RecordFault::TooLong)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_changed_record_is_opened(
        plain in prop::collection::vec(any::<u8>(), 0..300),
        place: prop::sample::Index,
        change in 1..=u8::MAX,
    ) {
        let (mut sealer, mut opener) = ends();
        let mut record = sealed(&mut sealer, &plain);
        record[place.index(plain.len() + OVERHEAD)] ^= change;
        prop_assert!(opener.open(&mut record).is_err());
    }

    #[test]
    fn no_bytes_make_opening_panic(mut bytes: Vec<u8>) {
        let (_, mut opener) = ends();
        let _ = record_length(&bytes);
        prop_assert!(opener.open(&mut bytes).is_err());
    }
}
