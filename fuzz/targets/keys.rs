//! A key has one text, and nothing else is read as it.
#![no_main]

use edgemesh_catalog::{KeySignature, PublicKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(signature) = text.parse::<KeySignature>() {
        assert_eq!(signature.to_string(), text);
    }
});
