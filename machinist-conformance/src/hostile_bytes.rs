//! The bodies of the fuzz targets, run within bounds and without a fuzzer: what was once found stays found.

use std::path::Path;

use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    test_runner::{Config, TestRunner},
};

/// Number of generated inputs besides the seeds.
const GENERATED_CASES: u32 = 2_000;

/// Runs the body of a fuzz target on its seeds (`fuzz/seeds/TARGET`), on seeds with bytes changed, and on bytes that
/// mean nothing. A body panics where what it is about does not hold.
///
/// # Panics
/// If the body does, with an input that is as short as one could be found; and if there are no seeds.
pub fn any_bytes(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<Vec<u8>> =
        files.flatten().filter_map(|file| std::fs::read(file.path()).ok()).collect();
    assert!(!seeds.is_empty(), "{} holds no seeds", folder.display());
    seeds.sort();
    for seed in &seeds {
        body(seed);
    }
    let config = Config { cases: GENERATED_CASES, failure_persistence: None, ..Config::default() };
    let changed = (proptest::sample::select(seeds), vec((any::<u16>(), any::<u8>()), 1..4), any::<u16>())
        .prop_map(|(seed, changes, end)| altered(seed, &changes, end));
    let inputs = proptest::prop_oneof![changed, vec(any::<u8>(), 0..400)];
    let outcome = TestRunner::new(config).run(&inputs, |input| {
        body(&input);
        Ok(())
    });
    assert!(
        outcome.is_ok(),
        "{target}: {}",
        outcome.err().map(|error| error.to_string()).unwrap_or_default()
    );
}

/// Some bytes of it changed, and sometimes its end cut off.
fn altered(mut seed: Vec<u8>, changes: &[(u16, u8)], end: u16) -> Vec<u8> {
    for (at, to) in changes {
        let length = seed.len();
        if let Some(byte) = seed.get_mut(usize::from(*at) % length.max(1)) {
            *byte = *to;
        }
    }
    if end.is_multiple_of(4) {
        seed.truncate(usize::from(end / 4) % (seed.len() + 1));
    }
    seed
}
