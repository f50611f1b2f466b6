//! Conformance of the adapter to the broker seam.

use crate::support::{AMQP_URL, Harness};
use machinist_conformance::service_url;

async fn harness() -> Option<Harness> {
    // One namespace for all tests and every run: the delay ladder is declared once.
    Some(Harness::new(service_url(AMQP_URL)?, "conformance").await)
}

machinist_conformance::broker_suite!(harness);
