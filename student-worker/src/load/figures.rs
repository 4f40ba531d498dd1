//! What a load came to.

use std::{fmt, time::Duration};

use serde::Serialize;
use tonic::Status;

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Labelled {
        /// Of the answer.
        bytes: u64,
        /// Labels that were not computed for it.
        cached: u64,
        /// Microseconds in the queue, computing and encoding.
        server: [u64; 3],
    },
    /// The teacher asked to come back later.
    Refused,
    Failed,
    /// There was no answer.
    Missing,
}

/// Answers of one client, or of all.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Requests that were due in the time that is measured.
    pub(super) due: u64,
    /// Of these, those that the stream did not take.
    pub(super) unsent: u64,
    /// Seconds from when a request was due, of all but those that were refused or not sent.
    latencies: Vec<f32>,
    refused: u64,
    failed: u64,
    missing: u64,
    bytes: u64,
    cached: u64,
    server: [u64; 3],
    /// Requests that each client got labels for.
    labelled: Vec<u64>,
    /// Answers with labels that came in the time that is measured, whenever they were due.
    arrived: u64,
    /// The longest that the client itself was late with a request.
    pub(super) lag: Duration,
    /// Why a stream ended early.
    ended: Option<String>,
}

impl Answers {
    pub(super) fn of_client() -> Self {
        Self { labelled: vec![0], ..Self::default() }
    }

    /// Counts an answer that came in the time that is measured.
    pub(super) fn arrived(&mut self, outcome: &Outcome) {
        self.arrived += u64::from(matches!(outcome, Outcome::Labelled { .. }));
    }

    pub(super) fn record(&mut self, took: Duration, outcome: Outcome) {
        match outcome {
            Outcome::Labelled { bytes, cached, server } => {
                self.bytes += bytes;
                self.cached += cached;
                self.server.iter_mut().zip(server).for_each(|(sum, own)| *sum += own);
                if let Some(own) = self.labelled.last_mut() {
                    *own += 1;
                }
                self.latencies.push(took.as_secs_f32());
            }
            Outcome::Missing => {
                self.missing += 1;
                self.latencies.push(took.as_secs_f32());
            }
            Outcome::Refused => self.refused += 1,
            // Too late for the teacher is late, too.
            Outcome::Failed => {
                self.failed += 1;
                self.latencies.push(took.as_secs_f32());
            }
        }
    }

    pub(super) fn ended(&mut self, status: &Status) {
        self.ended = Some(format!("{:?}: {}", status.code(), status.message()));
    }

    pub(super) fn add(&mut self, other: Self) {
        self.due += other.due;
        self.unsent += other.unsent;
        self.latencies.extend(other.latencies);
        self.refused += other.refused;
        self.failed += other.failed;
        self.missing += other.missing;
        self.bytes += other.bytes;
        self.cached += other.cached;
        self.server.iter_mut().zip(other.server).for_each(|(sum, own)| *sum += own);
        self.labelled.extend(other.labelled);
        self.arrived += other.arrived;
        self.lag = self.lag.max(other.lag);
        self.ended = self.ended.take().or(other.ended);
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// Requests a second that were asked for, and were due.
    rate: f64,
    due_per_second: f64,
    /// The longest that this process was late with a request: far above a millisecond, it is itself what
    /// is too slow.
    client_lag_ms: f64,
    /// Labels that came, a second; of a language model, one for each token.
    labels_per_second: f64,
    /// From when a request was due to its answer, in milliseconds. What was never answered counts with
    /// the time until it was given up.
    latency_ms: Latencies,
    requests: u64,
    labelled: u64,
    /// RESOURCE_EXHAUSTED; not asked for again.
    refused: u64,
    failed: u64,
    unanswered: u64,
    /// Not even sent: the connection did not take them.
    unsent: u64,
    /// Bytes of an answer, for each row.
    bytes_per_row: f64,
    /// CPU time for each row that was labelled, in microseconds.
    client_cpu_us_per_row: Option<f64>,
    teacher_cpu_us_per_row: Option<f64>,
    /// Of the answers' own times, the means, in milliseconds.
    queue_ms: f64,
    compute_ms: f64,
    encode_ms: f64,
    /// Part of the rows that were not computed for the request that asked.
    cached_fraction: f64,
    /// Jain's index over what clients got: 1 where all got alike, 1 / clients where one got everything.
    fairness: f64,
    /// Why a stream ended before its time.
    ended: Option<String>,
}

/// Quantiles, in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Latencies {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Figures {
    pub(super) fn new(
        all: Answers,
        rate: f64,
        (rows, labels_per_row): (u32, u32),
        took: Duration,
        (own, teacher): (Option<Duration>, Option<Duration>),
    ) -> Self {
        let labelled: u64 = all.labelled.iter().sum();
        let answered = (labelled * u64::from(rows)) as f64;
        // What was done in that time, and not what was due in it.
        let done = (all.arrived * u64::from(rows)) as f64;
        let each = |sum: u64| sum as f64 / 1e3 / labelled.max(1) as f64;
        let per_row = |time: Duration| (done > 0.0).then(|| time.as_secs_f64() * 1e6 / done);
        Self {
            rate,
            due_per_second: all.due as f64 / took.as_secs_f64(),
            client_lag_ms: all.lag.as_secs_f64() * 1e3,
            labels_per_second: done * f64::from(labels_per_row) / took.as_secs_f64(),
            latency_ms: Latencies::of(all.latencies),
            requests: all.due,
            labelled,
            refused: all.refused,
            failed: all.failed,
            unanswered: all.missing,
            unsent: all.unsent,
            bytes_per_row: all.bytes as f64 / answered.max(1.0),
            client_cpu_us_per_row: own.and_then(per_row),
            teacher_cpu_us_per_row: teacher.and_then(per_row),
            queue_ms: each(all.server[0]),
            compute_ms: each(all.server[1]),
            encode_ms: each(all.server[2]),
            cached_fraction: all.cached as f64 / (answered * f64::from(labels_per_row)).max(1.0),
            fairness: fairness(&all.labelled),
            ended: all.ended,
        }
    }

