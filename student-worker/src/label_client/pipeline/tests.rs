//! Requests that are answered, late, lost or refused, in any order.

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(2);
const BUDGET: Duration = Duration::from_secs(60);
/// Units of every job here.
const UNITS: u32 = 3;

type Jobs = Pipeline<u64, u64>;

fn pipeline() -> Jobs {
    let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };
    let limits = Limits { timeout: TIMEOUT, budget: BUDGET, backoff };
    Pipeline::new(limits, Philox::new(1, 0))
}

/// Sends the next part, whole, to an endpoint; its request.
fn send(pipeline: &mut Jobs, endpoint: usize, now: Instant) -> Option<u64> {
    let sent = pipeline.send(now, LATE, |_, units| vec![(endpoint, units.to_vec())]);
    sent.first().map(|sending| sending.request)
}

/// Jobs that are handed on, with their answers.
fn delivered(pipeline: &mut Jobs) -> Vec<(u64, Vec<u64>)> {
    let next = || pipeline.deliver();
    std::iter::from_fn(next)
        .map(|(job, answers)| (job, answers.into_iter().map(|(_, answer)| answer).collect()))
        .collect()
}

#[test]
fn answers_are_handed_on_in_order() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    (0..3).for_each(|job| pipeline.push(job, UNITS, None, now));
    let requests: Vec<u64> = (0..3).map(|_| send(&mut pipeline, 0, now).unwrap()).collect();
    pipeline.answered(requests[2], 20, now);
    pipeline.answered(requests[1], 10, now);
    assert_eq!(pipeline.deliver(), None);
    pipeline.answered(requests[0], 0, now);
    assert_eq!(delivered(&mut pipeline), [(0, vec![0]), (1, vec![10]), (2, vec![20])]);
    assert!(pipeline.is_empty() && pipeline.next_wake(now).is_none());
}

#[test]
fn a_job_is_handed_on_when_all_of_its_parts_are_answered() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    pipeline.push(7, UNITS, None, now);
    // One unit for each of two endpoints; the third has to wait.
    let sent = pipeline.send(now, LATE, |job, units| {
        assert_eq!((*job, units), (7, &[0, 1, 2][..]));
        vec![(4, vec![2]), (5, vec![0])]
    });
    let of = |at: usize| (sent[at].endpoint, sent[at].units.clone());
    assert_eq!((sent.len(), of(0), of(1)), (2, (4, vec![2]), (5, vec![0])));
    let left = pipeline.send(now, LATE, |_, units| vec![(4, units.to_vec())]);
    assert_eq!(left[0].units, [1]);
    assert_eq!(pipeline.job(left[0].request), Some((&7, &[1][..])));
    pipeline.answered(sent[0].request, 2, now);
    pipeline.lost(5, now);
    let again = pipeline.send(now, LATE, |_, units| vec![(4, units.to_vec())]);
    assert_eq!(again[0].units, [0]);
    pipeline.answered(left[0].request, 1, now);
    assert!(!pipeline.can_deliver());
    pipeline.answered(again[0].request, 0, now);
    let (job, mut answers) = pipeline.deliver().unwrap();
    answers.sort();
    assert_eq!((job, answers), (7, vec![(vec![0], 0), (vec![1], 1), (vec![2], 2)]));
}

#[test]
fn a_failed_request_waits_as_long_as_the_teacher_asks() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    pipeline.push(7, UNITS, None, now);
    let request = send(&mut pipeline, 0, now).unwrap();
    pipeline.failed(request, Duration::from_secs(5), now);
    assert_eq!(send(&mut pipeline, 0, now + Duration::from_secs(4)), None);
    let wake = pipeline.next_wake(now).unwrap();
    assert_eq!(wake, now + Duration::from_secs(5));
    assert_ne!(send(&mut pipeline, 0, wake).unwrap(), request);
}

