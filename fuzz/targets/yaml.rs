//! No text makes the reader of manifests and configuration panic, and what it reads can be
//! looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for document in edgemesh_yaml::documents(text).flatten() {
        let _ = document.to_value();
        assert!(document.number() > 0);
    }
});
