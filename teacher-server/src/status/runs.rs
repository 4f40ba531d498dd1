//! What students say of their runs.

use std::{sync::Arc, time::Instant};

use serde::Serialize;
use stillhouse_proto::v1::StudentReport;

/// Runs that are remembered, of all clients and of one.
const MOST: usize = 256;
const MOST_OF_CLIENT: usize = 32;
/// Points of a curve: full, it loses every other one.
const POINTS: usize = 512;
/// Bytes of a name.
const MAX_NAME: usize = 128;

/// A student's run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) client: String,
    pub(super) run: String,
    step: u64,
    steps: u64,
    examples_per_second: f64,
    stall_fraction: f64,
    /// Steps and losses, oldest first.
    curve: Vec<(u64, f64)>,
    #[serde(skip)]
    seen: Instant,
    /// Every how many reports a point is taken.
    #[serde(skip)]
    every: u64,
    #[serde(skip)]
    reports: u64,
    /// Since the last report.
    pub(super) seconds_ago: f64,
}

/// All that there have been of late.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// Takes a report, unless it is none.
    pub(super) fn take(&mut self, client: &Arc<str>, report: StudentReport, now: Instant) -> bool {
        let StudentReport { run, step, steps, loss, examples_per_second, stall_fraction, .. } =
            report;
        let sound = !run.is_empty()
            && client.len() <= MAX_NAME
            && run.len() <= MAX_NAME
            && (1..=steps).contains(&step)
            && loss.is_finite()
            && examples_per_second.is_finite()
            && examples_per_second >= 0.0
            && (0.0..=1.0).contains(&stall_fraction);
        if !sound {
            return false;
        }
        let known = self.0.iter().position(|own| own.client == **client && own.run == run);
        let at = known.unwrap_or_else(|| {
            self.make_room(client);
            self.0.push(Run {
                client: client.to_string(),
                run,
                step: 0,
                steps,
                examples_per_second,
                stall_fraction,
                curve: Vec::new(),
                seen: now,
                every: 1,
                reports: 0,
                seconds_ago: 0.0,
            });
            self.0.len() - 1
        });
        let own = &mut self.0[at];
        // It has begun anew under its old name.
        if step < own.step {
            (own.curve, own.every, own.reports) = (Vec::new(), 1, 0);
        }
        (own.step, own.steps, own.seen) = (step, steps, now);
        (own.examples_per_second, own.stall_fraction) = (examples_per_second, stall_fraction);
        if own.reports.is_multiple_of(own.every) {
            own.curve.push((step, loss));
        }
        own.reports += 1;
        if own.curve.len() >= POINTS {
            let mut number = 0;
            own.curve.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            own.every *= 2;
        }
        true
    }

    /// Forgets the run that was heard of the longest ago, where there are too many.
    fn make_room(&mut self, client: &Arc<str>) {
        let own = |run: &Run| run.client == **client;
        let crowded = self.0.iter().filter(|run| own(run)).count() >= MOST_OF_CLIENT;
        if !crowded && self.0.len() < MOST {
            return;
        }
        let candidates = self.0.iter().enumerate().filter(|(_, run)| !crowded || own(run));
        if let Some((oldest, _)) = candidates.min_by_key(|(_, run)| run.seen) {
            self.0.remove(oldest);
        }
    }

    /// All of them, the last heard of first.
    pub(super) fn list(&self, now: Instant) -> Vec<Run> {
        let mut all = self.0.clone();
        all.sort_by_key(|run| std::cmp::Reverse(run.seen));
        for run in &mut all {
            run.seconds_ago = now.saturating_duration_since(run.seen).as_secs_f64();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(run: &str, step: u64) -> StudentReport {
        StudentReport {
            run: run.to_owned(),
            step,
            steps: 10_000,
            loss: 1.0 / step as f64,
            examples_per_second: 100.0,
            stall_fraction: 0.5,
            client: String::new(),
        }
    }

    #[test]
    fn a_curve_is_thinned_and_keeps_its_ends() {
        let (client, now) = (Arc::from("a"), Instant::now());
        let mut runs = Runs::default();
        for step in 1..=5000 {
            assert!(runs.take(&client, report("r", step), now));
        }
        let run = &runs.list(now)[0];
        assert!(run.curve.len() < POINTS && run.curve.len() > POINTS / 4, "{}", run.curve.len());
        assert_eq!(run.curve[0].0, 1);
        assert!(run.curve.last().unwrap().0 > 4900);
        assert!(run.curve.is_sorted());
        runs.take(&client, report("r", 1), now);
        assert_eq!(runs.list(now)[0].curve.len(), 1, "it has begun anew");
    }

    #[test]
    fn what_is_no_report_is_not_taken() {
        let (client, now) = (Arc::from("a"), Instant::now());
        let mut runs = Runs::default();
        for bad in [
            report("", 1),
            report(&"x".repeat(MAX_NAME + 1), 1),
            StudentReport { step: 0, ..report("r", 1) },
            StudentReport { steps: 0, ..report("r", 1) },
            StudentReport { loss: f64::NAN, ..report("r", 1) },
            StudentReport { stall_fraction: 1.5, ..report("r", 1) },
            StudentReport { examples_per_second: -1.0, ..report("r", 1) },
        ] {
            assert!(!runs.take(&client, bad, now));
        }
        assert!(runs.list(now).is_empty());
    }

    #[test]
    fn a_client_with_many_runs_forgets_its_own() {
        let (a, b, now) = (Arc::from("a"), Arc::from("b"), Instant::now());
        let mut runs = Runs::default();
        runs.take(&b, report("b", 1), now);
        for number in 0..2 * MOST {
            let at = now + Duration::from_secs(number as u64 + 1);
            runs.take(&a, report(&number.to_string(), 1), at);
        }
        let list = runs.list(now);
        assert_eq!(list.len(), MOST_OF_CLIENT + 1);
        assert!(list.iter().any(|run| run.run == "b"));
        assert_eq!(list[0].run, (2 * MOST - 1).to_string());
    }
}
