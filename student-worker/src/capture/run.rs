//! `student-worker capture`: from a recipe to a folder of labels.

use std::{
    path::{Path, PathBuf, absolute},
    time::Instant,
};

use serde::Serialize;
use tokio::{runtime::Handle, sync::watch, task::spawn_blocking};

use super::{
    CaptureError,
    files::{LABELS, verify},
    folder::{Claim, Folder},
    manifest::{CapturedTeacher, Manifest},
    requests::Requests,
};
use crate::{
    label_client::{ClientError, OrderedLabels},
    progress::{Event, Observer},
    recipe::{Invalid, Recipe, RecipeError, TeacherSection, identity::hex, teacher::TeacherKind},
    run_folder::{Existing, RunError},
    train::{Error, Plan, Teacher, unless},
};

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The recipe's name.
    pub name: String,
    /// Whether all labels are there; otherwise it was told to stop.
    pub finished: bool,
    /// Requests that are answered and stored.
    pub requests: u64,
    /// Requests in all.
    pub total_requests: u64,
    /// Rows of the data.
    pub rows: usize,
    /// Labels of each row, in all: one, or one for each epoch or temperature.
    pub labels_per_row: usize,
    /// Bytes of the labels.
    pub bytes: u64,
    /// Bytes of one label of one row, its part of what is stored beside it included; none before the
    /// first.
    pub bytes_per_row: Option<f64>,
    /// Wall-clock time of this process's part, in seconds.
    pub seconds: f64,
    /// The teacher's fingerprint, hexadecimal; none if it was told to stop before it had one.
    pub teacher: Option<String>,
    /// The folder.
    pub folder: PathBuf,
}

/// Where a recipe's labels go.
pub fn output_folder(recipe: &Recipe) -> PathBuf {
    Path::new("captures").join(&recipe.name)
}

