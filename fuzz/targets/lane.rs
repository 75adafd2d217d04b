//! What is read as a move, a resume, a question how far was read, or a word about a lane is exactly what is written for it.
#![no_main]

use edgemesh_wire::{LaneWord, Move, REQUEST_HEADER, ReadUpTo, Resume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(read) = Move::decode(bytes) {
        assert!(Move::is_one(bytes));
        assert_eq!(&read.encode()[REQUEST_HEADER..], bytes);
    }
    if let Ok(read) = Resume::decode(bytes) {
        assert!(Resume::is_one(bytes) && !Move::is_one(bytes));
        assert_eq!(&read.encode()[REQUEST_HEADER..], bytes);
    }
    if let Ok(read) = ReadUpTo::decode(bytes) {
        assert!(ReadUpTo::is_one(bytes) && !Move::is_one(bytes) && !Resume::is_one(bytes));
        assert_eq!(&read.encode()[REQUEST_HEADER..], bytes);
    }
    if let Ok(bytes) = <[u8; LaneWord::LENGTH]>::try_from(bytes)
        && let Ok(word) = LaneWord::decode(bytes)
    {
        assert_eq!(word.encode(), bytes);
    }
});
