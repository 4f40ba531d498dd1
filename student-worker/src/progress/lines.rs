//! Plain lines for a log.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use super::{Event, Observer, test_words};
use crate::run_folder::metrics::StepRecord;

/// Time between two lines about steps.
const EVERY: Duration = Duration::from_secs(5);

/// A line at the start, every few seconds, at every test and checkpoint, and at the end.
#[derive(Debug)]
pub struct Lines<W> {
    to: W,
    name: String,
    steps: u64,
    done_before: u64,
    teacher: bool,
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
            steps: 0,
            done_before: 0,
            teacher: false,
            started: now,
            last: now,
        }
    }

    fn say(&mut self, words: &str) {
        // Nobody may be listening any more; that must not end the run.
        let _ = writeln!(self.to, "{}: {words}", self.name);
    }

    fn step_words(&self, step: &StepRecord, elapsed: Duration) -> String {
        let mut words = format!(
            "step {} of {}, loss {:.4}, {:.0} examples/s",
            step.step, self.steps, step.loss, step.examples_per_second
        );
        if self.teacher {
            words += &format!(", {:.1} % of the time waiting", 100.0 * step.stall_fraction);
        }
        let done = step.step.saturating_sub(self.done_before).max(1);
        let left = self.steps.saturating_sub(step.step);
        let seconds = elapsed.as_secs_f64() * left as f64 / done as f64;
        words + &format!(", {seconds:.0} s left")
    }
}

impl<W: Write + Send> Observer for Lines<W> {
    fn on(&mut self, event: &Event<'_>) {
        match *event {
            Event::Started { name, done, steps, rows, teacher } => {
                self.name = name.to_owned();
                (self.steps, self.done_before, self.teacher) = (steps, done, teacher);
                (self.started, self.last) = (Instant::now(), Instant::now());
                let from = if done == 0 { String::new() } else { format!(", going on at {done}") };
                self.say(&format!("{steps} steps over {rows} rows{from}"));
            }
            Event::Step(step) => {
                if self.last.elapsed() >= EVERY {
                    self.last = Instant::now();
                    let words = self.step_words(step, self.started.elapsed());
                    self.say(&words);
                }
            }
            Event::Tested(test) => self.say(&test_words(test)),
            Event::Checkpoint { step, folder } => {
                self.say(&format!("checkpoint at step {step}: {}", folder.display()));
            }
            Event::Ended { step } => {
                self.say(&format!("ended after step {step} of {}", self.steps));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::metrics::TestRecord;

    #[test]
    fn a_run_reads_as_lines() {
        let mut lines = Lines::new(Vec::new());
        let started =
            Event::Started { name: "mnist", done: 100, steps: 300, rows: 60_000, teacher: true };
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
    fn a_step_tells_speed_waiting_and_time_left() {
        let mut lines = Lines::new(Vec::new());
        lines.on(&Event::Started { name: "m", done: 100, steps: 300, rows: 8, teacher: true });
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
            stall_fraction: 0.031,
        };
        let words = lines.step_words(&step, Duration::from_secs(10));
        assert_eq!(
            words,
            "step 200 of 300, loss 0.5000, 8000 examples/s, 3.1 % of the time waiting, 10 s left"
        );
    }
}
