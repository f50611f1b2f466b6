//! Waiting with a bound.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Time that a test waits for an answer, also on a busy machine.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time that a test waits for a recovery after connections were cut.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// Asks again and again until the answer is yes; `false` once `bound` has passed without one.
///
/// # Cancel safety
/// As safe as the question.
pub async fn eventually(bound: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + bound;
    let mut pause = Duration::from_millis(2);
    loop {
        if holds().await {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Awaits a future for at most `bound`.
///
/// # Panics
/// If it takes longer; the message says `what` was waited for.
///
/// # Cancel safety
/// As safe as the future.
pub async fn within<T>(bound: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match timeout(bound, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {bound:?} in vain for {what}"),
    }
}
