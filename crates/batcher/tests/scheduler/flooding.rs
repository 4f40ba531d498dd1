//! One client floods, a small one wants its labels: first in, first out against fair sharing, on a
//! simulated device (`examples/fairness.rs` prints the figures).

use stillhouse_batcher::sim::{Device, Policy, Report, Student, run};
use stillhouse_batcher::{Config, Time};

const DEVICE: Device =
    Device { per_batch: Time::from_micros(2320), per_cost: Time::from_micros(30) };

/// Reports of the flood, then the small client. A full batch takes 10 ms.
fn flooded(policy: Policy, weight: u32) -> [Report; 2] {
    let config = Config { max_batch_cost: 256, ..Config::default() };
    let flood = Student { name: "flood", weight: 1, in_flight: 128, cost: 32, length: 1 };
    let small = Student { name: "small", weight, in_flight: 8, cost: 32, length: 1 };
    let reports = run(config, DEVICE, &[flood, small], policy, Time::from_secs(10)).unwrap();
    reports.try_into().unwrap()
}

#[test]
fn first_in_first_out_gives_shares_by_requests_in_flight() {
    let [flood, small] = flooded(Policy::Fifo, 1);
    // 8 of 136 in flight: 0.12 of half the device.
    assert!(small.of_fair_share < 0.15, "{}", small.of_fair_share);
    assert!(flood.of_fair_share > 1.8, "{}", flood.of_fair_share);
    // Behind 128 others, 8 to a batch.
    assert!(small.wait_percentile(0.5) >= Time::from_millis(150));
}

#[test]
fn fair_sharing_gives_shares_by_weight_whatever_is_in_flight() {
    for weight in [1, 3] {
        let [flood, small] = flooded(Policy::FairSharing, weight);
        assert!((0.95..1.05).contains(&small.of_fair_share), "{}", small.of_fair_share);
        assert!((0.95..1.05).contains(&flood.of_fair_share), "{}", flood.of_fair_share);
        assert!(small.wait_percentile(0.99) <= Time::from_millis(20));
    }
}

#[test]
fn fair_sharing_costs_no_throughput() {
    let total = |policy| flooded(policy, 1).iter().map(|report| report.cost).sum::<u64>();
    let (fifo, fair) = (total(Policy::Fifo), total(Policy::FairSharing));
    assert!(fair as f64 >= 0.99 * fifo as f64, "{fair} against {fifo}");
}

/// Sixty-four clients ask for ten times what the queue holds: everyone gets at least half of its
/// fair share, refused or not.
#[test]
fn under_overload_every_client_makes_progress() {
    let names: Vec<&'static str> = (0..64).map(|i| &*format!("{i}").leak()).collect();
    let students: Vec<Student> = names
        .iter()
        .map(|&name| Student { name, weight: 1, in_flight: 16, cost: 32, length: 1 })
        .collect();
    let queue = 64 * 16 * 32 / 10;
    let config = Config {
        max_batch_cost: 256,
        max_queue_cost: queue,
        max_client_cost: queue / 2,
        ..Config::default()
    };
    let reports = run(config, DEVICE, &students, Policy::FairSharing, Time::from_secs(20)).unwrap();
    assert!(reports.iter().map(|report| report.refused).sum::<u64>() > 1000);
    for report in reports {
        let share = report.of_fair_share;
        assert!((0.5..2.0).contains(&share), "{} got {share} of its share", report.name);
    }
}
