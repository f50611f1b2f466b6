//! From a promise to a `#[test]`.

use std::{panic::AssertUnwindSafe, pin::Pin, time::Duration};

use futures_util::FutureExt;

use crate::{BackendHarness, BrokerHarness, within};

/// No promise takes longer to prove, on the slowest machine.
const LONGEST: Duration = Duration::from_secs(180);

type Proof<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Runs one promise of the broker suite; for the macro.
pub fn run_broker<H: BrokerHarness>(
    harness: impl Future<Output = Option<H>>,
    promise: for<'a> fn(&'a dyn BrokerHarness) -> Proof<'a>,
) {
    block_on(async {
        let Some(harness) = harness.await else { return };
        let outcome = AssertUnwindSafe(promise(&harness)).catch_unwind().await;
        harness.clean_up().await;
        resume(outcome);
    });
}

/// Runs one promise of the backend suite; for the macro.
pub fn run_backend<H: BackendHarness>(
    harness: impl Future<Output = Option<H>>,
    promise: for<'a> fn(&'a dyn BackendHarness) -> Proof<'a>,
) {
    block_on(async {
        let Some(harness) = harness.await else { return };
        let outcome = AssertUnwindSafe(promise(&harness)).catch_unwind().await;
        harness.clean_up().await;
        resume(outcome);
    });
}

/// A runtime of our own, so that adapters need no test features of tokio. Two threads, because an adapter that
/// only works on one is broken.
fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a test needs threads");
    runtime.block_on(within(LONGEST, "this test to end", test));
    // A task of the adapter that hangs must not hang the tests.
    runtime.shutdown_timeout(Duration::from_secs(5));
}

