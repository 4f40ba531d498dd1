//! Random configurations and random calls, for the property tests.

use proptest::prelude::*;
use stillhouse_batcher::invariants::{Checked, Violation};
use stillhouse_batcher::{Config, Forming, LaunchReason, Request, Ticket, Time};

pub(crate) const CLIENTS: [&str; 5] = ["ash", "birch", "cedar", "elm", "fir"];

#[derive(Clone, Debug)]
pub(crate) enum Call {
    Admit {
        client: usize,
        cost: u64,
        length: u32,
        patience: Option<u64>,
    },
    /// Of one of the tickets given out so far, in whatever state it is.
    Cancel {
        which: prop::sample::Index,
    },
    Form,
    Expire,
    Advance {
        ms: u64,
    },
}

/// So many random cases, or as many as `PROPTEST_CASES` asks for.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig { cases: if asked { default.cases } else { cases }, ..default }
}

pub(crate) fn config() -> impl Strategy<Value = Config> {
    let ratio = prop_oneof![
        3 => Just(f64::INFINITY),
        1 => Just(1.0),
        2 => 1.0f64..3.0,
    ];
    (1u64..300, 1u64..5, 1u64..8, 1usize..6, ratio, 0u64..30, 0u64..100).prop_map(
        |(batch, clients_worth, queues_worth, max_clients, max_length_ratio, wait, guard)| Config {
            target_latency: Time::ZERO,
            max_batch_cost: batch,
            max_queue_cost: batch * queues_worth,
            max_client_cost: batch * clients_worth,
            max_clients,
            max_wait: Time::from_millis(wait),
            max_length_ratio,
            age_guard: Time::from_millis(guard),
            default_weight: 1,
        },
    )
}

pub(crate) fn call() -> impl Strategy<Value = Call> {
    let cost = prop_oneof![3 => 1u64..20, 1 => 1u64..320];
    let length = prop_oneof![1u32..10, 1u32..2000];
    let patience = prop::option::of(0u64..60);
    prop_oneof![
        6 => (0..CLIENTS.len(), cost, length, patience).prop_map(
            |(client, cost, length, patience)| Call::Admit { client, cost, length, patience }
        ),
        1 => any::<prop::sample::Index>().prop_map(|which| Call::Cancel { which }),
        3 => Just(Call::Form),
        1 => Just(Call::Expire),
        3 => (0u64..20).prop_map(|ms| Call::Advance { ms }),
    ]
}

/// Plays the calls, then drains, under every invariant.
pub(crate) fn play(config: &Config, weights: &[u32], calls: &[Call]) -> Result<(), Violation> {
    let mut batcher = Checked::new(config.clone()).unwrap();
    for (client, &weight) in CLIENTS.iter().zip(weights) {
        batcher.set_weight(client, weight).unwrap();
    }
    let mut now = Time::ZERO;
    let mut tickets: Vec<Ticket> = Vec::new();
    for call in calls {
        match call {
            Call::Admit { client, cost, length, patience } => {
                let request = Request {
                    client: CLIENTS[*client].into(),
                    cost: *cost,
                    length: *length,
                    deadline: patience.map(|ms| now + Time::from_millis(ms)),
                    payload: (),
                };
                tickets.extend(batcher.admit(now, request)?);
            }
            Call::Cancel { which } if !tickets.is_empty() => {
                batcher.cancel(*which.get(&tickets))?;
            }
            Call::Cancel { .. } => {}
            Call::Form => {
                if let Forming::Launch(batch) = batcher.form(now)?.decision {
                    batcher.completed(batch.cost, Time::from_millis(batch.cost));
                }
            }
            Call::Expire => {
                batcher.expire(now)?;
            }
            Call::Advance { ms } => now += Time::from_millis(*ms),
        }
    }
    batcher.drain();
    let queued = batcher.batcher().queued_items();
    for _ in 0..queued {
        match batcher.form(now)?.decision {
            Forming::Launch(batch) => assert_ne!(batch.reason, LaunchReason::Waited),
            Forming::Wait(until) => panic!("draining, yet told to wait until {until:?}"),
            Forming::Idle => break,
        }
    }
    batcher.finish()
}
