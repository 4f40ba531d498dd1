//! What `acceptance` measures. Each scenario runs real processes and returns its figures.

mod chaos;
mod decouple;
mod label_gradients;
mod overhead;
mod overload;
pub mod security;
mod share;
pub mod simulate;
mod soak;

use std::{io::IsTerminal as _, path::PathBuf};

use serde_json::{Map, Value};

/// A scenario.
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&Options) -> Figures,
}

/// What a scenario is told.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long each measured part runs, or each student trains where they take turns; absent: the
    /// scenario's own time.
    pub seconds: Option<f64>,
    /// Only this part.
    pub part: Option<String>,
    /// A teacher's folder.
    pub teacher: Option<PathBuf>,
    /// A student's folder.
    pub student: Option<PathBuf>,
    /// A recipe, for its text.
    pub recipe: Option<PathBuf>,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "overhead",
        about: "what the gRPC teacher costs a student, an encoding, and the wire",
        run: |options| overhead::run(options.seconds, options.part.as_deref()),
    },
    Scenario {
        name: "overload",
        about: "500 streaming clients at ten times the queue's bound",
        run: |options| overload::run(options.seconds, options.part.as_deref()),
    },
    Scenario {
        name: "chaos",
        about: "3 teachers that die, stop and change behind a network that does harm: the same bytes",
        run: |options| chaos::run(options.seconds),
    },
    Scenario {
        name: "decouple",
        about: "a student on one core and its teacher on the other, beside plain training",
        run: |options| decouple::run(options.seconds, options.part.as_deref()),
    },
    Scenario {
        name: "share",
        about: "8 students of one teacher: one forward pass for each row, and none in the second epoch",
        run: |options| share::run(options.seconds, options.part.as_deref()),
    },
    Scenario {
        name: "security",
        about: "who is let in, what each may ask for, and certificates that change under load",
        run: |options| security::run(options.seconds),
    },
    Scenario {
        name: "simulate",
        about: "a thousand seeds of faults on a simulated network: each label once, in order, bit for bit",
        run: |options| simulate::run(options.part.as_deref()),
    },
    Scenario {
        name: "soak",
        about: "twenty minutes of everything that clients do: whether a process grows",
        run: |options| soak::run(options.seconds),
    },
    Scenario {
        name: "label-gradients",
        about: "bytes of a language model's labels, and how far their gradient is from dense ones'",
        run: label_gradients::run,
    },
];

/// Named figures, in the order they were measured, and whether every requirement held.
#[derive(Default)]
pub struct Figures {
    values: Vec<(String, Value)>,
    failures: Vec<String>,
}

impl Figures {
    /// Adds a figure.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.values.push((name.into(), value.into()));
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Notes a requirement that must hold.
    pub fn require(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.failures.push(what.into());
        }
    }

    /// Whether every requirement held.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// One JSON object.
    pub fn json(&self) -> Value {
        let mut values: Map<String, Value> = self.values.iter().cloned().collect();
        values.insert("passed".to_owned(), self.passed().into());
        values.insert("failures".to_owned(), self.failures.clone().into());
        Value::Object(values)
    }

    /// A line each.
    pub fn text(&self) -> String {
        let width = self.values.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in &self.values {
            let value = match value {
                Value::Number(number) if number.is_f64() => {
                    let number = number.as_f64().unwrap_or(f64::NAN);
                    if number.abs() >= 1000.0 {
                        format!("{number:.0}")
                    } else {
                        format!("{number:.3}")
                    }
                }
                other => other.to_string(),
            };
            text += &format!("{name:width$}  {value}\n");
        }
        for failure in &self.failures {
            text += &format!("FAILED: {failure}\n");
        }
        text
    }
}

/// Shows what a scenario is at: one line that changes on a terminal, nothing elsewhere (a scenario's
/// parts are short, and its figures come at the end).
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K{text}");
    }
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    }
}
