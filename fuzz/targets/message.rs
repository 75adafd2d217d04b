//! A stream of messages is cut where their lengths say, and nowhere else.
#![no_main]

use edgemesh_wire::{MAX_MESSAGE, MESSAGE_HEADER, MessageHeader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_first_chunk::<MESSAGE_HEADER>() {
        let read = MessageHeader::decode(*header);
        assert_eq!(read.encode(), Ok(*header));
        let length = match read {
            MessageHeader::Message(length) => length,
            MessageHeader::Taken(count) => {
                assert!((1..=MessageHeader::MOST_TAKEN).contains(&count));
                0
            }
        };
        assert!(length <= MAX_MESSAGE);
        let Some((_, next)) = after.split_at_checked(length) else {
            return;
        };
        rest = next;
    }
});
