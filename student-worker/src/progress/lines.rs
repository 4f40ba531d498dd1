//! Plain lines for a log.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use super::{Event, Observer, test_words, validation_words, without_teacher};
use crate::run_folder::metrics::StepRecord;

/// Time between two lines about steps.
const EVERY: Duration = Duration::from_secs(5);
/// The same, for runs among others.
const EVERY_AMONG_OTHERS: Duration = Duration::from_secs(30);

/// A line at the start, every few seconds, at every test and checkpoint, and at the end.
#[derive(Debug)]
pub struct Lines<W> {
    to: W,
    name: String,
    /// What is counted: steps, or requests.
    unit: &'static str,
    /// What is counted each second.
    speed_unit: &'static str,
    steps: u64,
    done_before: u64,
    teacher: bool,
    /// Only steps are told, and less often.
    among_others: bool,
    started: Instant,
    last: Instant,
}

impl<W: Write + Send> Lines<W> {
    /// Lines to a writer.
    pub fn new(to: W) -> Self {
        let now = Instant::now();
        Self {
            to,
            name: String::new(),
            unit: "step",
            speed_unit: "examples",
            steps: 0,
            done_before: 0,
            teacher: false,
            among_others: false,
            started: now,
            last: now,
        }
    }

    /// Lines about steps alone, and fewer of them, for a run among others.
    pub(super) fn among_others(to: W) -> Self {
        Self { among_others: true, ..Self::new(to) }
    }

    /// For what is told beside steps.
    fn remark(&mut self, words: &str) {
        if !self.among_others {
            self.say(words);
        }
    }

    fn say(&mut self, words: &str) {
        // Nobody may be listening any more; that must not end the run.
        let _ = writeln!(self.to, "{}: {words}", self.name);
    }

    fn step_words(&self, step: &StepRecord, elapsed: Duration) -> String {
        let mut words = format!(
            "step {} of {}, loss {:.4}, {:.0} {}/s",
            step.step, self.steps, step.loss, step.examples_per_second, self.speed_unit
        );
        if self.teacher {
            words += &format!(", {:.1} % of the time waiting", 100.0 * step.stall_fraction);
            words += without_teacher(step);
        }
        words + &self.left_words(step.step, elapsed)
    }

    fn capture_words(&self, requests: u64, rows: usize, elapsed: Duration) -> String {
        let speed = rows as f64 / elapsed.as_secs_f64().max(1e-9);
        let left = self.left_words(requests, elapsed);
        format!("request {requests} of {}, {speed:.0} labels/s{left}", self.steps)
    }

    fn left_words(&self, step: u64, elapsed: Duration) -> String {
        let done = step.saturating_sub(self.done_before).max(1);
        let left = self.steps.saturating_sub(step);
        let seconds = elapsed.as_secs_f64() * left as f64 / done as f64;
        format!(", {seconds:.0} s left")
    }

    fn start(&mut self, name: &str, unit: &'static str, done: u64, steps: u64) {
        self.name = name.to_owned();
        (self.unit, self.steps, self.done_before) = (unit, steps, done);
        (self.started, self.last) = (Instant::now(), Instant::now());
    }

