//! Probes and their answers are read back as they were written, and nothing else is one.
#![no_main]

use edgemesh_wire::{Probe, ProbeAnswer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((probe, signature)) = Probe::decode(bytes) {
        assert_eq!(probe.encode(&signature), bytes);
        assert!(probe.to_sign().len() < bytes.len() + 64);
    }
    if let Ok(answer) = ProbeAnswer::decode(bytes) {
        assert_eq!(answer.encode(), bytes);
        assert!(bytes.len() < Probe::LENGTH);
    }
});
