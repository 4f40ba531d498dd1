//! How a run is shown. The training loop knows no screen: it tells an [`Observer`] what happened.
//!
//! * [`Bars`]: live bars, for a terminal.
//! * [`Lines`]: a line every few seconds, for a log.
//! * [`Several`]: runs side by side, as either of these.
//! * [`Silent`]: nothing, for programs that read the result only.

mod bars;
mod lines;

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    path::Path,
};

pub use bars::Bars;
use indicatif::MultiProgress;
pub use lines::Lines;

use crate::run_folder::metrics::{StepRecord, TestRecord, ValidationRecord};

/// What happened in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A run starts, or goes on.
    Started {
        /// Its name.
        name: &'a str,
        /// Steps done before, by the run that this one goes on from.
        done: u64,
        /// Steps in all.
        steps: u64,
        /// Rows, or sequences, to train on.
        rows: usize,
        /// What is counted each second.
        unit: &'static str,
        /// Whether labels come from a teacher, so that waiting for them is of interest.
        teacher: bool,
    },
    /// A step was done.
    Step(&'a StepRecord),
    /// The student was tested.
    Tested(&'a TestRecord),
    /// The student was validated.
    Validated(&'a ValidationRecord),
    /// A checkpoint was written.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Its folder.
        folder: &'a Path,
    },
    /// Labels are captured, from the start or on.
    CaptureStarted {
        /// The recipe's name.
        name: &'a str,
        /// Requests that are answered and stored already.
        done: u64,
        /// Requests in all.
        requests: u64,
        /// Labels of rows in all.
        rows: usize,
    },
    /// The labels of a request were stored.
    Captured {
        /// Requests done.
        requests: u64,
        /// Labels of rows that this process stored.
        rows: usize,
    },
    /// The run or the capture ends, done or not.
    Ended {
        /// Steps or requests done.
        step: u64,
    },
}

/// Something that shows a run. It cannot fail: what cannot be shown must not end a run.
pub trait Observer: Send {
    /// Takes note of what happened.
    fn on(&mut self, event: &Event<'_>);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: &Event<'_>) {}
}

/// What suits the process: nothing where only the result is wanted, bars where standard error is
/// a terminal, lines elsewhere.
pub fn observer(silent: bool) -> Box<dyn Observer> {
    if silent {
        Box::new(Silent)
    } else if stderr().is_terminal() {
        Box::new(Bars::new())
    } else {
        Box::new(Lines::new(stderr()))
    }
}

/// Runs side by side: a bar for each that is under way, or a line for each every half minute.
#[derive(Clone, Debug)]
pub enum Several {
    /// Nothing.
    Silent,
    /// For a terminal.
    Bars(MultiProgress),
    /// For a log.
    Lines,
}

impl Several {
    /// What suits the process, as [`observer`].
    pub fn new(silent: bool) -> Self {
        match (silent, stderr().is_terminal()) {
            (true, _) => Self::Silent,
            (false, true) => Self::Bars(MultiProgress::new()),
            (false, false) => Self::Lines,
        }
    }

    /// For one of the runs.
    pub fn observer(&self) -> Box<dyn Observer> {
        match self {
            Self::Silent => Box::new(Silent),
            Self::Bars(bars) => Box::new(Bars::among(bars.clone())),
            Self::Lines => Box::new(Lines::among_others(stderr())),
        }
    }

    /// Tells something of all of them.
    pub fn say(&self, words: &str) {
        // Nobody may be listening any more; that must not end the runs.
        let _ = match self {
            Self::Silent => Ok(()),
            Self::Bars(bars) => bars.println(words),
            Self::Lines => writeln!(stderr(), "{words}"),
        };
    }
}

/// What is said of a step that had to do without its teacher.
fn without_teacher(step: &StepRecord) -> &'static str {
    if step.without_teacher { ", NO TEACHER: hard labels alone" } else { "" }
}

/// What is said of a validation, in words.
fn validation_words(validation: &ValidationRecord) -> String {
    let ValidationRecord { step, teacher_kl, teacher_agreement_percent, .. } = validation;
    let mut words = format!("step {step}: {}", validation.words());
    if let (Some(kl), Some(part)) = (teacher_kl, teacher_agreement_percent) {
        words += &format!("; KL from the teacher {kl:.4}, {part:.1} % of its first choices");
    }
    words
}

/// What is said of a test, in words.
fn test_words(test: &TestRecord) -> String {
    format!(
        "epoch {}: test accuracy {:.2} % ({} of {} wrong), test loss {:.4}",
        test.epoch,
        test.accuracy_percent(),
        test.errors,
        test.rows,
        test.loss,
    )
}
