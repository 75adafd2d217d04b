//! What is read as a request is exactly what is written for it.
#![no_main]

use edgemesh_wire::{MAX_REQUEST, REQUEST_HEADER, Request, request_length};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<REQUEST_HEADER>() else {
        return;
    };
    if let Ok(length) = request_length(*header) {
        assert!(length <= MAX_REQUEST);
    }
    if let Ok(request) = Request::decode(body) {
        let written = request.encode().expect("what was read can be written");
        assert_eq!(&written[REQUEST_HEADER..], body);
    }
});
