//! Every admitted request gets exactly one outcome, whatever happens around it.

use std::panic::Location;

use proptest::prelude::*;
use stillhouse_batcher::{Batcher, Config, Forming, Refusal, Request, Time};

use crate::schedule::{call, cases, config, play};

proptest! {
    #![proptest_config(cases(400))]

    /// All invariants of `stillhouse_batcher::invariants` hold over random schedules: outcomes,
    /// budgets, deadlines, fairness, starvation, lengths, work conservation, accounts.
    #[test]
    fn random_schedules_break_no_invariant(
        config in config(),
        weights in prop::collection::vec(1u32..6, 5),
        calls in prop::collection::vec(call(), 0..250),
    ) {
        let result = play(&config, &weights, &calls);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}

fn batcher() -> Batcher<&'static str> {
    Batcher::new(Config::default()).unwrap()
}

#[track_caller]
fn assert_empty(batcher: &Batcher<&'static str>) {
    let at = Location::caller();
    assert!(batcher.is_empty(), "{at}");
    let left = (batcher.queued_cost(), batcher.queued_items(), batcher.clients());
    assert_eq!(left, (0, 0, 0), "{at}");
    assert_eq!(batcher.client_stats().count(), 0, "{at}");
    assert_eq!(batcher.next_event(Time::ZERO), None, "{at}");
}

#[test]
fn a_cancelled_request_is_handed_back_and_frees_its_cost_at_once() {
    let mut batcher = batcher();
    let ticket = batcher.admit(Time::ZERO, Request::new("a", 7, "seven")).unwrap();
    assert_eq!(batcher.queued_cost(), 7);
    assert_eq!(batcher.cancel(ticket), Some("seven"));
    assert_empty(&batcher);
    assert_eq!(batcher.cancel(ticket), None);
}

#[test]
fn a_launched_request_cannot_be_cancelled() {
    let mut batcher = batcher();
    let ticket = batcher.admit(Time::ZERO, Request::new("a", 7, "seven")).unwrap();
    let Forming::Launch(batch) = batcher.form(Time::ZERO).decision else { panic!("not launched") };
    assert_eq!(batch.items[0].payload, "seven");
    assert_eq!(batcher.cancel(ticket), None);
    assert_empty(&batcher);
}

#[test]
fn work_that_expires_in_the_queue_is_returned_by_form_and_does_not_run() {
    let mut batcher = batcher();
    let deadline = Some(Time::from_millis(5));
    let soon = Request { deadline, ..Request::new("a", 7, "soon") };
    let ticket = batcher.admit(Time::ZERO, soon).unwrap();
    batcher.admit(Time::ZERO, Request::new("a", 3, "whenever")).unwrap();
    let formed = batcher.form(Time::from_millis(5));
    assert_eq!(formed.expired.len(), 1);
    assert_eq!((formed.expired[0].ticket, formed.expired[0].payload), (ticket, "soon"));
    assert_eq!(formed.expired[0].waited, Time::from_millis(5));
    let Forming::Launch(batch) = formed.decision else { panic!("not launched") };
    assert_eq!(batch.cost, 3);
    assert_empty(&batcher);
}

#[test]
fn work_that_has_expired_on_arrival_is_refused() {
    let mut batcher = batcher();
    let now = Time::from_millis(5);
    let late = Request { deadline: Some(now), ..Request::new("a", 7, "late") };
    assert_eq!(batcher.admit(now, late), Err((Refusal::Expired, "late")));
    assert_empty(&batcher);
}
