//! Acknowledgements that share a frame.
//!
//! `basic.ack` with `multiple` settles every delivery of the channel up to a tag. It is worth a third of a worker's
//! throughput, and loses a message if even one delivery below the tag is still being worked on. So the settled tags are
//! remembered here, and acknowledgements are joined only if they leave no gap.

use std::collections::BTreeSet;

use machinist_adapter::broker::Settle;

/// One frame to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckFrame {
    /// Acknowledge this one tag.
    Ack(u64),
    /// Acknowledge every delivery up to and including this tag.
    AckUpTo(u64),
    /// Hand this one tag back.
    Requeue(u64),
}

/// Tags of the deliveries that were settled on one channel.
#[derive(Debug, Default)]
pub(crate) struct SettledTags {
    /// Every tag up to this one is settled.
    through: u64,
    /// Settled tags beyond it.
    beyond: BTreeSet<u64>,
}

impl SettledTags {
    /// Adds a batch of settlements and returns the frames to write for it. A tag may be settled only once in the life of
    /// the channel.
    ///
    /// Tags count the deliveries of the channel from 1, without gaps.
    pub(crate) fn settle(&mut self, batch: &[(u64, Settle)]) -> Vec<AckFrame> {
        let mut frames = Vec::new();
        let mut acks = Vec::with_capacity(batch.len());
        for &(tag, how) in batch {
            self.beyond.insert(tag);
            match how {
                Settle::Ack => acks.push(tag),
                Settle::Requeue => frames.push(AckFrame::Requeue(tag)),
            }
        }
        while self.beyond.first() == Some(&(self.through + 1)) {
            self.beyond.pop_first();
            self.through += 1;
        }
        acks.sort_unstable();
        let joined = acks.partition_point(|&tag| tag <= self.through);
        // The requeues come first: a joined ack that overtook one would swallow its message.
        match acks[..joined] {
            [] => {}
            [one] => frames.push(AckFrame::Ack(one)),
            [.., last] => frames.push(AckFrame::AckUpTo(last)),
        }
        frames.extend(acks[joined..].iter().map(|&tag| AckFrame::Ack(tag)));
        frames
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_never_jumped() {
        let mut settled = SettledTags::default();
        let ack = |tags: &[u64]| tags.iter().map(|&t| (t, Settle::Ack)).collect::<Vec<_>>();
        assert_eq!(settled.settle(&ack(&[3, 2])), [AckFrame::Ack(2), AckFrame::Ack(3)]);
        assert_eq!(settled.settle(&ack(&[1])), [AckFrame::Ack(1)]);
        assert_eq!(settled.settle(&ack(&[5, 4, 6])), [AckFrame::AckUpTo(6)]);
        assert_eq!(
            settled.settle(&[(7, Settle::Requeue), (8, Settle::Ack)]),
            [AckFrame::Requeue(7), AckFrame::Ack(8)]
        );
    }

    proptest! {
        /// Compares with a model of the broker: each delivery ends as its holder said, and none before that.
        #[test]
        fn the_broker_settles_each_delivery_as_its_holder_said(
            order in Just((1u64..=60).collect::<Vec<_>>()).prop_shuffle(),
            requeued in proptest::collection::vec(any::<bool>(), 60),
            cuts in proptest::collection::vec(1usize..9, 60),
        ) {
            let how = |tag: u64| if requeued[tag as usize - 1] { Settle::Requeue } else { Settle::Ack };
            let mut settled = SettledTags::default();
            let mut unacked: BTreeMap<u64, ()> = (1..=60).map(|tag| (tag, ())).collect();
            let mut meant = BTreeMap::new();
            let mut rest = &order[..];
            for cut in cuts {
                let (batch, more) = rest.split_at(cut.min(rest.len()));
                rest = more;
                let batch: Vec<_> = batch.iter().map(|&tag| (tag, how(tag))).collect();
                meant.extend(batch.iter().copied());
                for frame in settled.settle(&batch) {
                    match frame {
                        AckFrame::Ack(tag) => {
                            prop_assert_eq!(meant.get(&tag), Some(&Settle::Ack));
                            prop_assert!(unacked.remove(&tag).is_some(), "the broker closes the channel");
                        }
                        AckFrame::Requeue(tag) => {
                            prop_assert_eq!(meant.get(&tag), Some(&Settle::Requeue));
                            prop_assert!(unacked.remove(&tag).is_some(), "the broker closes the channel");
                        }
                        AckFrame::AckUpTo(last) => {
                            prop_assert!(unacked.contains_key(&last), "the broker closes the channel");
                            let above = unacked.split_off(&(last + 1));
                            for tag in std::mem::replace(&mut unacked, above).into_keys() {
                                prop_assert_eq!(meant.get(&tag), Some(&Settle::Ack), "tag {}", tag);
                            }
                        }
                    }
                }
                let open: Vec<u64> = (1..=60).filter(|tag| !meant.contains_key(tag)).collect();
                prop_assert_eq!(unacked.keys().copied().collect::<Vec<_>>(), open);
            }
        }
    }
}