/// Captures the labels of all that [`crate::train::run`] would ask for. Ends early, with what was
/// done kept, when `stop` turns true. A capture that is complete is checked, and no teacher is asked.
///
/// # Errors
/// If the recipe has no teacher that can be asked, anything that it names cannot be used, the folder
/// is not one to go on in, or no teacher answers for too long. What was stored stays.
pub async fn run(
    recipe: Recipe,
    folder: &Path,
    existing: Existing,
    mut observer: Box<dyn Observer>,
    mut stop: watch::Receiver<bool>,
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let section = asked(&recipe)?.clone();
    let folder = absolute(folder).map_err(|source| RunError::io(folder, source))?;
    let reading = recipe.clone();
    let (plan, sha256) = spawn_blocking(move || {
        let plan = Plan::read(&reading)?;
        let sha256 = plan.train.sha256();
        Ok::<_, Error>((plan, sha256))
    })
    .await??;
    let wanted = Manifest::new(&recipe, &section, plan.train.len(), sha256);
    let mut requests = Requests::new(&wanted, plan.sampler.clone());
    let mut outcome = Outcome {
        name: recipe.name.clone(),
        finished: false,
        requests: 0,
        total_requests: requests.count(),
        rows: wanted.rows,
        labels_per_row: wanted.slices.len(),
        bytes: 0,
        bytes_per_row: None,
        seconds: 0.0,
        teacher: None,
        folder: folder.clone(),
    };
    let claim = Claim::take(&folder, existing, &wanted)?;
    if let Some(complete) = claim.complete().cloned() {
        let checked = folder.clone();
        let complete =
            spawn_blocking(move || verify(&checked, &complete, |_, _| Ok(())).map(|()| complete));
        outcome.finish(&complete.await??);
        outcome.seconds = begun.elapsed().as_secs_f64();
        return Ok(outcome);
    }
    let teacher =
        match unless(&mut stop, Box::pin(Teacher::connect(&recipe, &section, &plan))).await {
            Some(connected) => {
                let mut teacher = connected?;
                teacher.must_have_labels();
                teacher.keep_none();
                teacher
            }
            None => return Ok(Outcome { seconds: begun.elapsed().as_secs_f64(), ..outcome }),
        };
    let described = teacher.described();
    let facts = CapturedTeacher {
        name: described.name.clone(),
        fingerprint: hex(&described.fingerprint),
        hidden_size: teacher.head().map(|head| head.hidden_size),
    };
    outcome.teacher = Some(facts.fingerprint.clone());
    let rescale = teacher.rescale_factor(&recipe);
    let mut claimed =
        claim.enter(wanted.of_teacher(facts, rescale), teacher.head(), &mut requests)?;
    outcome.requests = claimed.done();

    let first = requests.place(claimed.done());
    let jobs: Vec<_> = first
        .iter()
        .flat_map(|first| requests.epochs_from(*first))
        .map(|(epoch, step)| {
            let steps = step..u64::from(epoch) * plan.steps_per_epoch;
            plan.jobs_of(&recipe, steps, teacher.request_rows(), rescale)
        })
        .collect();
    let skipped = first.map_or(0, |first| first.part as usize);
    let (labels, server) = teacher.ask(jobs.into_iter().flatten().skip(skipped));
    observer.on(&Event::CaptureStarted {
        name: &recipe.name,
        done: claimed.done(),
        requests: outcome.total_requests,
        rows: outcome.rows * outcome.labels_per_row,
    });
    let runtime = Handle::current();
    let stored = spawn_blocking(move || {
        let writer = Writer { labels, requests, runtime, observer, stop };
        let stored = writer.store_all(&mut claimed);
        // What came before an error is kept as well.
        claimed.pause()?;
        stored.map(|()| claimed)
    });
    let stored = stored.await?;
    let closed = match server {
        Some(server) => server.shutdown().await,
        None => Ok(()),
    };
    let claimed = stored?;
    closed?;
    outcome.requests = claimed.done();
    outcome.bytes = claimed.bytes();
    if outcome.requests == outcome.total_requests {
        let complete = spawn_blocking(move || claimed.finish()).await??;
        outcome.finish(&complete);
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

impl Outcome {
    fn finish(&mut self, complete: &Manifest) {
        self.finished = true;
        self.requests = self.total_requests;
        self.teacher = Some(complete.teacher.fingerprint.clone());
        self.bytes = complete.files.get(LABELS).map_or(0, |facts| facts.bytes);
        self.bytes_per_row = Some(self.bytes as f64 / complete.labels() as f64);
    }
}

/// The section of a teacher that can be asked.
fn asked(recipe: &Recipe) -> Result<&TeacherSection, CaptureError> {
    let invalid = |key: &str, value: &str, expected: &str| {
        let (key, value, expected) = (key.to_owned(), value.to_owned(), expected.to_owned());
        CaptureError::Recipe(RecipeError::Invalid(Invalid { key, value, expected }))
    };
    match &recipe.teacher {
        None => Err(invalid("teacher", "no section", "one, whose labels are to be captured")),
        Some(section) if section.kind == TeacherKind::Captured => {
            Err(invalid("teacher.kind", "\"captured\"", "\"embedded\" or \"endpoints\""))
        }
        Some(section) => Ok(section),
    }
}

/// Takes labels as they come and stores them, on a thread of its own.
struct Writer {
    labels: OrderedLabels,
    requests: Requests,
    runtime: Handle,
    observer: Box<dyn Observer>,
    stop: watch::Receiver<bool>,
}

impl Writer {
    /// Until all are there, or it is told to stop.
    fn store_all(mut self, folder: &mut Folder) -> Result<(), Error> {
        let stored = self.store_some(folder);
        self.observer.on(&Event::Ended { step: folder.done() });
        stored
    }

    fn store_some(&mut self, folder: &mut Folder) -> Result<(), Error> {
        let mut rows_done = 0;
        while let Some(place) = self.requests.place(folder.done()) {
            // Answers that are there already would hide a signal for as long as they last.
            if *self.stop.borrow() {
                return Ok(());
            }
            let (labels, stop) = (&mut self.labels, &mut self.stop);
            let next = self.runtime.block_on(unless(stop, labels.next()));
            let labelled = match next {
                None => return Ok(()),
                Some(None) => return Err(ClientError::Ended.into()),
                Some(Some(labelled)) => labelled?,
            };
            let rows = self.requests.rows(place);
            let (found, expected) = (labelled.index, self.requests.index(place));
            let batch = labelled.labels()?;
            if (found, batch.rows) != (expected, rows.len()) {
                let reason = format!("they are those of request {found}, expected {expected}");
                return Err(CaptureError::Unstorable { request: folder.done(), reason }.into());
            }
            rows_done += rows.len();
            folder.store(place.epoch, rows, batch)?;
            self.observer.on(&Event::Captured { requests: folder.done(), rows: rows_done });
        }
        Ok(())
    }
}
