//! Conformance of the adapter to the broker seam.

mod support;

use machinist_conformance::service_url;
use support::{AMQP_URL, Harness};

async fn harness() -> Option<Harness> {
    // One namespace for all tests and every run: the delay ladder is declared once.
    Some(Harness::new(service_url(AMQP_URL)?, "conformance").await)
}

machinist_conformance::broker_suite!(harness);
