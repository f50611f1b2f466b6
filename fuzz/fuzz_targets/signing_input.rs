//! What is signed, from the fields that are signed. What must hold is in the module `fuzz` of the crate, which its tests run too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machinist_core::fuzz::signing_input(data));
