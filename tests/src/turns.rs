//! Students that take turns on a core: rates that compare on a machine whose speed changes.
//!
//! A machine that is shared runs a minute at one speed and the next at another, by more than what is to be
//! told apart. Here one student trains for about a second while the others are stopped, then the next, in
//! rounds: what slows the machine down slows all of them.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    process::{Teacher, pause, signal},
    student::Student,
};

/// Longest time until a student has begun.
const PATIENCE: Duration = Duration::from_secs(120);
/// Until what a stopped process has written can be read.
const SETTLE: Duration = Duration::from_millis(10);

/// A student that is stopped outside of its turns. Killed when dropped.
pub struct Runner {
    student: Student,
    child: Child,
    /// Stopped with it: nothing is answered between its turns.
    teacher: Option<Teacher>,
    stall_fraction: f64,
    /// Steps a second of each turn.
    rates: Vec<f64>,
}

/// A quotient of two rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The quotient of the means.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

impl Runner {
    /// Starts a student's command, beside the teacher that is only its own, and waits until it has trained
    /// for so long and is in this epoch. It goes on until it is told to [`stop`](Self::stop).
    pub fn start(
        mut command: Command,
        student: Student,
        teacher: Option<Teacher>,
        (warm_up, epoch): (Duration, u64),
    ) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
        let child = child.expect("the student starts");
        let mut runner = Self { student, child, teacher, stall_fraction: 0.0, rates: Vec::new() };
        let began = Instant::now();
        let record = loop {
            pause(warm_up.saturating_sub(began.elapsed()).max(Duration::from_millis(100)));
            let ended = runner.child.try_wait().unwrap();
            assert!(ended.is_none(), "{:?} ended with {ended:?}", runner.student.recipe());
            let record = runner.student.last_record();
            match record {
                Some(record) if record["epoch"].as_u64() >= Some(epoch) => break record,
                _ => assert!(began.elapsed() < PATIENCE, "not in epoch {epoch} within two minutes"),
            }
        };
        runner.stall_fraction = record["stall_fraction"].as_f64().expect("it is recorded");
        runner
    }

    /// Its own teacher.
    pub fn teacher(&self) -> Option<&Teacher> {
        self.teacher.as_ref()
    }

    /// Part of the time before the turns that it waited for labels, its start with it.
    pub fn stall_fraction(&self) -> f64 {
        self.stall_fraction
    }

    /// Steps a second in its turns.
    pub fn rate(&self) -> f64 {
        self.rates.iter().sum::<f64>() / self.rates.len() as f64
    }

    /// Its rate, of another's that took its turns beside it.
    pub fn over(&self, other: &Self) -> Ratio {
        ratio(&self.rates, &other.rates)
    }

    fn take_turn(&mut self, turn: Duration, counts: bool) {
        let before = self.student.last_step();
        if let Some(teacher) = &self.teacher {
            signal(teacher.pid(), "CONT");
        }
        let began = Instant::now();
        signal(self.child.id(), "CONT");
        pause(turn);
        let seconds = self.stop_since(began);
        pause(SETTLE);
        assert!(self.child.try_wait().unwrap().is_none(), "the student ended in its turn");
        if counts {
            self.rates.push((self.student.last_step() - before) as f64 / seconds);
        }
    }

    /// Stops it, and its teacher, until its first turn.
    pub fn stop(&self) {
        self.stop_since(Instant::now());
    }

    /// Stops it and its teacher; the seconds until it stopped.
    fn stop_since(&self, began: Instant) -> f64 {
        signal(self.child.id(), "STOP");
        let seconds = began.elapsed().as_secs_f64();
        if let Some(teacher) = &self.teacher {
            signal(teacher.pid(), "STOP");
        }
        seconds
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Lets students that are stopped take turns, forth and back, and once before to warm up; `shown` is told
/// each round.
pub fn take_turns(runners: &mut [Runner], turn: Duration, rounds: usize, shown: impl Fn(usize)) {
    for round in 0..=rounds {
        shown(round);
        let mut order: Vec<usize> = (0..runners.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            runners[at].take_turn(turn, round > 0);
        }
    }
}

/// The ratio of means, and its standard error from what the pairs differ from it (Cochran, "Sampling
/// Techniques", section 2.11).
fn ratio(own: &[f64], other: &[f64]) -> Ratio {
    let mean = other.iter().sum::<f64>() / other.len() as f64;
    let value = own.iter().sum::<f64>() / own.len() as f64 / mean;
    let squares: f64 =
        own.iter().zip(other).map(|(own, other)| (own - value * other).powi(2)).sum();
    let count = own.len() as f64;
    Ratio { value, error: (squares / (count - 1.0) / count).sqrt() / mean }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_has_the_error_of_its_pairs() {
        let other = [10.0, 20.0, 30.0];
        // However the machine's speed changes.
        assert_eq!(ratio(&[9.0, 18.0, 27.0], &other), Ratio { value: 0.9, error: 0.0 });
        // Means 18 and 20; the pairs differ by 1, -2 and 1: sqrt(6 / 2 / 3) / 20.
        assert_eq!(ratio(&[10.0, 16.0, 28.0], &other), Ratio { value: 0.9, error: 0.05 });
    }
}
