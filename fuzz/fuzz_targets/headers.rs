//! Headers and properties of messages. What must hold is in the module `fuzz` of the crate, which its tests run too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machinist_core::fuzz::headers(data));
