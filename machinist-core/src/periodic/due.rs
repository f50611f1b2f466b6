//! Ticks that are due: those to send, those to leave out, and the time of the next one. Pure.

use std::{collections::VecDeque, time::Duration};

use super::{
    policy::{Misfire, Policies},
    schedule::Schedule,
};
use crate::clock::Timestamp;

/// Age from which a tick that was not sent counts as missed. A worker that takes over from another sends younger ones,
/// whatever the policy.
pub(crate) const MISSED_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of missed ticks that are sent.
const MAX_MISSED: usize = 1000;

/// Schedule of a periodic task, with its name and policies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) schedule: Schedule,
    pub(crate) policies: Policies,
}

/// Ticks after a cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Due {
    /// Ticks to send, the oldest first.
    pub(crate) send: Vec<Timestamp>,
    /// Place of the cursor when all of them are sent: the last tick that is sent or left out.
    pub(crate) cursor: Timestamp,
    /// Time at which the next tick is sent; `None` if there is none.
    pub(crate) next: Option<Timestamp>,
}

impl Plan {
    /// Returns the first tick after this instant.
    pub(crate) fn tick_after(&self, instant: Timestamp) -> Option<Timestamp> {
        let policies = &self.policies;
        let after = match policies.from {
            Some(from) => instant.max(from.minus(Duration::from_micros(1))),
            None => instant,
        };
        self.schedule.after(after).filter(|tick| policies.until.is_none_or(|until| *tick <= until))
    }

    /// Returns the time at which a tick is sent.
    pub(crate) fn send_time(&self, tick: Timestamp) -> Timestamp {
        tick.plus(self.policies.delay(&self.name, tick))
    }

    /// Decides about the ticks after the cursor.
    pub(crate) fn due(&self, cursor: Timestamp, now: Timestamp) -> Due {
        let Policies { misfire, jitter, catch_up, .. } = self.policies;
        // Older ticks are never sent, so they are not even counted.
        let oldest = now.minus(catch_up.max(MISSED_AFTER)).minus(jitter);
        let mut last = cursor.max(oldest.minus(Duration::from_micros(1)));
        let mut passed = cursor;
        let mut missed = VecDeque::new();
        let mut on_time = Vec::new();
        let next = loop {
            let Some(tick) = self.tick_after(last) else { break None };
            let send_at = self.send_time(tick);
            if send_at > now {
                break Some(send_at);
            }
            (last, passed) = (tick, tick);
            let late = now.since(send_at);
            if late <= MISSED_AFTER {
                on_time.push(tick);
            } else if late <= catch_up {
                let kept = match misfire {
                    Misfire::Skip => 0,
                    Misfire::Once => 1,
                    Misfire::All => MAX_MISSED,
                };
                missed.push_back(tick);
                if missed.len() > kept {
                    missed.pop_front();
                }
            }
        };
        Due { send: missed.into_iter().chain(on_time).collect(), cursor: passed, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn each(seconds: u64, policies: Policies) -> Plan {
        let schedule = Schedule::every(Duration::from_secs(seconds)).unwrap();
        Plan { name: "p".to_owned(), schedule, policies }
    }

    fn misfire(misfire: Misfire) -> Policies {
        Policies { misfire, ..Policies::default() }
    }

    #[test]
    fn a_tick_is_due_at_its_instant_and_not_before() {
        let plan = each(10, Policies::default());
        assert_eq!(plan.due(at(100), at(109)), Due { send: vec![], cursor: at(100), next: Some(at(110)) });
        assert_eq!(
            plan.due(at(100), at(110)),
            Due { send: vec![at(110)], cursor: at(110), next: Some(at(120)) }
        );
        assert!(plan.due(at(110), at(110)).send.is_empty(), "a tick at the cursor is never sent");
        assert!(plan.due(at(500), at(110)).send.is_empty(), "nor one before it");
    }

    #[test]
    fn ticks_of_the_last_minute_are_sent_whatever_the_policy() {
        for policy in Misfire::ALL {
            let due = each(10, misfire(*policy)).due(at(1000), at(1060));
            assert_eq!(due.send, (101..=106).map(|n| at(n * 10)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn missed_ticks_follow_the_policy() {
        let after_an_hour = |policies: Policies| each(600, policies).due(at(6000), at(9_900));
        for (policy, send) in [
            (Misfire::Skip, vec![]),
            (Misfire::Once, vec![at(9_600)]),
            (Misfire::All, (11..=16).map(|n| at(n * 600)).collect()),
        ] {
            let due = after_an_hour(misfire(policy));
            assert_eq!((due.send, due.cursor, due.next), (send, at(9_600), Some(at(10_200))), "{policy}");
        }
        let bounded = Policies { catch_up: Duration::from_secs(1000), ..misfire(Misfire::All) };
        assert_eq!(after_an_hour(bounded).send, [at(9_000), at(9_600)]);
        let short = Policies { catch_up: SECOND, ..misfire(Misfire::Once) };
        assert_eq!(after_an_hour(short).send, []);
    }

    #[test]
    fn the_number_of_missed_ticks_is_bounded() {
        let due = each(1, misfire(Misfire::All)).due(at(0), at(10_000_000));
        assert_eq!((due.send.len(), due.cursor), (1061, at(10_000_000)));
    }

    #[test]
    fn start_and_end_are_ticks_themselves() {
        let plan = each(10, Policies { from: Some(at(100)), until: Some(at(120)), ..Policies::default() });
        assert_eq!(plan.due(at(0), at(200)).send, [at(120)], "the newest of the missed ones");
        let plan = each(10, Policies { misfire: Misfire::All, ..plan.policies });
        let due = plan.due(at(0), at(200));
        assert_eq!((due.send, due.next), (vec![at(100), at(110), at(120)], None));
    }

    proptest! {
        /// However often and whenever it is asked, every tick is sent once and in order, and never early.
        #[test]
        fn every_tick_is_sent_once(period in 1u64..40, jitter in 0u64..5, steps in prop::collection::vec(1i64..50, 1..40)) {
            let policies = Policies { jitter: Duration::from_secs(jitter), ..Policies::default() };
            let plan = each(period, policies);
            let (mut cursor, mut now, mut sent) = (at(1000), at(1000), Vec::new());
            for step in steps {
                now = now.plus(SECOND * u32::try_from(step).unwrap());
                let due = plan.due(cursor, now);
                for tick in &due.send {
                    prop_assert!(plan.send_time(*tick) <= now && now.since(*tick) <= MISSED_AFTER + Duration::from_secs(5));
                }
                prop_assert!(due.next.is_none_or(|next| next > now));
                sent.extend(due.send);
                cursor = due.cursor;
            }
            let expected = std::iter::successors(plan.tick_after(at(1000)), |last| plan.tick_after(*last));
            prop_assert_eq!(&sent, &expected.take_while(|tick| *tick <= cursor).collect::<Vec<_>>());
            // What is left is not due, and waits for its jitter alone.
            prop_assert!(plan.tick_after(cursor).is_none_or(|next| plan.send_time(next) > now));
        }
    }
}
