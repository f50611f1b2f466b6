//! Cost of a task beside the servers: `cargo bench -p machinist-bench --bench decisions`.
//!
//! Its body and headers, written by who sends and read by who receives; the decisions of the delivery protocol; and the
//! arithmetic of retries. Every task needs one of each but `judge`, `fail` and `retry`.

#![allow(missing_docs, reason = "criterion's macros make functions without docs")]

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use machinist_core::{Backoff, Codec, RetryPolicy, bench as door};

fn codec(bench: &mut Criterion) {
    for codec in [Codec::MessagePack, Codec::Json] {
        bench.bench_function(&format!("encode {}", codec.content_type()), |b| b.iter(door::encode(codec)));
        bench.bench_function(&format!("decode {}", codec.content_type()), |b| b.iter(door::decode(codec)));
    }
    bench.bench_function("write headers", |b| b.iter(door::write_headers()));
    bench.bench_function("read headers", |b| b.iter(door::read_headers()));
    bench.bench_function("write signed headers", |b| b.iter(door::sign_headers()));
    bench.bench_function("read and verify headers", |b| b.iter(door::verify_headers()));
    bench.bench_function("sign an end", |b| b.iter(door::attest_end()));
}

fn decisions(bench: &mut Criterion) {
    bench.bench_function("start", |b| b.iter(door::first_start()));
    bench.bench_function("succeed", |b| b.iter(door::succeed()));
    bench.bench_function("fail", |b| b.iter(door::fail()));
    bench.bench_function("judge", |b| b.iter(door::judge_busy()));
    bench.bench_function("fold", |b| b.iter(door::fold_ended()));
}

fn retry(bench: &mut Criterion) {
    let second = Duration::from_secs(1);
    let backoffs = [
        ("exponential", Backoff::exponential(second, second * 3600)),
        ("fibonacci", Backoff::fibonacci(second, second * 3600)),
        ("list", Backoff::list(&[second; 8])),
    ];
    for (name, backoff) in backoffs {
        let policy = RetryPolicy::new(100).backoff(backoff);
        bench.bench_function(&format!("retry {name}"), |b| {
            b.iter(|| black_box(&policy).next_delay(black_box(20), black_box(0.5)));
        });
    }
}

criterion_group!(benches, codec, decisions, retry);
criterion_main!(benches);
