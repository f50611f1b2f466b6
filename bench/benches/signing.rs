//! Cost of signing a message: `cargo bench -p machinist-bench --bench signing`.
//!
//! `sign`, `verify`, `encrypt` and `decrypt` handle an input of 600 bytes, which is that of a small task. `encrypt and sign`
//! and `verify and decrypt` handle a message with an encrypted body of 256 bytes, in the order in which a sender and a
//! receiver do it. `send` is all that a sender does, over the in-memory adapters: the difference between a line with a key
//! and the line without one is the whole price of a signature, or of an encrypted body.

#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use machinist_core::{
    App, TaskDef,
    sign::{Algorithm, Key, Keyring},
};
use machinist_memory::{MemoryBackend, MemoryBroker};

const ADD: TaskDef<(i64, i64), i64> = TaskDef::new("add");

fn key(algorithm: Algorithm) -> Key {
    Key::generate(algorithm, "bench").expect("an allowed name")
}

/// The body, and the fields that are signed with it.
const BODY: usize = 256;
const FIELDS: [u8; 344] = [7; 344];

fn sign_and_verify(bench: &mut Criterion) {
    let input = [7; FIELDS.len() + BODY];
    for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
        let key = key(algorithm);
        let signature = key.sign(&input).expect("it has a secret");
        bench.bench_function(&format!("sign {algorithm}"), |b| b.iter(|| key.sign(black_box(&input))));
        bench.bench_function(&format!("verify {algorithm}"), |b| {
            b.iter(|| key.verify(black_box(&input), &signature));
        });
    }
}

fn encrypt_and_decrypt(bench: &mut Criterion) {
    let (text, about) = ([7; FIELDS.len() + BODY], [1; 100]);
    let key = key(Algorithm::XChaCha20Poly1305);
    let sealed = key.encrypt(&about, &text).expect("it encrypts");
    bench.bench_function("encrypt", |b| b.iter(|| key.encrypt(&about, black_box(&text))));
    bench.bench_function("decrypt", |b| b.iter(|| key.decrypt(&about, black_box(&sealed))));
}

fn encrypted_too(bench: &mut Criterion) {
    let (body, about) = ([7; BODY], [1; 100]);
    let cipher = key(Algorithm::XChaCha20Poly1305);
    for algorithm in [Algorithm::HmacSha256, Algorithm::Ed25519] {
        let key = key(algorithm);
        let input = |hidden: &[u8]| [&FIELDS[..], hidden].concat();
        let hidden = cipher.encrypt(&about, &body).expect("it encrypts");
        let signature = key.sign(&input(&hidden)).expect("it has a secret");
        bench.bench_function(&format!("encrypt and sign {algorithm}"), |b| {
            b.iter(|| cipher.encrypt(&about, black_box(&body)).map(|hidden| key.sign(&input(&hidden))));
        });
        bench.bench_function(&format!("verify and decrypt {algorithm}"), |b| {
            b.iter(|| {
                let believed = key.verify(&input(black_box(&hidden)), &signature);
                believed.then(|| cipher.decrypt(&about, &hidden))
            });
        });
    }
}

fn send(bench: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cipher = || Key::generate(Algorithm::XChaCha20Poly1305, "hide").expect("an allowed name");
    for algorithm in [None, Some(Algorithm::HmacSha256), Some(Algorithm::Ed25519)] {
        for encrypts in [false, true] {
            let builder = App::builder(Arc::new(MemoryBroker::new()), Arc::new(MemoryBackend::new()));
            let (builder, what) = match (algorithm, encrypts) {
                (None, false) => (builder, "unsigned".to_owned()),
                // Nothing is encrypted that is not signed.
                (None, true) => continue,
                (Some(algorithm), false) => (builder.keyring(key(algorithm)), algorithm.to_string()),
                (Some(algorithm), true) => {
                    let ring = Keyring::new([key(algorithm), cipher()]).expect("one of each");
                    (builder.keyring(ring), format!("{algorithm}, encrypted"))
                }
            };
            let client = runtime.block_on(builder.build()).expect("an application").client();
            bench.bench_function(&format!("send {what}"), |b| {
                b.iter(|| runtime.block_on(client.send(ADD.call((2, 3)))).expect("it is sent"));
            });
        }
    }
}

criterion_group!(benches, sign_and_verify, encrypt_and_decrypt, encrypted_too, send);
criterion_main!(benches);
