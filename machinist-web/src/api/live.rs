//! The stream of the first page: its live part, whenever it has changed. One snapshot a second serves all streams.
//!
//! A stream ends after a minute. The browser begins a new one by itself, and has to show again that it is logged in.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header::RETRY_AFTER},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use sha2::{Digest, Sha256};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{pages, sight::Sight, site::Site, visit::Visit, web_error::WebError};

/// Interval at which a stream looks for changes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Interval of heartbeats, which keep proxies from closing the stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Maximum time of a stream.
const MAX_STREAM: Duration = Duration::from_secs(60);

/// A stream of one browser.
struct LiveStream {
    site: Arc<Site>,
    /// Part of the installation that the reader sees.
    sight: Sight,
    /// Id of the part that the browser has.
    last: String,
    is_first: bool,
    ends_at: Instant,
    /// Place among the open streams.
    _place: OwnedSemaphorePermit,
}

/// Answers with the stream of the first page.
pub(crate) async fn events(State(site): State<Arc<Site>>, visit: Visit, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&site.streams).try_acquire_owned() else {
        let error = WebError::away("too many pages are open")
            .remedy("close some; this page shows new values when you reload it");
        let mut answer = error.into_response();
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
        return answer;
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let sight = visit.sight().clone();
    let live =
        LiveStream { site, sight, last, is_first: true, ends_at: Instant::now() + MAX_STREAM, _place: place };
    let events = Sse::new(changes(live)).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    ([("x-accel-buffering", "no")], events).into_response()
}

fn changes(live: LiveStream) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(live, |mut live| async move {
        loop {
            if !std::mem::take(&mut live.is_first) {
                tokio::time::sleep(INTERVAL).await;
            }
            if Instant::now() >= live.ends_at {
                return None;
            }
            let part = pages::live_part(&live.site.overview(&live.sight).await, "./").into_string();
            let id: String =
                Sha256::digest(part.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            if id != live.last {
                live.last.clone_from(&id);
                return Some((
                    Ok(Event::default().event("overview").id(id).data(part.replace('\r', ""))),
                    live,
                ));
            }
        }
    })
}