    /// Whether anything was due, and all of it was answered with labels.
    pub(crate) fn all_labelled(&self) -> bool {
        self.requests > 0 && self.labelled == self.requests && self.ended.is_none()
    }
}

impl Latencies {
    fn of(mut seconds: Vec<f32>) -> Self {
        seconds.sort_unstable_by(f32::total_cmp);
        let at = |part: f64| {
            // The smallest that so many are no larger than.
            let rank = (part * seconds.len() as f64).ceil() as usize;
            seconds.get(rank.max(1) - 1).map_or(0.0, |&value| f64::from(value) * 1e3)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

/// R. Jain, D. Chiu and W. Hawe, "A Quantitative Measure of Fairness and Discrimination", 1984.
fn fairness(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|&share| share as f64).sum();
    let squares: f64 = shares.iter().map(|&share| (share as f64).powi(2)).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

impl fmt::Display for Figures {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latencies { p50, p90, p99, p999, max } = self.latency_ms;
        writeln!(out, "labels per second   {:.0}", self.labels_per_second)?;
        writeln!(
            out,
            "requests per second {:.1} due, {:.1} asked for: {} labelled, {} refused, {} failed, {} \
             unanswered, {} not sent",
            self.due_per_second,
            self.rate,
            self.labelled,
            self.refused,
            self.failed,
            self.unanswered,
            self.unsent
        )?;
        writeln!(
            out,
            "latency             p50 {p50:.2} ms, p90 {p90:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max \
             {max:.2}, from when each was due; sent at most {:.2} ms late",
            self.client_lag_ms
        )?;
        writeln!(
            out,
            "at the teacher      queue {:.2} ms, compute {:.2}, encode {:.2}; {:.0} % of rows cached or \
             shared",
            self.queue_ms,
            self.compute_ms,
            self.encode_ms,
            100.0 * self.cached_fraction
        )?;
        write!(out, "a row               {:.1} bytes", self.bytes_per_row)?;
        for (whose, time) in
            [("client", self.client_cpu_us_per_row), ("teacher", self.teacher_cpu_us_per_row)]
        {
            if let Some(time) = time {
                write!(out, ", {time:.2} us of CPU of the {whose}")?;
            }
        }
        write!(out, "\nfairness            {:.3} (Jain's index over clients)", self.fairness)?;
        match &self.ended {
            Some(why) => write!(out, "\na stream ended early: {why}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_values_themselves() {
        let latencies = Latencies::of((1..=1000).rev().map(|ms| ms as f32 / 1e3).collect());
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} is not {b}");
        close(latencies.p50, 500.0);
        close(latencies.p90, 900.0);
        close(latencies.p99, 990.0);
        close(latencies.p999, 999.0);
        close(latencies.max, 1000.0);
        close(Latencies::of(vec![0.002]).p50, 2.0);
        close(Latencies::of(Vec::new()).max, 0.0);
    }

    #[test]
    fn fairness_is_one_for_equals_and_a_part_for_one() {
        assert!((fairness(&[5, 5, 5, 5]) - 1.0).abs() < 1e-12);
        assert!((fairness(&[7, 0, 0, 0]) - 0.25).abs() < 1e-12);
        assert!((fairness(&[]) - 1.0).abs() < 1e-12);
    }
}
