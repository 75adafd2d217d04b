//! What is read as a datagram keeps its payload, and its flow survives another writing.
#![no_main]

use bytes::Bytes;
use edgemesh_wire::Datagram;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(datagram) = Datagram::decode(Bytes::copy_from_slice(bytes)) {
        assert!(bytes.ends_with(&datagram.payload));
        let again = Datagram::encode(datagram.flow, datagram.is_odd, &datagram.payload);
        assert_eq!(Datagram::decode(again), Ok(datagram));
    }
});
