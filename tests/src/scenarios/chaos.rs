//! `chaos`: three teachers, two students, and for minutes everything that can happen to them.
//!
//! Teachers are killed and come back, are stopped for seconds, and come back as another model; what
//! students and teachers say to each other is delayed, dropped, reset, cut off and changed. Both
//! students must end with the bytes of undisturbed runs, each step taken once, in order.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Figures, progress};
use crate::{
    models,
    process::{Teacher, UNCACHED, pause, signal, wait_within},
    proxy::{Dice, Proxy},
    student::{Student, finish_within},
};

const TEACHERS: usize = 3;
const STUDENTS: usize = 2;
/// Wide enough for the teachers to be what everybody waits for: something is always in flight.
const TEACHER: [usize; 2] = [1200, 1200];
const STUDENT: [usize; 1] = [200];
const ROWS: usize = 6400;
const BATCH: usize = 128;
/// Epochs whose time says how many the storm lasts.
const TRIAL: u64 = 10;
/// Longest time of a run.
const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) fn run(seconds: Option<f64>) -> Figures {
    let storm = Duration::from_secs_f64(seconds.unwrap_or(300.0));
    let folder = tempfile::tempdir().unwrap();
    let [model, other] = ["teacher", "other"].map(|name| folder.path().join(name));
    for (seed, model) in [(1, &model), (2, &other)] {
        std::fs::create_dir(model).unwrap();
        models::write_mlp(model, 784, &TEACHER, 10, seed);
    }
    let mut teachers: Vec<Option<Teacher>> =
        (0..TEACHERS).map(|_| Some(Teacher::start(&model, &UNCACHED))).collect();
    let addresses: Vec<SocketAddr> = teachers.iter().flatten().map(Teacher::address).collect();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let seed = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let proxies: Vec<Proxy> = (0..)
        .zip(&addresses)
        .map(|(number, address)| runtime.block_on(Proxy::start(*address, seed + number)))
        .collect();

    // How long an epoch takes through calm proxies, to make the runs as long as the storm.
    progress("chaos: a trial");
    let begun = Instant::now();
    train_all(folder.path(), "trial", &proxies, TRIAL).into_iter().for_each(drop_outcome);
    // And a fifth beyond it, for the impostor.
    let epochs = 1.2 * storm.as_secs_f64() / begun.elapsed().as_secs_f64() * TRIAL as f64;
    let epochs = epochs.ceil().max(TRIAL as f64) as u64;
    progress(&format!("chaos: {epochs} epochs, undisturbed"));
    train_all(folder.path(), "calm", &proxies, epochs).into_iter().for_each(drop_outcome);
    let expected: Vec<Vec<u8>> = weights(folder.path(), "calm", epochs);

    progress(&format!("chaos: {epochs} epochs, disturbed"));
    proxies.iter().for_each(|proxy| proxy.storm(true));
    let running = train_all(folder.path(), "storm", &proxies, epochs);
    let mut dice = Dice::new(seed);
    let mut counts = Counts::default();
    let begun = Instant::now();
    while begun.elapsed() < storm && running.iter().any(|run| !run.is_finished()) {
        let at = dice.below(TEACHERS as u64) as usize;
        match dice.below(3) {
            0 => {
                signal(teachers[at].as_ref().unwrap().pid(), "STOP");
                pause(Duration::from_secs(5));
                signal(teachers[at].as_ref().unwrap().pid(), "CONT");
                counts.stopped += 1;
            }
            _ => {
                teachers[at] = None;
                pause(Duration::from_millis(dice.below(3000)));
                let again = Teacher::start_on(addresses[at], &model, &UNCACHED);
                teachers[at] = Some(again);
                counts.killed += 1;
            }
        }
        pause(Duration::from_millis(500 + dice.below(3000)));
    }
    counts.seconds = begun.elapsed().as_secs_f64();
    // Another model at an address that is known: refused, and the runs go on with the others.
    let impostor = (running.iter().any(|run| !run.is_finished())).then(|| {
        teachers[0] = None;
        Teacher::start_on(addresses[0], &other, &[])
    });
    // Longer than any pause before another try.
    pause(Duration::from_secs(8));
    let met: Vec<bool> = running.iter().map(|run| !run.is_finished()).collect();
    proxies.iter().for_each(|proxy| proxy.storm(false));
    let outcomes: Vec<(Value, String)> =
        running.into_iter().map(|run| run.join().expect("a run that ends")).collect();
    drop(impostor);
    progress("");

    let mut figures = Figures::default();
    report(&mut figures, &counts, &proxies);
    for (number, ((outcome, log), expected)) in outcomes.iter().zip(&expected).enumerate() {
        let run = student(folder.path(), "storm", number, &proxies, epochs);
        let steps = run.steps();
        let total = outcome["total_steps"].as_u64().unwrap();
        let lost = (1..=total).filter(|step| !steps.contains(step)).count();
        let doubled = steps.len() + lost - total as usize;
        figures.add(format!("student_{number}_steps"), steps.len());
        figures.add(format!("student_{number}_lost_steps"), lost);
        figures.add(format!("student_{number}_doubled_steps"), doubled);
        figures.add(format!("student_{number}_tries_again"), count(log, "trying again"));
        figures.add(
            format!("student_{number}_changed_on_the_way"),
            count(log, "was changed on the way"),
        );
        figures.add(format!("student_{number}_asked_elsewhere"), count(log, "asking others"));
        let (again, elsewhere) = (count(log, "trying again"), count(log, "asking others"));
        figures.require(again > 20 && elsewhere > 0, format!("student {number} met no harm"));
        let in_order = steps.is_sorted();
        figures.require(lost == 0 && doubled == 0 && in_order, "a step was lost, doubled or moved");
        figures.require(run.weights() == *expected, format!("student {number} has other weights"));
        if met[number] {
            let refused = count(log, "labels of two teachers are never mixed") > 0;
            figures.require(refused, format!("student {number} did not refuse another model"));
        }
    }
    let any = met.contains(&true);
    figures.add("students_that_met_another_model", met.iter().filter(|met| **met).count());
    figures.require(any, "the runs were over before they could meet another model");
    figures
}

