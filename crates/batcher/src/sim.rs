//! A simulated device and clients, in simulated time: the same run gives the same figures.
//!
//! Each client keeps a fixed number of requests in flight, as a student that prefetches does, and
//! sends the next when one was answered. Every run is watched by [`Checked`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::invariants::{Checked, Violation};
use crate::{Config, ConfigError, Forming, Launched, Request, Time, WeightError};

/// A device that takes `per_batch + cost * per_cost` for a batch.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Time that a batch takes whatever its cost.
    pub per_batch: Time,
    /// Time for each unit of cost.
    pub per_cost: Time,
}

/// A client that keeps requests in flight.
#[derive(Clone, Debug)]
pub struct Student {
    /// Its name.
    pub name: &'static str,
    /// Its weight.
    pub weight: u32,
    /// Requests it keeps in flight.
    pub in_flight: usize,
    /// Cost of each.
    pub cost: u64,
    /// Length of each.
    pub length: u32,
}

/// What decides who rides in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// First in, first out: the scheduler is told that all requests are one client's.
    Fifo,
    /// Each request is its client's.
    FairSharing,
}

/// What one client got out of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name.
    pub name: &'static str,
    /// Time from sending to launch, of each launched request, ascending.
    pub waits: Vec<Time>,
    /// Cost launched.
    pub cost: u64,
    /// Attempts that were refused; each was made again when `retry_after` said.
    pub refused: u64,
    /// Cost launched, over this client's weighted share of all cost launched. Above 1 where other
    /// clients did not ask for all of theirs.
    pub of_fair_share: f64,
}

impl Report {
    /// Mean wait; zero where nothing was launched.
    pub fn mean_wait(&self) -> Time {
        let sum: Time = self.waits.iter().sum();
        u32::try_from(self.waits.len()).ok().and_then(|n| sum.checked_div(n)).unwrap_or_default()
    }

    /// The wait that a share `p` (0 to 1) of the requests did not exceed; zero where nothing was
    /// launched.
    pub fn wait_percentile(&self, p: f64) -> Time {
        let rank = (self.waits.len() as f64 * p).ceil() as usize;
        self.waits.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// A run that could not be made, or that broke an invariant.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The scheduler's bounds are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A student's weight is wrong.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The schedule is wrong.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// One request: whose it is, and when it was first sent.
#[derive(Clone, Copy)]
struct Sent {
    student: usize,
    at: Time,
}

struct Running {
    until: Time,
    took: Time,
    cost: u64,
    requests: Vec<Sent>,
}

struct Simulation<'a> {
    batcher: Checked<Sent>,
    device: Device,
    students: &'a [Student],
    names: Vec<Arc<str>>,
    now: Time,
    /// By time, then order.
    arrivals: BTreeMap<(Time, u64), Sent>,
    sent: u64,
    running: Option<Running>,
    reports: Vec<Report>,
}

/// Runs for `length` of simulated time, and reports on each student in order.
///
/// # Errors
///
/// The configuration is invalid, or the schedule broke an invariant.
pub fn run(
    config: Config,
    device: Device,
    students: &[Student],
    policy: Policy,
    length: Time,
) -> Result<Vec<Report>, SimError> {
    let mut batcher = Checked::new(config)?;
    let mut names: Vec<Arc<str>> = Vec::new();
    for student in students {
        match policy {
            Policy::Fifo => names.push("everyone".into()),
            Policy::FairSharing => {
                batcher.set_weight(student.name, student.weight)?;
                names.push(student.name.into());
            }
        }
    }
    let reports = students.iter().map(|student| Report {
        name: student.name,
        waits: Vec::new(),
        cost: 0,
        refused: 0,
        of_fair_share: 0.0,
    });
    let mut simulation = Simulation {
        batcher,
        device,
        students,
        names,
        now: Time::ZERO,
        arrivals: BTreeMap::new(),
        sent: 0,
        running: None,
        reports: reports.collect(),
    };
    for (index, student) in students.iter().enumerate() {
        for _ in 0..student.in_flight {
            simulation.send(Time::ZERO, Sent { student: index, at: Time::ZERO });
        }
    }
    while let Some(next) = simulation.step()? {
        if next >= length {
            break;
        }
        simulation.now = next;
    }
    Ok(simulation.report())
}

impl Simulation<'_> {
    fn send(&mut self, at: Time, request: Sent) {
        self.sent += 1;
        self.arrivals.insert((at, self.sent), request);
    }

    /// Does all that happens at `now`; returns when something happens next.
    fn step(&mut self) -> Result<Option<Time>, SimError> {
        if let Some(done) = self.running.take_if(|running| running.until <= self.now) {
            self.batcher.completed(done.cost, done.took);
            for request in done.requests {
                self.send(self.now, Sent { at: self.now, ..request });
            }
        }
        while let Some(arrival) = self.arrivals.first_entry()
            && arrival.key().0 <= self.now
        {
            let request = arrival.remove();
            self.arrive(request)?;
        }
        let mut wake = self.arrivals.first_key_value().map(|(&(at, _), _)| at);
        if self.running.is_none() {
            match self.batcher.form(self.now)?.decision {
                Forming::Launch(batch) => self.launch(batch.cost, batch.items),
                Forming::Wait(until) => wake = Some(wake.map_or(until, |wake| wake.min(until))),
                Forming::Idle => {}
            }
        }
        let done = self.running.as_ref().map(|running| running.until);
        Ok(wake.into_iter().chain(done).min())
    }

    fn arrive(&mut self, request: Sent) -> Result<(), SimError> {
        let student = &self.students[request.student];
        let admission = Request {
            client: self.names[request.student].clone(),
            cost: student.cost,
            length: student.length,
            deadline: None,
            payload: request,
        };
        if let Err((refusal, request)) = self.batcher.admit(self.now, admission)? {
            self.reports[request.student].refused += 1;
            let retry_after = refusal.retry_after().unwrap_or(Time::from_millis(10));
            self.send(self.now + retry_after, request);
        }
        Ok(())
    }

    fn launch(&mut self, cost: u64, items: Vec<Launched<Sent>>) {
        let units = u32::try_from(cost).unwrap_or(u32::MAX);
        let took = self.device.per_batch + self.device.per_cost * units;
        for item in &items {
            let report = &mut self.reports[item.payload.student];
            report.waits.push(self.now - item.payload.at);
            report.cost += item.cost;
        }
        let requests = items.into_iter().map(|item| item.payload).collect();
        self.running = Some(Running { until: self.now + took, took, cost, requests });
    }

    fn report(mut self) -> Vec<Report> {
        let all: u64 = self.reports.iter().map(|report| report.cost).sum();
        let weights: f64 = self.students.iter().map(|student| f64::from(student.weight)).sum();
        for (report, student) in self.reports.iter_mut().zip(self.students) {
            report.waits.sort_unstable();
            let share = all as f64 * f64::from(student.weight) / weights;
            report.of_fair_share = report.cost as f64 / share.max(1.0);
        }
        self.reports
    }
}
