//! The catalogue of what a run measures, for `student-worker train --metrics-listen`.
//!
//! What a run leaves in its folder has more; this is what a dashboard and an alert need.

use std::time::{Duration, Instant};

use metrics::Unit;
use stillhouse_runtime::telemetry::{Kind, Metric};

use crate::run_folder::metrics::StepRecord;

/// Upper bounds for times from a millisecond to five minutes.
const SECONDS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0,
];

macro_rules! names {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(const $constant: &str = concat!("stillhouse_student_", $name);)*
    };
}

names! {
    STEPS = "steps",
    STEPS_PLANNED = "steps_planned",
    LOSS = "loss",
    EXAMPLES = "examples_per_second",
    STALL = "stall_ratio",
    WITHOUT_TEACHER = "steps_without_teacher_total",
    GRAD_NORM = "gradient_norm",
    LEARNING_RATE = "learning_rate",
    PHASE = "phase_seconds",
}

/// The losses, as the label `kind`.
const LOSSES: &[&[(&str, &str)]] =
    &[&[("kind", "total")], &[("kind", "hard")], &[("kind", "soft")]];

/// What a run spends its time with, as the label `phase`.
const PHASES: &[&[(&str, &str)]] = &[
    &[("phase", "wait")],
    &[("phase", "compute")],
    &[("phase", "evaluate")],
    &[("phase", "checkpoint")],
];

const fn metric(name: &'static str, kind: Kind, help: &'static str) -> Metric {
    Metric { name, kind, unit: Unit::Count, help, series: &[] }
}

/// Every metric of a run.
pub const CATALOGUE: &[Metric] = &[
    metric(STEPS, Kind::Gauge, "Optimisation steps done, by earlier processes too."),
    metric(STEPS_PLANNED, Kind::Gauge, "Optimisation steps in all."),
    Metric {
        name: LOSS,
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Loss of the last step, in nats: in all, with the hard labels, and the distillation term, \
               each before its weight.",
        series: LOSSES,
    },
    metric(EXAMPLES, Kind::Gauge, "Rows, or tokens, trained on per second, over the last seconds."),
    metric(
        STALL,
        Kind::Gauge,
        "Part of the time that was spent waiting for labels, since the process began.",
    ),
    metric(
        WITHOUT_TEACHER,
        Kind::Counter,
        "Steps taken on hard labels alone, because no teacher answered (teacher.on_teacher_loss).",
    ),
    metric(GRAD_NORM, Kind::Gauge, "L2 norm of the last step's gradient, before clipping."),
    metric(LEARNING_RATE, Kind::Gauge, "Learning rate of the last step."),
    Metric {
        name: PHASE,
        kind: Kind::Histogram(SECONDS),
        unit: Unit::Seconds,
        help: "What time goes to: waiting for a step's labels, computing it, evaluating, writing a \
               checkpoint.",
        series: PHASES,
    },
];

/// Takes note of a run's begin, or of where it goes on.
pub(crate) fn begin(done: u64, steps: u64) {
    metrics::gauge!(STEPS).set(done as f64);
    metrics::gauge!(STEPS_PLANNED).set(steps as f64);
}

/// Takes note of a step: how long it took, and waited of that.
pub(crate) fn step(record: &StepRecord, (took, waited): (Duration, Duration), steps: u64) {
    begin(record.step, steps);
    metrics::gauge!(LOSS, "kind" => "total").set(record.loss);
    for (kind, loss) in [("hard", record.hard_loss), ("soft", record.soft_loss)] {
        if let Some(loss) = loss {
            metrics::gauge!(LOSS, "kind" => kind).set(loss);
        }
    }
    metrics::gauge!(EXAMPLES).set(record.examples_per_second);
    metrics::gauge!(STALL).set(record.stall_fraction);
    metrics::counter!(WITHOUT_TEACHER).increment(record.without_teacher.into());
    metrics::gauge!(GRAD_NORM).set(record.grad_norm);
    metrics::gauge!(LEARNING_RATE).set(record.learning_rate);
    metrics::histogram!(PHASE, "phase" => "wait").record(waited);
    metrics::histogram!(PHASE, "phase" => "compute").record(took.saturating_sub(waited));
}

/// Something that takes time, until it is dropped.
pub(crate) struct Phase {
    name: &'static str,
    begun: Instant,
}

impl Phase {
    pub(crate) fn begin(name: &'static str) -> Self {
        Self { name, begun: Instant::now() }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        metrics::histogram!(PHASE, "phase" => self.name).record(self.begun.elapsed());
    }
}