    /// Whether it is time for the next line.
    fn is_due(&mut self) -> bool {
        let every = if self.among_others { EVERY_AMONG_OTHERS } else { EVERY };
        let due = self.last.elapsed() >= every;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

impl<W: Write + Send> Observer for Lines<W> {
    fn on(&mut self, event: &Event<'_>) {
        match *event {
            Event::Started { name, done, steps, rows, unit, teacher } => {
                self.start(name, "step", done, steps);
                self.speed_unit = unit;
                self.teacher = teacher;
                let from = going_on(done);
                let what = if unit == "tokens" { "sequences" } else { "rows" };
                self.remark(&format!("{steps} steps over {rows} {what}{from}"));
            }
            Event::Step(step) => {
                if self.is_due() {
                    let words = self.step_words(step, self.started.elapsed());
                    self.say(&words);
                }
            }
            Event::Tested(test) => self.remark(&test_words(test)),
            Event::Validated(validation) => self.remark(&validation_words(validation)),
            Event::Checkpoint { step, folder } => {
                self.remark(&format!("checkpoint at step {step}: {}", folder.display()));
            }
            Event::CaptureStarted { name, done, requests, rows } => {
                self.start(name, "request", done, requests);
                let from = going_on(done);
                self.remark(&format!("{requests} requests for {rows} labels{from}"));
            }
            Event::Captured { requests, rows } => {
                if self.is_due() {
                    let words = self.capture_words(requests, rows, self.started.elapsed());
                    self.say(&words);
                }
            }
            Event::Ended { step } => {
                self.remark(&format!("ended after {} {step} of {}", self.unit, self.steps));
            }
        }
    }
}

fn going_on(done: u64) -> String {
    if done == 0 { String::new() } else { format!(", going on at {done}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::metrics::TestRecord;

    #[test]
    fn a_run_reads_as_lines() {
        let mut lines = Lines::new(Vec::new());
        let started = Event::Started {
            name: "mnist",
            done: 100,
            steps: 300,
            rows: 60_000,
            unit: "examples",
            teacher: true,
        };
        lines.on(&started);
        let test = TestRecord { step: 300, epoch: 3, loss: 0.25, errors: 150, rows: 10_000 };
        lines.on(&Event::Tested(&test));
        lines.on(&Event::Ended { step: 300 });
        let text = String::from_utf8(lines.to).unwrap();
        assert_eq!(
            text,
            "mnist: 300 steps over 60000 rows, going on at 100\n\
             mnist: epoch 3: test accuracy 98.50 % (150 of 10000 wrong), test loss 0.2500\n\
             mnist: ended after step 300 of 300\n"
        );
    }

    #[test]
    fn a_capture_reads_as_lines() {
        let mut lines = Lines::new(Vec::new());
        lines.on(&Event::CaptureStarted { name: "m", done: 100, requests: 300, rows: 9000 });
        let words = lines.capture_words(200, 3000, Duration::from_secs(10));
        assert_eq!(words, "request 200 of 300, 300 labels/s, 10 s left");
        lines.on(&Event::Ended { step: 300 });
        let text = String::from_utf8(lines.to).unwrap();
        let expected = "m: 300 requests for 9000 labels, going on at 100\n\
                        m: ended after request 300 of 300\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_run_among_others_is_told_by_its_steps_alone() {
        let mut lines = Lines::among_others(Vec::new());
        lines.on(&Event::Started {
            name: "m",
            done: 0,
            steps: 2,
            rows: 8,
            unit: "examples",
            teacher: false,
        });
        lines.on(&Event::Ended { step: 2 });
        assert!(lines.to.is_empty());
        lines.say("step 1 of 2");
        assert_eq!(lines.to, b"m: step 1 of 2\n");
    }

    #[test]
    fn a_step_tells_speed_waiting_and_time_left() {
        let mut lines = Lines::new(Vec::new());
        lines.on(&Event::Started {
            name: "m",
            done: 100,
            steps: 300,
            rows: 8,
            unit: "examples",
            teacher: true,
        });
        let step = StepRecord {
            step: 200,
            epoch: 1,
            loss: 0.5,
            hard_loss: None,
            alpha: None,
            temperature: None,
            soft_loss: None,
            grad_norm: 1.0,
            learning_rate: 0.1,
            examples_per_second: 8000.0,
            without_teacher: false,
            stall_fraction: 0.031,
        };
        let words = lines.step_words(&step, Duration::from_secs(10));
        assert_eq!(
            words,
            "step 200 of 300, loss 0.5000, 8000 examples/s, 3.1 % of the time waiting, 10 s left"
        );
    }
}
