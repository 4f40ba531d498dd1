//! A target latency is held where it is set, under load and overload, and costs little of the rate.

use stillhouse_batcher::invariants::Checked;
use stillhouse_batcher::{Config, Forming, Request, Time};

const TARGET: Time = Time::from_millis(20);
/// Rows of each request.
const ROWS: u64 = 16;

/// A device that takes a millisecond for a batch and 20 microseconds for each row, a tenth more for one
/// batch in five.
fn takes(cost: u64, batch: u64) -> Time {
    let steady = Time::from_micros(1000 + 20 * cost);
    if batch.is_multiple_of(5) { steady + steady / 10 } else { steady }
}

/// What a simulated minute came to.
struct Seen {
    /// From admission to the end of the batch, sorted, without the first second's.
    latencies: Vec<Time>,
    rows_per_second: f64,
    refused: u64,
}

impl Seen {
    fn quantile(&self, part: f64) -> Time {
        self.latencies[(part * (self.latencies.len() - 1) as f64) as usize]
    }
}

/// Requests of 8 clients that come at random, `load` times as fast as the device can be.
fn simulate(target_latency: Time, load: f64) -> Seen {
    let config = Config {
        target_latency,
        max_queue_cost: 1 << 16,
        max_client_cost: 1 << 14,
        ..Config::default()
    };
    let mut batcher = Checked::new(config).unwrap();
    let mut random = 1_u64;
    let mut uniform = || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((random >> 11) as f64 + 1.0) / (1_u64 << 53) as f64
    };
    // With batches of the largest size.
    let capacity = 1024.0 / takes(1024, 1).as_secs_f64();
    let gap = ROWS as f64 / (capacity * load);
    let end = Time::from_secs(60);
    let (mut arrival, mut free) = (Time::ZERO, Time::ZERO);
    let mut seen = Seen { latencies: Vec::new(), rows_per_second: 0.0, refused: 0 };
    let mut running: Option<(u64, Time)> = None;
    let (mut batches, mut rows) = (0, 0);
    loop {
        // The device is free before the next request comes: it takes what waits.
        if free <= arrival {
            if let Some((cost, took)) = running.take() {
                batcher.completed(cost, took);
            }
            if let Forming::Launch(batch) = batcher.form(free).unwrap().decision {
                batches += 1;
                let took = takes(batch.cost, batches);
                running = Some((batch.cost, took));
                for item in batch.items {
                    let admitted: Time = item.payload;
                    if admitted > Time::from_secs(1) {
                        seen.latencies.push(free + took - admitted);
                        rows += item.cost;
                    }
                }
                free += took;
                continue;
            }
            free = arrival;
        }
        if arrival > end {
            break;
        }
        let client = format!("client-{}", (uniform() * 8.0) as u64);
        let request = Request::new(client, ROWS, arrival);
        seen.refused += u64::from(batcher.admit(arrival, request).unwrap().is_err());
        arrival += Time::from_secs_f64(-uniform().ln() * gap);
    }
    seen.latencies.sort_unstable();
    seen.rows_per_second = rows as f64 / 59.0;
    seen
}

#[test]
fn a_target_is_held_under_load_and_what_cannot_be_held_is_refused() {
    // Two thirds of what the device does in its largest batches, and three times that.
    for (load, name) in [(0.67, "load"), (2.0, "overload")] {
        let (with, without) = (simulate(TARGET, load), simulate(Time::ZERO, load));
        let (p99, free) = (with.quantile(0.99), without.quantile(0.99));
        assert!(p99 <= TARGET, "{name}: p99 {p99:?}");
        let kept = with.rows_per_second / without.rows_per_second;
        if load > 1.0 {
            assert!(free > 2 * TARGET, "{name}: without a target p99 is {free:?}: nothing to hold");
            assert!(with.refused > 0, "{name}");
            assert!(kept > 0.85, "{name}: {kept} of the rate");
        } else {
            assert!(kept > 0.99, "{name}: {kept} of the rate, {} refused", with.refused);
        }
    }
}
