//! No client waits for more than its fair share of the others' work plus a bound.

use proptest::prelude::*;
use stillhouse_batcher::invariants::Checked;
use stillhouse_batcher::{Config, Forming, Request, Time};

use crate::schedule::CLIENTS;

/// Clients that always have work queued: how large each one's requests are, and its weight.
#[derive(Clone, Debug)]
struct Backlogged {
    weight: u32,
    costs: Vec<u64>,
}

fn backlogged() -> impl Strategy<Value = Vec<Backlogged>> {
    let client = (1u32..10, prop::collection::vec(1u64..=200, 1..5))
        .prop_map(|(weight, costs)| Backlogged { weight, costs });
    prop::collection::vec(client, 2..=CLIENTS.len())
}

/// Runs `batches` batches with every queue kept filled; returns what each client launched.
fn serve(clients: &[Backlogged], max_batch_cost: u64, batches: usize) -> Vec<u64> {
    let config = Config {
        max_batch_cost,
        max_queue_cost: 1 << 30,
        max_client_cost: 1 << 30,
        age_guard: Time::MAX,
        ..Config::default()
    };
    let mut batcher = Checked::new(config).unwrap();
    for (client, name) in clients.iter().zip(CLIENTS) {
        batcher.set_weight(name, client.weight).unwrap();
    }
    let mut admitted = vec![0; clients.len()];
    let mut launched = vec![0; clients.len()];
    for _ in 0..batches {
        for (i, client) in clients.iter().enumerate() {
            let mut costs = client.costs.iter().cycle();
            // More than a batch ahead, so that no queue empties.
            while admitted[i] <= launched[i] + max_batch_cost {
                let cost = *costs.next().unwrap();
                batcher.admit(Time::ZERO, Request::new(CLIENTS[i], cost, i)).unwrap().unwrap();
                admitted[i] += cost;
            }
        }
        let Forming::Launch(batch) = batcher.form(Time::ZERO).unwrap().decision else {
            panic!("work is queued")
        };
        for item in batch.items {
            launched[item.payload] += item.cost;
        }
    }
    launched
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// From the admission of a request of client i to its launch, any other client j launches at
    /// most w_j / w_i * S_i + 2 * quantum * w_j + C_j (the crate's page has the proof). `Checked`
    /// tests it for each request and each other client; nothing is withdrawn or overdue here, so
    /// without any slack for that.
    ///
    /// Over the whole run it follows for any two clients i and j, both always backlogged, that
    /// S_j / w_j <= S_i / w_i + 2 * quantum + C_j / w_j + C_i / w_i: Shreedhar and Varghese's
    /// fairness measure.
    #[test]
    fn backlogged_clients_get_what_their_weights_say(
        clients in backlogged(),
        max_batch_cost in 200u64..2000,
    ) {
        let launched = serve(&clients, max_batch_cost, 40);
        let quantum = (max_batch_cost / 64) as f64;
        for (i, mine) in clients.iter().enumerate() {
            for (j, other) in clients.iter().enumerate() {
                let per_weight = |k: usize, c: &Backlogged| launched[k] as f64 / f64::from(c.weight);
                let largest =
                    |c: &Backlogged| *c.costs.iter().max().unwrap() as f64 / f64::from(c.weight);
                let bound = 2.0 * quantum + largest(mine) + largest(other);
                let ahead = per_weight(j, other) - per_weight(i, mine);
                prop_assert!(ahead <= bound + 1e-9, "{j} is {ahead} ahead of {i}, bound {bound}");
            }
        }
    }
}

#[test]
fn a_newcomer_rides_in_the_next_batch_however_long_the_queue() {
    let config = Config { max_batch_cost: 64, age_guard: Time::MAX, ..Config::default() };
    let mut batcher = Checked::new(config).unwrap();
    for _ in 0..1000 {
        batcher.admit(Time::ZERO, Request::new("flood", 8, ())).unwrap().unwrap();
    }
    let _first = batcher.form(Time::ZERO).unwrap();
    let ticket = batcher.admit(Time::ZERO, Request::new("small", 8, ())).unwrap().unwrap();
    let Forming::Launch(next) = batcher.form(Time::ZERO).unwrap().decision else {
        panic!("work is queued")
    };
    assert!(next.items.iter().any(|item| item.ticket == ticket));
}

/// A client that lets its queue empty between requests gains no turns and keeps no credit.
#[test]
fn coming_and_going_gains_nothing() {
    let config = Config { max_batch_cost: 64, age_guard: Time::MAX, ..Config::default() };
    let mut batcher = Checked::new(config).unwrap();
    for _ in 0..500 {
        batcher.admit(Time::ZERO, Request::new("steady", 1, 0)).unwrap().unwrap();
    }
    let mut launched = [0u64; 2];
    for _ in 0..10 {
        for _ in 0..48 {
            batcher.admit(Time::ZERO, Request::new("bursty", 1, 1)).unwrap().unwrap();
        }
        let Forming::Launch(batch) = batcher.form(Time::ZERO).unwrap().decision else {
            panic!("work is queued")
        };
        for item in batch.items {
            launched[item.payload] += item.cost;
        }
        let left: Vec<_> = batcher.batcher().client_stats().collect();
        assert!(left.iter().any(|client| client.client.as_ref() == "steady"));
    }
    assert_eq!(launched[0] + launched[1], 640);
    assert!(launched[0].abs_diff(launched[1]) <= 3, "{launched:?}");
}

/// A batch that goes on with a round visits only the clients that had no turn in it yet; the others'
/// next requests count when rounds without a launch are skipped. (Skipping too many gave a client
/// more turns than its request needed, and others the credit of them.)
#[test]
fn rounds_are_not_skipped_past_a_client_that_had_its_turn() {
    let client = |weight, costs: &[u64]| Backlogged { weight, costs: costs.to_vec() };
    let clients = [
        client(2, &[101]),
        client(7, &[15, 107]),
        client(1, &[42]),
        client(2, &[111, 2]),
        client(3, &[17, 116]),
    ];
    serve(&clients, 233, 40);
}
