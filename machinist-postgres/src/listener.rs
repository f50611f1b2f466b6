//! The connection on which this process hears the wake-ups of the others.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tokio_postgres::AsyncMessage;

use crate::{
    claim_request::ClaimRequest,
    connect::ServerConnector,
    error::PostgresError,
    text::quoted,
    wake_up::{StoreWakeUp, channel},
    watches::Watches,
};

/// Time after which the connection is asked whether it still stands.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time for its answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Waits before another connection: the first, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Watchers and consumers that a listener wakes.
#[derive(Clone)]
pub(crate) struct Woken {
    pub(crate) watches: Arc<Watches>,
    pub(crate) claims: mpsc::UnboundedSender<ClaimRequest>,
}

impl Woken {
    fn wake(&self, wake_up: StoreWakeUp) {
        if wake_up.everything {
            self.watches.wake_all();
        }
        wake_up.records.iter().for_each(|number| self.watches.wake(*number));
        if wake_up.everything || wake_up.delays || !wake_up.queues.is_empty() {
            // Fails only if the store is closed.
            let _ = self.claims.send(ClaimRequest::WakeUp(wake_up));
        }
    }
}

/// Listens from the first request on, for as long as the store exists.
pub(crate) async fn work(connector: Arc<ServerConnector>, woken: Woken, requested: Arc<Notify>) {
    requested.notified().await;
    let mut wait = WAITS.0;
    loop {
        let error = match listen(&connector, &woken, &mut wait).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        tracing::debug!(%error, "wake-ups are not heard; consumers look by themselves until they are again");
        sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

async fn listen(
    connector: &ServerConnector,
    woken: &Woken,
    wait: &mut Duration,
) -> Result<std::convert::Infallible, PostgresError> {
    let heard = woken.clone();
    let client = connector
        .open(Box::new(move |message| {
            if let AsyncMessage::Notification(notification) = message {
                heard.wake(StoreWakeUp::parse(notification.payload()));
            }
        }))
        .await?;
    let explained = |error| PostgresError::of(&error);
    let listen = format!("LISTEN {}", quoted(&channel(&connector.target.schema)));
    timeout(CHECK_TIMEOUT, client.batch_execute(&listen))
        .await
        .map_err(|_| PostgresError::lost("no answer to LISTEN"))?
        .map_err(explained)?;
    *wait = WAITS.0;
    // What happened before was not heard.
    woken.wake(StoreWakeUp::everything());
    loop {
        // The end of the connection is seen at the latest by the next question.
        let mut waited = Duration::ZERO;
        while waited < CHECK_INTERVAL && !client.is_closed() {
            let step = Duration::from_millis(500);
            sleep(step).await;
            waited += step;
        }
        timeout(CHECK_TIMEOUT, client.batch_execute(""))
            .await
            .map_err(|_| PostgresError::lost("the connection that listens does not answer"))?
            .map_err(explained)?;
    }
}
