//! Hellos, tallies and answers are read back as they were written, and nothing else is one.
#![no_main]

use edgemesh_wire::{Answer, Hello, Tally};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(hello.encode(), bytes);
        assert_eq!(hello.boot_id_text().len(), 2 * bytes.len());
    }
    if let Ok(tally) = bytes.try_into()
        && let Ok(tally) = Tally::decode(tally)
    {
        assert_eq!(tally.encode(), bytes);
    }
    if let Some(byte) = bytes.first()
        && let Ok(answer) = Answer::decode(*byte)
    {
        assert_eq!(answer.encode(), *byte);
    }
});