#[test]
fn a_lost_connection_frees_its_requests_at_once_and_late_answers_are_dropped() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    (0..2).for_each(|job| pipeline.push(job, UNITS, None, now));
    let first = send(&mut pipeline, 0, now).unwrap();
    let second = send(&mut pipeline, 1, now).unwrap();
    pipeline.lost(0, now);
    pipeline.answered(first, 99, now);
    pipeline.answered(second, 11, now);
    assert!(!pipeline.can_deliver());
    let again = send(&mut pipeline, 1, now).unwrap();
    assert_eq!(pipeline.job(again).unwrap().0, &0);
    pipeline.answered(again, 1, now);
    assert_eq!(delivered(&mut pipeline), [(0, vec![1]), (1, vec![11])]);
}

#[test]
fn a_late_answer_is_asked_for_elsewhere_and_the_first_to_come_counts() {
    let (mut pipeline, start) = (pipeline(), Instant::now());
    (0..2).for_each(|job| pipeline.push(job, UNITS, None, start));
    let first = send(&mut pipeline, 0, start).unwrap();
    let second = send(&mut pipeline, 0, start).unwrap();
    let elsewhere = |_: &u64, _: &[u32], late: usize| (late == 0).then_some(1);
    assert_eq!(
        (pipeline.late(start), pipeline.next_wake(start)),
        (BTreeSet::new(), Some(start + LATE))
    );
    assert_eq!(pipeline.send_late(start, elsewhere), None);
    let now = start + LATE;
    assert_eq!(pipeline.late(now), BTreeSet::from([0]));
    let again = pipeline.send_late(now, elsewhere).unwrap();
    assert_eq!((again.endpoint, again.units.len()), (1, 3));
    let other = pipeline.send_late(now, elsewhere).unwrap();
    assert_eq!(pipeline.send_late(now, elsewhere), None, "each once");
    // The first answer of either counts; the other is dropped.
    pipeline.answered(again.request, 1, now);
    pipeline.answered(first, 99, now);
    // One fails: the other is still under way.
    pipeline.failed(second, Duration::ZERO, now);
    assert_eq!(send(&mut pipeline, 0, now + BUDGET), None);
    pipeline.answered(other.request, 2, now);
    assert_eq!(delivered(&mut pipeline), [(0, vec![1]), (1, vec![2])]);
}

#[test]
fn what_an_endpoint_that_is_late_once_has_been_sent_is_late() {
    let (mut pipeline, start) = (pipeline(), Instant::now());
    (0..2).for_each(|job| pipeline.push(job, UNITS, None, start));
    send(&mut pipeline, 0, start);
    let later = start + LATE / 2;
    send(&mut pipeline, 0, later);
    pipeline.all_late(0, later);
    let elsewhere = |_: &u64, _: &[u32], _: usize| Some(1);
    assert!(pipeline.send_late(later, elsewhere).is_some());
    assert!(pipeline.send_late(later, elsewhere).is_some());
}

#[test]
fn an_overdue_request_names_its_endpoint() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    pipeline.push(0, UNITS, None, now);
    send(&mut pipeline, 3, now).unwrap();
    assert!(pipeline.overdue(now + TIMEOUT / 2).is_empty());
    assert_eq!(pipeline.overdue(now + TIMEOUT), BTreeSet::from([3]));
    assert_eq!(pipeline.next_wake(now + LATE), Some(now + TIMEOUT));
}

#[test]
fn the_budget_counts_from_the_last_answer_and_only_while_one_is_wanted() {
    let (mut pipeline, start) = (pipeline(), Instant::now());
    assert_eq!(pipeline.given_up(start + 9 * BUDGET), None);
    (0..2).for_each(|job| pipeline.push(job, UNITS, None, start));
    let later = start + BUDGET / 2;
    let request = send(&mut pipeline, 0, start).unwrap();
    pipeline.answered(request, 0, later);
    assert_eq!(pipeline.given_up(start + BUDGET), None);
    assert_eq!(pipeline.given_up(later + BUDGET), Some(BUDGET));
    let request = send(&mut pipeline, 0, later).unwrap();
    pipeline.answered(request, 0, later);
    assert_eq!(pipeline.given_up(later + 9 * BUDGET), None);
}