fn resume(outcome: Result<(), Box<dyn std::any::Any + Send>>) {
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Expands to one test per promise of a broker. Takes the path of an `async fn() -> Option<impl BrokerHarness>`;
/// `None` skips (see [`service_url`](crate::service_url)). Two suites in one file need a module each.
#[macro_export]
macro_rules! broker_suite {
    ($harness:path) => {
        $crate::__tests! { $harness, run_broker, broker:
            the_capabilities_are_told
            a_message_comes_back_unchanged
            a_header_that_is_nested_too_deep_is_refused
            a_body_of_a_mebibyte_and_an_empty_one_come_back
            a_message_is_kept_until_somebody_consumes
            a_batch_of_two_thousand_is_confirmed_and_delivered
            an_empty_batch_has_no_answers
            concurrent_publishers_get_their_own_answers
            only_what_is_queued_is_confirmed_when_a_queue_vanishes
            a_full_queue_refuses_for_now_and_takes_more_later
            dead_letters_are_kept_beside_the_queue
            dead_letters_are_taken_and_handed_back
            depth_counts_and_consumes_nothing
            depth_of_an_unknown_queue_is_none
            many_looks_leave_every_message_in_its_place
            a_look_sees_only_what_waits
            larger_priorities_come_sooner
            a_delayed_message_keeps_its_priority
            a_message_that_is_handed_back_keeps_its_priority
            a_priority_stays_on_its_message
            what_was_acked_does_not_come_again
            a_receipt_that_is_dropped_brings_the_message_again
            a_requeued_message_comes_again
            two_consumers_share_a_queue
            credit_bounds_what_a_consumer_takes
            one_consumer_serves_several_queues
            prefetch_bounds_what_is_unsettled
            a_settlement_wakes_a_waiting_next
            a_dropped_next_loses_nothing
            stop_hands_back_what_was_not_returned
            a_dropped_consumer_loses_nothing
            a_delay_of_nothing_is_none
            delayed_messages_are_not_early_and_arrive
            delayed_messages_do_not_wait_for_each_other
            the_longest_delay_is_told_and_kept
            a_delayed_message_survives_an_interruption
            a_consumer_survives_an_interruption
            publishing_works_after_an_interruption
            publishing_through_interruptions_loses_nothing
            settling_after_an_interruption_is_lost_and_harmless
            close_ends_consumers_and_may_be_repeated
            a_pulse_tells_whether_a_subscription_stands
            close_hands_back_what_is_unsettled
            nothing_is_published_after_close
            what_was_confirmed_outlives_the_connection
        }
    };
}

/// Expands to one test per promise of a backend. Takes the path of an `async fn() -> Option<impl BackendHarness>`;
/// `None` skips (see [`service_url`](crate::service_url)). Two suites in one file need a module each.
#[macro_export]
macro_rules! backend_suite {
    ($harness:path) => {
        $crate::__tests! { $harness, run_backend, backend:
            the_capabilities_are_told
            facts_are_written_once_and_the_first_writer_wins
            unless_refuses_and_returns_the_whole_record
            equal_or_absent_refuses_another_value_and_writes_back_what_is_missing
            drop_happens_before_the_write
            a_refused_commit_changes_nothing
            a_record_without_facts_does_not_exist
            commits_of_a_batch_are_answered_and_made_in_order
            a_commit_may_be_repeated
            one_of_many_concurrent_commits_wins
            any_bytes_and_any_names_are_kept
            a_batch_of_a_thousand_is_written
            reading_keeps_the_order_and_knows_what_is_missing
            an_expired_record_is_gone
            a_new_expiry_replaces_the_old_one
            an_expiry_that_is_set_stays_where_it_was_asked_to
            an_expiry_survives_the_drop_of_every_fact_in_the_same_commit
            a_forgotten_record_leaves_no_expiry_behind
            a_watch_wakes_on_a_commit_of_another_connection
            a_wake_up_between_watch_and_the_first_changed_is_kept
            every_watch_of_a_record_wakes
            time_agrees_and_never_goes_back
            require_refuses_unless_the_record_holds_exactly_this
            a_required_fact_is_replaced_in_one_step
            concurrent_replacements_lose_nothing
            a_requirement_extends_a_record_and_never_revives_it
            a_commit_that_counts_tells_the_size_of_the_record
            records_of_different_kinds_are_apart
            a_worker_whose_runtime_is_blocked_keeps_its_session
            a_record_that_cannot_be_used_harms_no_other
            an_index_that_cannot_be_used_harms_no_other
            a_worker_outlives_records_that_cannot_be_used
            a_worker_outlives_a_limit_and_a_name_that_cannot_be_used
            a_worker_whose_session_cannot_be_used_opens_another
            indexes_are_ordered_and_paged
            a_note_may_be_repeated_and_moves_its_member
            indexes_are_apart
            periodic_tasks_tick_once_and_pass_to_another_worker
            a_lost_periodic_task_is_written_back
            shards_are_spread_and_pass_on
            the_backend_works_after_an_interruption
            what_was_committed_outlives_the_connection
            backend_agrees_with_memory
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($harness:path, $run:ident, $suite:ident: $($promise:ident)*) => {
        $(
            #[test]
            fn $promise() {
                $crate::$run($harness(), |harness| ::std::boxed::Box::pin($crate::$suite::$promise(harness)));
            }
        )*
    };
}

#[cfg(test)]
mod tests {
    /// A promise that no macro lists would be proven by nobody.
    #[test]
    fn every_promise_is_in_its_suite() {
        let here = include_str!("suite.rs");
        let sources = [
            include_str!("broker/mod.rs"),
            include_str!("broker/messages.rs"),
            include_str!("broker/peeking.rs"),
            include_str!("broker/priorities.rs"),
            include_str!("broker/settling.rs"),
            include_str!("broker/delays.rs"),
            include_str!("broker/connections.rs"),
            include_str!("backend/mod.rs"),
            include_str!("backend/blocked.rs"),
            include_str!("backend/commits.rs"),
            include_str!("backend/expiry.rs"),
            include_str!("backend/watching.rs"),
            include_str!("backend/require.rs"),
            include_str!("backend/spoiled.rs"),
            include_str!("backend/indexes.rs"),
            include_str!("backend/periodic.rs"),
            include_str!("backend/roles.rs"),
            include_str!("backend/agreement.rs"),
        ];
        let promises = sources.iter().flat_map(|source| source.split("\npub async fn ").skip(1));
        for promise in promises.filter_map(|rest| rest.split('(').next()) {
            assert!(here.contains(&format!("            {promise}\n")), "{promise} is in no suite");
        }
    }
}
