//! The end of all deliveries in progress, when the future of the worker is dropped.
//!
//! Each delivery is polled several times, and a token that is asked on each poll is one lock for all threads. So a delivery
//! registers with the token once, and from then on looks at a flag.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use tokio_util::sync::CancellationToken;

/// Ends the deliveries that it [bounds](Self::bound).
#[derive(Debug, Clone, Default)]
pub(super) struct Cut(Arc<CutState>);

#[derive(Debug, Default)]
struct CutState {
    /// Set before the token fires: who is woken by the token sees it.
    has_fired: AtomicBool,
    token: CancellationToken,
}

/// Ends the deliveries when it is dropped.
#[derive(Debug)]
pub(super) struct CutOnDrop(Cut);

impl Cut {
    /// Returns a value that ends the deliveries when it is dropped.
    pub(super) fn on_drop(&self) -> CutOnDrop {
        CutOnDrop(self.clone())
    }

    /// Drives a delivery to its end, or until the cut. It has to be polled by one task from its first poll on.
    pub(super) async fn bound(self, mut delivery: Pin<Box<impl Future<Output = ()>>>) {
        let mut fired = pin!(self.0.token.cancelled());
        let mut is_registered = false;
        poll_fn(|cx| {
            // First: a slot that is free because its holder was cut off must not start the next delivery.
            if self.0.has_fired.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            if !is_registered {
                is_registered = true;
                if fired.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
            }
            delivery.as_mut().poll(cx)
        })
        .await;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.0.has_fired.store(true, Ordering::Release);
        self.0.0.token.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deliveries_end_with_the_cut_whenever_they_began() {
        let cut = Cut::default();
        let end = cut.on_drop();
        cut.clone().bound(Box::pin(async {})).await;
        let waiting = tokio::spawn(cut.clone().bound(Box::pin(std::future::pending())));
        let polled_twice = tokio::spawn(cut.clone().bound(Box::pin(async {
            tokio::task::yield_now().await;
            std::future::pending().await
        })));
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        drop(end);
        waiting.await.unwrap();
        polled_twice.await.unwrap();
        let never_begun = Box::pin(async { panic!("it was polled after the cut") });
        cut.bound(never_begun).await;
    }
}
