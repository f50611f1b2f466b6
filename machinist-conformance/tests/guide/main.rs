//! The backend in `docs/adapters.md` passes the suite, and the guide names tests that exist.

#[expect(unreachable_pub, reason = "in the guide it is a crate")]
mod small_backend;

use std::sync::Arc;

use machinist_adapter::backend::Backend;
use machinist_conformance::BackendHarness;

use self::small_backend::SmallBackend;

const GUIDE: &str = include_str!("../../../docs/adapters.md");

struct Harness(SmallBackend);

#[async_trait::async_trait]
impl BackendHarness for Harness {
    async fn connect(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.clone())
    }

    async fn interrupt(&self) -> bool {
        false
    }
}

async fn harness() -> Option<Harness> {
    Some(Harness(SmallBackend::new()))
}

machinist_conformance::backend_suite!(harness);

#[test]
fn the_guide_shows_this_backend() {
    let (_, code) = include_str!("small_backend.rs").split_once("\n\n").expect("docs, then code");
    assert!(GUIDE.contains(&format!("```rust\n{code}```\n")));
}

/// Every text in code marks with four words or more and nothing but words is the name of a test.
#[test]
fn the_tests_that_the_guide_names_exist() {
    let suites = include_str!("../../src/suite.rs");
    let is_name = |text: &&str| {
        text.matches('_').count() >= 3 && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())
    };
    let names: Vec<&str> = GUIDE.split('`').filter(is_name).collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(suites.contains(&format!("            {name}\n")), "{name} is no test of a suite");
    }
}
