//! Delays as routing keys. What must hold is in the module `fuzz` of the crate, which its tests run too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machinist_broker_amqp::fuzz::routing_key(data));
