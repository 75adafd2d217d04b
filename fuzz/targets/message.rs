//! A stream of messages is cut where their lengths say, and nowhere else.
#![no_main]

use edgemesh_wire::{MAX_MESSAGE, MESSAGE_HEADER, message_header, message_length};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<MESSAGE_HEADER>() {
        let Ok(length) = message_length(*header) else {
            return;
        };
        assert!(length <= MAX_MESSAGE);
        assert_eq!(message_header(length), Ok(*header));
        let Some((_, next)) = after.split_at_checked(length) else {
            return;
        };
        rest = next;
    }
});
