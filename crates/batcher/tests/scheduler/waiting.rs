//! When a batch is launched, and why.

use stillhouse_batcher::invariants::Checked;
use stillhouse_batcher::{Batcher, Config, Forming, LaunchReason, Request, Time};

const WAIT: Time = Time::from_millis(10);

fn batcher() -> Batcher<()> {
    Batcher::new(Config { max_batch_cost: 64, max_wait: WAIT, ..Config::default() }).unwrap()
}

fn reason(batcher: &mut Batcher<()>, now: Time) -> Option<LaunchReason> {
    match batcher.form(now).decision {
        Forming::Launch(batch) => Some(batch.reason),
        Forming::Wait(_) | Forming::Idle => None,
    }
}

#[test]
fn an_empty_queue_is_idle_and_has_no_next_event() {
    let mut batcher = batcher();
    assert!(matches!(batcher.form(Time::ZERO).decision, Forming::Idle));
    assert_eq!(batcher.next_event(Time::ZERO), None);
}

#[test]
fn a_batch_that_is_not_full_waits_for_company_from_its_oldest_request_on() {
    let mut batcher = batcher();
    let ms = Time::from_millis;
    batcher.admit(ms(1), Request::new("a", 8, ())).unwrap();
    batcher.admit(ms(9), Request::new("b", 8, ())).unwrap();
    assert_eq!(batcher.next_event(ms(9)), Some(ms(11)));
    assert!(matches!(batcher.form(ms(9)).decision, Forming::Wait(until) if until == ms(11)));
    assert_eq!(reason(&mut batcher, ms(11)), Some(LaunchReason::Waited));
}

#[test]
fn a_full_batch_does_not_wait() {
    let mut batcher = batcher();
    batcher.admit(Time::ZERO, Request::new("a", 32, ())).unwrap();
    assert_eq!(reason(&mut batcher, Time::ZERO), None);
    batcher.admit(Time::ZERO, Request::new("b", 32, ())).unwrap();
    assert_eq!(batcher.next_event(Time::ZERO), Some(Time::ZERO));
    assert_eq!(reason(&mut batcher, Time::ZERO), Some(LaunchReason::Full));
}

#[test]
fn a_deadline_that_the_wait_would_outlive_launches_at_once() {
    let mut batcher = batcher();
    let deadline = Some(WAIT);
    batcher.admit(Time::ZERO, Request { deadline, ..Request::new("a", 8, ()) }).unwrap();
    assert_eq!(batcher.next_deadline(), deadline);
    assert_eq!(reason(&mut batcher, Time::ZERO), Some(LaunchReason::Deadline));

    let deadline = Some(WAIT + Time::from_millis(1));
    batcher.admit(Time::ZERO, Request { deadline, ..Request::new("a", 8, ()) }).unwrap();
    assert_eq!(reason(&mut batcher, Time::ZERO), None, "there is time for company");
}

/// The longest wait there is does not run past the end of time.
#[test]
fn a_wait_without_end_is_a_valid_one() {
    let config = Config { max_batch_cost: 64, max_wait: Time::MAX, ..Config::default() };
    let mut batcher = Checked::new(config).unwrap();
    let now = Time::from_secs(1);
    batcher.admit(now, Request::new("a", 8, ())).unwrap().unwrap();
    let formed = batcher.form(now).unwrap();
    assert!(matches!(formed.decision, Forming::Wait(Time::MAX)));
    batcher.drain();
    assert!(matches!(batcher.form(now).unwrap().decision, Forming::Launch(_)));
}

#[test]
fn draining_runs_what_is_queued_without_waiting() {
    let mut batcher = batcher();
    batcher.admit(Time::ZERO, Request::new("a", 8, ())).unwrap();
    batcher.drain();
    assert!(batcher.admit(Time::ZERO, Request::new("a", 8, ())).is_err());
    assert_eq!(reason(&mut batcher, Time::ZERO), Some(LaunchReason::Draining));
    assert!(batcher.is_empty());
}

#[test]
fn the_next_event_is_a_deadline_where_that_comes_first() {
    let config = Config { max_wait: Time::ZERO, ..Config::default() };
    let mut batcher = Batcher::new(config).unwrap();
    let now = Time::from_millis(3);
    let deadline = Some(Time::from_millis(7));
    batcher.admit(now, Request { deadline, ..Request::new("a", 8, ()) }).unwrap();
    assert_eq!(batcher.next_event(now), Some(now), "a free device would launch it now");
    assert_eq!(batcher.next_deadline(), deadline, "a busy one has this to wait for");
}
