//! What is admitted, and what a refusal says.

use stillhouse_batcher::{Batcher, Config, Forming, Refusal, Request, Time};

fn batcher(config: Config) -> Batcher<u32> {
    Batcher::new(config).unwrap()
}

/// Room for four full batches, and for one and a half of one client.
fn small() -> Config {
    Config {
        max_batch_cost: 16,
        max_queue_cost: 64,
        max_client_cost: 24,
        max_clients: 4,
        ..Config::default()
    }
}

fn admit(batcher: &mut Batcher<u32>, client: &str, cost: u64) -> Option<Refusal> {
    batcher.admit(Time::ZERO, Request::new(client, cost, 7)).err().map(|(refusal, payload)| {
        assert_eq!(payload, 7);
        refusal
    })
}

#[test]
fn a_cost_that_no_batch_can_hold_is_refused() {
    let mut batcher = batcher(small());
    for cost in [0, 17, u64::MAX] {
        let refusal = admit(&mut batcher, "a", cost).unwrap();
        assert_eq!(refusal, Refusal::CostOutOfRange { cost, max: 16 });
        assert_eq!(refusal.to_string(), format!("cost is {cost}; accepted: 1 to 16"));
    }
    assert_eq!(admit(&mut batcher, "a", 16), None);
}

#[test]
fn a_client_is_held_to_its_own_bound() {
    let mut batcher = batcher(small());
    assert_eq!(admit(&mut batcher, "a", 16), None);
    assert_eq!(admit(&mut batcher, "a", 8), None);
    assert_eq!(
        admit(&mut batcher, "a", 1),
        Some(Refusal::ClientFull { cost: 1, queued: 24, limit: 24, retry_after: None })
    );
    assert_eq!(admit(&mut batcher, "b", 16), None);
}

#[test]
fn in_the_upper_half_of_the_queue_a_client_is_held_to_its_share() {
    let mut batcher = batcher(Config { max_client_cost: 64, ..small() });
    batcher.set_weight("b", 3).unwrap();
    assert_eq!(admit(&mut batcher, "b", 4), None);
    assert_eq!(admit(&mut batcher, "a", 16), None);
    assert_eq!(admit(&mut batcher, "a", 12), None, "the lower half is first come, first served");
    let refusal = admit(&mut batcher, "a", 1);
    let expected = Refusal::ClientFull { cost: 1, queued: 28, limit: 16, retry_after: None };
    assert_eq!(refusal, Some(expected));
    assert_eq!(admit(&mut batcher, "b", 16), None, "has 3/4 of the weight: 48");
}

#[test]
fn shares_grow_when_another_client_is_through() {
    let mut batcher = batcher(Config { max_client_cost: 64, ..small() });
    for _ in 0..3 {
        let ticket = batcher.admit(Time::ZERO, Request::new("b", 16, 7)).unwrap();
        assert_eq!(batcher.cancel(ticket), Some(7));
    }
    for _ in 0..3 {
        assert_eq!(admit(&mut batcher, "a", 16), None, "the share of the only client is all");
    }
}

#[test]
fn the_last_eighth_of_the_queue_is_for_clients_with_nothing_queued() {
    let mut batcher = batcher(Config { max_batch_cost: 8, max_client_cost: 64, ..small() });
    for _ in 0..7 {
        assert_eq!(admit(&mut batcher, "flood", 8), None);
    }
    assert_eq!(
        admit(&mut batcher, "flood", 1),
        Some(Refusal::QueueFull { cost: 1, queued: 56, limit: 56, retry_after: None })
    );
    assert_eq!(admit(&mut batcher, "small", 8), None);
    assert_eq!(
        admit(&mut batcher, "smaller", 1),
        Some(Refusal::QueueFull { cost: 1, queued: 64, limit: 64, retry_after: None })
    );
}

/// A client floods the queue again after each batch; another wants a whole batch, and tries after it
/// did. The reserve has room for that where the queue has room for two batches.
#[test]
fn a_newcomers_full_batch_is_not_locked_out_by_a_flood() {
    for queue in [32, 33, 40, 64, 1000] {
        let config = Config { max_queue_cost: queue, max_client_cost: queue, ..small() };
        let mut batcher = batcher(config);
        for cost in [16, 7, 1] {
            while admit(&mut batcher, "flood", cost).is_none() {}
        }
        assert_eq!(admit(&mut batcher, "large", 16), None, "of a queue of {queue}");
    }
}

/// In a queue of one batch nobody can be kept room for; it still takes a request of any cost when it
/// is empty.
#[test]
fn a_queue_of_one_batch_takes_a_full_one_when_empty() {
    let mut batcher = batcher(Config { max_queue_cost: 16, ..small() });
    assert_eq!(admit(&mut batcher, "a", 16), None);
    assert!(admit(&mut batcher, "b", 1).is_some());
    let Forming::Launch(_) = batcher.form(Time::ZERO).decision else { panic!("work is queued") };
    assert_eq!(admit(&mut batcher, "b", 16), None);
}

/// An attacker that makes up names runs into the bound on clients; names with nothing queued are
/// forgotten.
#[test]
fn made_up_names_are_bounded_and_forgotten() {
    let mut batcher = batcher(small());
    for i in 0..4 {
        assert_eq!(admit(&mut batcher, &i.to_string(), 1), None);
    }
    let refusal = admit(&mut batcher, "4", 1);
    assert_eq!(refusal, Some(Refusal::TooManyClients { clients: 4, retry_after: None }));
    assert_eq!(admit(&mut batcher, "0", 1), None, "those that are in may go on");
    while let Forming::Launch(batch) = batcher.form(Time::ZERO).decision {
        batcher.completed(batch.cost, batch.cost, Time::from_millis(1));
    }
    assert_eq!(batcher.clients(), 0);
    assert_eq!(admit(&mut batcher, "4", 1), None);
}

/// Each request costs at least 1, so a client's thousands of tiny requests are as bounded as a few
/// large ones.
#[test]
fn tiny_requests_are_bounded_by_cost() {
    let mut batcher = batcher(Config::default());
    let admitted = (0..100_000).filter(|_| admit(&mut batcher, "tiny", 1).is_none()).count();
    assert_eq!(admitted as u64, Config::default().max_client_cost);
    assert_eq!(batcher.queued_items(), admitted);
}

/// After `retry_after` on a device of steady speed the same request is admitted.
#[test]
fn retry_after_is_when_there_is_room() {
    let mut batcher = batcher(Config { max_client_cost: 64, ..small() });
    let per_cost = Time::from_millis(3);
    batcher.completed(100, 100, per_cost * 100);
    while admit(&mut batcher, "a", 16).is_none() {}
    let refusal = admit(&mut batcher, "a", 16).unwrap();
    let retry_after = refusal.retry_after().unwrap();
    let mut busy = Time::ZERO;
    while busy < retry_after {
        let Forming::Launch(batch) = batcher.form(busy).decision else { panic!("work is queued") };
        busy += per_cost * u32::try_from(batch.cost).unwrap();
    }
    assert_eq!(admit(&mut batcher, "a", 16), None);
    assert!(retry_after <= per_cost * 16, "asked to wait {retry_after:?} for one request's room");
}
