//! What is encrypted, changed in any way. What must hold is in the module `fuzz` of the crate, which its tests run too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machinist_core::fuzz::encrypted(data));
