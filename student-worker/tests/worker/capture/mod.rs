//! Labels that are captured and replayed: the same student, without a teacher.

mod command;
mod interrupted;
mod refused;
mod replay;

use std::{
    fs,
    path::{Path, PathBuf},
};

use student_worker::{
    capture::{self, Outcome},
    progress::{Event, Observer, Silent},
    recipe::{self, Recipe},
    run_folder::Existing,
    train::Error,
};
use tokio::sync::watch;

use crate::support::{Bench, run};

fn load(bench: &Bench, name: &str, teacher: &str, set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    recipe::load(&bench.write_recipe(name, teacher), &set).unwrap()
}

fn embedded(bench: &Bench, more: &str) -> String {
    format!("[teacher]\nkind = \"embedded\"\nmodel = \"{}\"\n{more}", bench.teacher(1).display())
}

fn captured(folder: &Path, more: &str) -> String {
    format!("[teacher]\nkind = \"captured\"\ndir = \"{}\"\n{more}", folder.display())
}

fn folder(bench: &Bench, name: &str) -> PathBuf {
    bench.path().join("captures").join(name)
}

async fn capture(recipe: Recipe, folder: &Path, existing: Existing) -> Result<Outcome, Error> {
    let (_running, stop) = watch::channel(false);
    capture::run(recipe, folder, existing, Box::new(Silent), stop).await
}

/// Captures until so many requests are stored, in all.
async fn capture_some(recipe: Recipe, folder: &Path, requests: u64) -> Outcome {
    struct StopAt(u64, watch::Sender<bool>);
    impl Observer for StopAt {
        fn on(&mut self, event: &Event<'_>) {
            if let Event::Captured { requests, .. } = event
                && *requests == self.0
            {
                self.1.send_replace(true);
            }
        }
    }
    let (stop, stopping) = watch::channel(false);
    let at = Box::new(StopAt(requests, stop));
    capture::run(recipe, folder, Existing::Resume, at, stopping).await.unwrap()
}

/// Every file of a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Captures the labels of a recipe, and trains it with its teacher and with the capture.
async fn both_ways(bench: &Bench, name: &str, more: &str, set: &[&str]) -> Outcome {
    let folder = folder(bench, name);
    let live = embedded(bench, more);
    let outcome = capture(load(bench, name, &live, set), &folder, Existing::Refuse).await.unwrap();
    assert!(outcome.finished, "{name}");
    run(load(bench, name, &live, set), Existing::Refuse).await.unwrap();
    let again = format!("{name}-again");
    // The encoding is the capture's.
    let replayed = run(load(bench, &again, &captured(&folder, ""), set), Existing::Refuse).await;
    assert_eq!(replayed.unwrap().teacher, outcome.teacher, "{name}");
    assert!(bench.weights(name) == bench.weights(&again), "{name}: other weights");
    outcome
}

const SCHEDULE: [&str; 3] = [
    "loss.temperature=8.0",
    "loss_schedule.start_epoch=2",
    "loss_schedule.temperature={kind=\"steps\", steps=[{epoch=3, value=2.7}, {epoch=4, value=8.0}]}",
];
