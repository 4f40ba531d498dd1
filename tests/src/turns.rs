//! Students that take turns on a core: rates that compare on a machine whose speed changes.
//!
//! A machine that is shared runs a minute at one speed and the next at another, by more than what is to be
//! told apart. Here one student trains for about a second while the others are stopped, then the next, in
//! rounds: what slows the machine down slows all of them.
//!
//! A virtual machine has its cores for a part of the time only, often for less of it the more of them are
//! busy. The kernel tells ("steal"), and so do the figures; rates are by the clock all the same, since steal
//! has the time in it that it takes to wake a core whose student waited for labels.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use crate::{
    process::{TICKS, Teacher, on_core, pause, signal},
    student::Student,
};

/// Longest time until a student has begun.
const PATIENCE: Duration = Duration::from_secs(120);
/// Until what a stopped process has written can be read.
const SETTLE: Duration = Duration::from_millis(10);

/// A student on a given core that is stopped outside of its turns. Killed when dropped.
pub struct Runner {
    student: Student,
    core: usize,
    child: Child,
    /// Stopped with it: nothing is answered between its turns.
    teacher: Option<Teacher>,
    stall_fraction: f64,
    turns: Vec<Turn>,
}

/// What a student did in one.
#[derive(Debug)]
struct Turn {
    steps: f64,
    seconds: f64,
    /// Seconds of them in which its core was not there.
    stolen: f64,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.steps / self.seconds
    }
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
    /// Starts a student on a core, beside the teacher that is only its own, and waits until it has trained
    /// for so long and is in this epoch. It goes on until it is told to [`stop`](Self::stop).
    pub fn start(
        core: usize,
        student: Student,
        teacher: Option<Teacher>,
        (warm_up, epoch): (Duration, u64),
    ) -> Self {
        let mut command = on_core(core, &student.command(&[]));
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
        let child = child.expect("the student starts");
        let (stall_fraction, turns) = (0.0, Vec::new());
        let mut runner = Self { student, core, child, teacher, stall_fraction, turns };
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
        self.turns.iter().map(Turn::rate).sum::<f64>() / self.turns.len() as f64
    }

    /// Its rate, of the mean of others that took their turns beside it.
    pub fn over(&self, others: &[&Self]) -> Ratio {
        ratio(&rates(&[self]), &rates(others))
    }

    /// Part of its turns in which its core was not there; 0 where nobody counts that.
    pub fn stolen_fraction(&self) -> f64 {
        let sum = |part: fn(&Turn) -> f64| self.turns.iter().map(part).sum::<f64>();
        sum(|turn| turn.stolen) / sum(|turn| turn.seconds)
    }

    fn take_turn(&mut self, turn: Duration, counts: bool) {
        let before = self.student.last_step();
        if let Some(teacher) = &self.teacher {
            signal(teacher.pid(), "CONT");
        }
        let (began, stolen_before) = (Instant::now(), stolen_of(self.core));
        signal(self.child.id(), "CONT");
        pause(turn);
        let (seconds, stolen) = self.stop_since(began);
        pause(SETTLE);
        assert!(self.child.try_wait().unwrap().is_none(), "the student ended in its turn");
        if counts {
            let steps = (self.student.last_step() - before) as f64;
            self.turns.push(Turn { steps, seconds, stolen: stolen - stolen_before });
        }
    }

    /// Stops it, and its teacher, until its first turn.
    pub fn stop(&self) {
        self.stop_since(Instant::now());
    }

    /// Stops it and its teacher; the seconds until it stopped, and what [`stolen_of`] its core was then.
    fn stop_since(&self, began: Instant) -> (f64, f64) {
        signal(self.child.id(), "STOP");
        let stopped = (began.elapsed().as_secs_f64(), stolen_of(self.core));
        if let Some(teacher) = &self.teacher {
            signal(teacher.pid(), "STOP");
        }
        stopped
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

/// Of each round, the mean of their rates in it.
fn rates(runners: &[&Runner]) -> Vec<f64> {
    let rounds = runners.iter().map(|runner| runner.turns.len()).min().unwrap_or(0);
    let of = |round: usize| runners.iter().map(|runner| runner.turns[round].rate()).sum::<f64>();
    (0..rounds).map(|round| of(round) / runners.len() as f64).collect()
}

/// Seconds since the start of the machine in which a core was not there for it; 0 where nobody counts them.
fn stolen_of(core: usize) -> f64 {
    stolen(&std::fs::read_to_string("/proc/stat").unwrap_or_default(), core)
}

/// The same, as `/proc/stat` has it (proc_stat(5)).
fn stolen(stat: &str, core: usize) -> f64 {
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name));
    let ticks = line.and_then(|line| line.split_whitespace().nth(7));
    ticks.and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0) / TICKS
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
    fn stolen_time_is_of_the_core() {
        let stat = "cpu  9 9 9 9 9 9 9 99 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 1 2 3 4 5 6 7 150 9 10\n\
                    cpu10 1 2 3 4 5 6 7 11 9 10\nintr 5\n";
        assert_eq!([0, 1, 10, 2].map(|core| stolen(stat, core)), [0.08, 1.5, 0.11, 0.0]);
    }

    #[test]
    fn a_ratio_has_the_error_of_its_pairs() {
        let other = [10.0, 20.0, 30.0];
        // However the machine's speed changes.
        assert_eq!(ratio(&[9.0, 18.0, 27.0], &other), Ratio { value: 0.9, error: 0.0 });
        // Means 18 and 20; the pairs differ by 1, -2 and 1: sqrt(6 / 2 / 3) / 20.
        assert_eq!(ratio(&[10.0, 16.0, 28.0], &other), Ratio { value: 0.9, error: 0.05 });
    }
}