/// What was done to the teachers.
#[derive(Default)]
struct Counts {
    killed: u64,
    stopped: u64,
    seconds: f64,
}

fn report(figures: &mut Figures, counts: &Counts, proxies: &[Proxy]) {
    figures.add("storm_seconds", counts.seconds);
    figures.add("teachers_killed", counts.killed);
    figures.add("teachers_stopped_for_5_s", counts.stopped);
    type Counter = fn(&Proxy) -> &AtomicU64;
    let faults: [(&str, Counter); 5] = [
        ("chunks_delayed", |proxy| &proxy.faults().delayed),
        ("chunks_dropped", |proxy| &proxy.faults().dropped),
        ("connections_reset", |proxy| &proxy.faults().reset),
        ("connections_truncated", |proxy| &proxy.faults().truncated),
        ("chunks_corrupted", |proxy| &proxy.faults().corrupted),
    ];
    for (name, of) in faults {
        let sum: u64 = proxies.iter().map(|proxy| of(proxy).load(Ordering::Relaxed)).sum();
        figures.add(name, sum);
        figures.require(sum > 0, format!("no {name}"));
    }
    figures.require(counts.killed > 0 && counts.stopped > 0, "no teacher was killed, or stopped");
}

fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

fn student(folder: &Path, kind: &str, number: usize, proxies: &[Proxy], epochs: u64) -> Student {
    let endpoints: Vec<String> =
        proxies.iter().map(|proxy| format!("\"http://{}\"", proxy.address)).collect();
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = {STUDENT:?}, \
         num_labels = 10 }}\nloss = {{ alpha = 0.9, temperature = 4.0 }}\n\
         [teacher]\nkind = \"endpoints\"\nendpoints = [{}]\ntimeout_ms = 10000\nkept_bytes = 0\n\
         [train]\nepochs = {epochs}\nbatch_size = {BATCH}\neval_every = {epochs}\n",
        endpoints.join(", ")
    );
    Student::new(folder, &format!("{kind}-{number}"), ROWS, &sections)
}

/// Starts all students of a kind, each of a seed of its own; what they print, and say.
fn train_all(
    folder: &Path,
    kind: &str,
    proxies: &[Proxy],
    epochs: u64,
) -> Vec<JoinHandle<(Value, String)>> {
    let start = |number| {
        let run = student(folder, kind, number, proxies, epochs);
        let seed = format!("seed={number}");
        let mut child = run.command(&["--set", &seed]);
        let log = folder.join(format!("{kind}-{number}.log"));
        let file = std::fs::File::create(&log).unwrap();
        child.stdout(Stdio::piped()).stderr(file);
        let mut child: Child = child.spawn().expect("student-worker starts");
        thread::spawn(move || {
            let status = wait_within(&mut child, PATIENCE);
            let said = std::fs::read_to_string(log).unwrap();
            let end: Vec<&str> = said.lines().rev().take(12).collect();
            assert!(status.success(), "student-worker ended with {status}; last first: {end:#?}");
            (finish_within(child, PATIENCE), said)
        })
    };
    (0..STUDENTS).map(start).collect()
}

fn drop_outcome(run: JoinHandle<(Value, String)>) {
    drop(run.join().expect("a run that ends"));
}

fn weights(folder: &Path, kind: &str, epochs: u64) -> Vec<Vec<u8>> {
    (0..STUDENTS).map(|number| student(folder, kind, number, &[], epochs).weights()).collect()
}
