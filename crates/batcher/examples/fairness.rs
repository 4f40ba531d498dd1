//! One client floods the teacher, a small one wants its labels too: first in, first out against
//! fair sharing, in simulated time.
//!
//! `cargo run -p stillhouse-batcher --example fairness`
#![allow(clippy::print_stdout)]

use std::time::Duration;

use stillhouse_batcher::Config;
use stillhouse_batcher::sim::{Device, Policy, SimError, Student, run};

const LENGTH: Duration = Duration::from_secs(60);

fn main() -> Result<(), SimError> {
    let config = Config { max_batch_cost: 256, ..Config::default() };
    // 256 rows take 10 ms: 25,600 rows per second at best.
    let device =
        Device { per_batch: Duration::from_micros(2320), per_cost: Duration::from_micros(30) };
    let flood = Student { name: "flood", weight: 1, in_flight: 128, cost: 32, length: 1 };
    let small = Student { name: "small", weight: 1, in_flight: 8, cost: 32, length: 1 };
    let heavy = Student { weight: 3, ..small.clone() };
    println!("Batches of up to 256 rows, 2.32 ms + 30 us per row; 32 rows per request.");
    println!("flood keeps 128 requests in flight, small keeps 8; 60 s of simulated time.");
    let runs = [
        ("first in, first out", Policy::Fifo, &small),
        ("fair sharing", Policy::FairSharing, &small),
        ("fair sharing, small has weight 3", Policy::FairSharing, &heavy),
    ];
    for (title, policy, small) in runs {
        println!("\n{title}");
        println!("  client  requests  mean wait ms     p50     p99    rows/s  of its fair share");
        let students = [flood.clone(), small.clone()];
        for report in run(config.clone(), device, &students, policy, LENGTH)? {
            let ms = |wait: Duration| wait.as_secs_f64() * 1e3;
            println!(
                "  {:6}  {:8}  {:12.1}  {:6.1}  {:6.1}  {:8.0}  {:17.2}",
                report.name,
                report.waits.len(),
                ms(report.mean_wait()),
                ms(report.wait_percentile(0.5)),
                ms(report.wait_percentile(0.99)),
                report.cost as f64 / LENGTH.as_secs_f64(),
                report.of_fair_share,
            );
        }
    }
    Ok(())
}
