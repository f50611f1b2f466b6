//! Passwords in URLs, with any text around them. What must hold is in the module `fuzz` of the crate, which its tests run too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machinist::fuzz::redaction(data));
