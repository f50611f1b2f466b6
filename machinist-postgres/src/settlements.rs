//! Settlements that wait for the next statement, by holder.

use std::{collections::BTreeMap, sync::Arc};

use machinist_adapter::broker::Settle;

use crate::{error::PostgresError, link::Link, messages, subscription::MessageHolder};

/// Settlements that the server has not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Settlements(BTreeMap<i64, HolderSettlements>);

#[derive(Debug)]
struct HolderSettlements {
    holder: Arc<MessageHolder>,
    done: Vec<i64>,
    back: Vec<i64>,
}

impl Settlements {
    pub(crate) fn add(&mut self, holder: &Arc<MessageHolder>, message: i64, how: Settle) {
        let waiting = self.0.entry(holder.id).or_insert_with(|| HolderSettlements {
            holder: Arc::clone(holder),
            done: Vec::new(),
            back: Vec::new(),
        });
        match how {
            Settle::Ack => waiting.done.push(message),
            Settle::Requeue => waiting.back.push(message),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells the server, for each holder in one statement. What it does not answer is told again; what was done by then is not
    /// done twice, because the message no longer has this holder. Returns `true` if messages were handed back.
    pub(crate) async fn send(&mut self, link: &Link) -> Result<bool, PostgresError> {
        let mut handed_back = false;
        while let Some(entry) = self.0.first_entry() {
            let waiting = entry.get();
            // The messages are, or will be, in other hands.
            if !waiting.holder.is_lost() {
                messages::settle(link, waiting.holder.id, &waiting.done, &waiting.back).await?;
                handed_back |= !waiting.back.is_empty();
            }
            entry.remove();
        }
        Ok(handed_back)
    }
}
