//! A step of the host's clock. It concerns the whole process, so each test of it needs a separate test program.

use std::time::{Duration, Instant};

use machinist_core::{
    backend::{Commit, Expiry},
    clock::{Timestamp, set_host_wrong_by},
    id::TaskId,
};

use super::{expect_done, pairs, read};
use crate::{
    BackendHarness, eventually,
    wait::{ANSWER_TIMEOUT, within},
};

/// Steps of the clock, in seconds.
const STEPS: [i64; 4] = [-600, 0, 7_200, -7_200];

/// A step of the host's clock, back or far forward, does not move the backend's time: it goes on, and those who connect
/// after the step see the same time as those who connected before. Records neither expire early nor stay.
pub async fn the_time_survives_a_step_of_the_hosts_clock(harness: &dyn BackendHarness) {
    let early = harness.connect().await;
    let now = async |backend: &dyn machinist_core::backend::Backend| {
        within(ANSWER_TIMEOUT, "the time", backend.now()).await.expect("the backend tells the time")
    };
    let began = (now(&*early).await, Instant::now());
    let expected = || began.0.plus(began.1.elapsed());
    // Not less than half of the time that has passed, and not more, but for the answer's way.
    let is_near = |time: Timestamp| {
        let slowest = began.0.plus(began.1.elapsed() / 2);
        time >= slowest.minus(Duration::from_secs(1)) && time <= expected().plus(Duration::from_secs(10))
    };
    let lasting = TaskId::fresh();
    let put = |id: &TaskId, ttl| Commit {
        facts: pairs(&[("name", "add")]),
        expiry: Expiry::After(ttl),
        ..Commit::new(id)
    };
    expect_done(&*early, put(&lasting, Duration::from_secs(900))).await;
    let mut latest = began.0;
    for step in STEPS {
        set_host_wrong_by(step * 1_000_000);
        let late = harness.connect().await;
        for backend in [&early, &late, &early] {
            let time = now(&**backend).await;
            assert!(time >= latest, "after a step to {step} s: {time} after {latest}");
            assert!(is_near(time), "after a step to {step} s: {time}, expected about {}", expected());
            latest = time;
        }
        // The time of a write, which may be stored, is the same.
        let brief = TaskId::fresh();
        expect_done(&*late, put(&brief, Duration::from_secs(1))).await;
        let gone = eventually(ANSWER_TIMEOUT, async || read(&*early, &brief).await.is_empty()).await;
        assert!(gone, "after a step to {step} s a record outlives its time");
        assert!(!read(&*late, &lasting).await.is_empty(), "after a step to {step} s a record is gone early");
    }
    set_host_wrong_by(0);
}
