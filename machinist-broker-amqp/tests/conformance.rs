//! The adapter against the definition of a broker.

mod support;

use machinist_conformance::service_url;
use support::{AMQP_URL, Harness};

async fn harness() -> Option<Harness> {
    // One namespace for all of them, and for every run: the ladder of delays is made once.
    Some(Harness::new(service_url(AMQP_URL)?, "conformance").await)
}

machinist_conformance::broker_suite!(harness);