#[test]
fn a_job_that_is_not_waited_for_any_more_is_handed_on_and_its_answer_dropped() {
    let (mut pipeline, now) = (pipeline(), Instant::now());
    (0..2).for_each(|job| pipeline.push(job, UNITS, None, now));
    let first = send(&mut pipeline, 0, now).unwrap();
    let second = send(&mut pipeline, 0, now).unwrap();
    assert_eq!(pipeline.abandon(), Some(0));
    pipeline.answered(first, 99, now);
    pipeline.answered(second, 1, now);
    assert_eq!(delivered(&mut pipeline), [(1, vec![1])]);
    assert_eq!(pipeline.abandon(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever fails, is late, is lost, is cut into parts, or is answered in whatever order:
    /// every job is handed on once, whole, in order.
    #[test]
    fn every_job_is_handed_on_once_whole_and_in_order(
        most in 1_u64..6,
        events in prop::collection::vec((0_u8..10, any::<prop::sample::Index>()), 1..300),
    ) {
        let (mut pipeline, mut now) = (pipeline(), Instant::now());
        let (mut taken, mut handed_on) = (0, Vec::new());
        let mut in_flight: Vec<u64> = Vec::new();
        /// The answer to a request: its job, and the units that it is of.
        fn answer(pipeline: &mut Jobs, request: u64, now: Instant) {
            if let Some((job, units)) = pipeline.job(request) {
                let sum = units.iter().map(|unit| u64::from(*unit) + 1).sum::<u64>();
                let answer = job * 100 + sum;
                pipeline.answered(request, answer, now);
            }
        }
        let hand_on = |pipeline: &mut Jobs, handed_on: &mut Vec<u64>| {
            while let Some((job, answers)) = pipeline.deliver() {
                let mut units = Vec::new();
                for (own, answer) in answers {
                    let sum = own.iter().map(|unit| u64::from(*unit) + 1).sum::<u64>();
                    assert_eq!(answer, job * 100 + sum);
                    units.extend(own);
                }
                units.sort_unstable();
                assert_eq!(units, [0, 1, 2]);
                handed_on.push(job);
            }
        };
        for (event, index) in events {
            match event {
                0 | 1 if taken - (handed_on.len() as u64) < most => {
                    pipeline.push(taken, UNITS, None, now);
                    taken += 1;
                }
                2..=4 => {
                    let sent = pipeline.send(now, LATE, |_, units| {
                        let (some, others) = units.split_at(index.index(units.len() + 1));
                        let (at, other) = (index.index(3), index.index(2));
                        let parts = [(at, some.to_vec()), (3, others.to_vec())];
                        let kept = if other == 0 { 1 } else { 2 };
                        let parts = parts.into_iter().take(kept);
                        parts.filter(|(_, units)| !units.is_empty()).collect()
                    });
                    in_flight.extend(sent.iter().map(|sending| sending.request));
                }
                5 | 6 if !in_flight.is_empty() => {
                    let request = in_flight.swap_remove(index.index(in_flight.len()));
                    answer(&mut pipeline, request, now);
                }
                7 if !in_flight.is_empty() => {
                    let request = in_flight[index.index(in_flight.len())];
                    pipeline.failed(request, Duration::ZERO, now);
                }
                8 => pipeline.lost(index.index(4), now),
                9 => {
                    let other = |_: &u64, _: &[u32], late: usize| Some((late + 1) % 4);
                    let late = pipeline.send_late(now, other);
                    in_flight.extend(late.map(|sending| sending.request));
                }
                _ => now += Duration::from_millis(700),
            }
            hand_on(&mut pipeline, &mut handed_on);
        }
        now += Duration::from_secs(5);
        (0..5).for_each(|endpoint| pipeline.lost(endpoint, now));
        now += Duration::from_secs(5);
        while let Some(request) = send(&mut pipeline, 0, now) {
            answer(&mut pipeline, request, now);
        }
        hand_on(&mut pipeline, &mut handed_on);
        prop_assert_eq!(handed_on, (0..taken).collect::<Vec<_>>());
        prop_assert!(pipeline.sent.is_empty());
    }
}
