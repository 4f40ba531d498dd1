//! Trains a plan's runs, a few at a time.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
};

use super::{
    Plan, Table,
    plan::{Job, JobRecipe},
    table::Measured,
};
use crate::{
    capture,
    eval::{self, Bias, Tested},
    progress::{Observer, Several},
    run_folder::Existing,
    text,
    train::{self, Error},
};

/// Trains what is not yet trained, `at_once` runs at a time, and tests it. None if told to stop: a
/// later call goes on from the checkpoints. What is under way and what is done is told on standard
/// error unless `silent`.
///
/// # Errors
/// If a run fails; those beside it end with a checkpoint first.
pub async fn run(
    plan: &Plan,
    at_once: usize,
    silent: bool,
    mut stop: watch::Receiver<bool>,
) -> Result<Option<Table>, Error> {
    let mut waiting: BTreeSet<usize> = (0..plan.len()).collect();
    let mut done: BTreeMap<usize, Measured> = BTreeMap::new();
    let mut running = JoinSet::new();
    let progress = Several::new(silent);
    // Tells the runs, also when one of them has failed.
    let (end, ending) = watch::channel(false);
    let mut failed = None;
    let mut stopped = false;
    loop {
        let ready = |job: &usize| plan.jobs[*job].after.iter().all(|job| done.contains_key(job));
        while !stopped && failed.is_none() && running.len() < at_once.max(1) {
            let Some(job) = waiting.iter().copied().find(ready) else { break };
            waiting.remove(&job);
            let work = one(plan, plan.jobs[job].clone(), progress.observer(), ending.clone());
            running.spawn(async move { (job, work.await) });
        }
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            Ok(_) = stop.wait_for(|stop| *stop), if !stopped => {
                stopped = true;
                end.send_replace(true);
                continue;
            }
        };
        match ended {
            None => break,
            Some(Err(error)) => failed = failed.or(Some(Error::Thread(error))),
            Some(Ok((job, Ok(Some(measured))))) => {
                progress.say(&words(plan, job, &measured, done.len() + 1));
                done.insert(job, measured);
            }
            // Told to stop.
            Some(Ok((_, Ok(None)))) => {}
            Some(Ok((job, Err(source)))) => {
                let name = plan.jobs[job].recipe.name().to_owned();
                failed = failed.or(Some(Error::OfSweep { name, source: Box::new(source) }));
            }
        }
        if failed.is_some() {
            end.send_replace(true);
        }
    }
    match failed {
        Some(error) => Err(error),
        None if done.len() < plan.len() => Ok(None),
        None => Ok(Some(Table::new(plan, &done))),
    }
}

/// One run, from where an earlier call left it. None if told to stop.
fn one(
    plan: &Plan,
    job: Job,
    observer: Box<dyn Observer>,
    stop: watch::Receiver<bool>,
) -> impl Future<Output = Result<Option<Measured>, Error>> + Send + use<> {
    let fit = plan.sweep.runs[job.run].fit_bias.clone();
    let folder = job.recipe.output_folder();
    async move {
        let recipe = match job.recipe {
            JobRecipe::Rows(recipe) => *recipe,
            JobRecipe::Text(recipe) => {
                let training = text::run(*recipe, Existing::Resume, observer, stop);
                let outcome = Box::pin(training).await?;
                let (seconds, validation) = (outcome.seconds, outcome.validation);
                let measured = Measured { seconds, validation, ..Measured::default() };
                return Ok(outcome.finished.then_some(measured));
            }
        };
        if let Some(folder) = &job.capture {
            let capturing = capture::run(recipe, folder, Existing::Resume, observer, stop);
            let outcome = Box::pin(capturing).await?;
            let measured = Measured { seconds: outcome.seconds, ..Measured::default() };
            return Ok(outcome.finished.then_some(measured));
        }
        let ensemble = recipe.teacher.as_ref().and_then(|teacher| {
            let tested = Tested { folders: teacher.folders(), rule: teacher.ensemble? };
            // Elsewhere, or a single model.
            (tested.folders.len() > 1).then_some(tested)
        });
        let data = recipe.data.clone();
        let training = train::run(recipe, Existing::Resume, observer, stop);
        let outcome = Box::pin(training).await?;
        if !outcome.finished {
            return Ok(None);
        }
        let seconds = outcome.seconds;
        let test = move || -> Result<Measured, Error> {
            let bias = Bias { fit, ..Bias::default() };
            let figures = Some(eval::run(&folder.into(), &data, &bias)?);
            let alone = |tested| eval::run(&tested, &data, &Bias::default());
            let ensemble_errors = ensemble.map(alone).transpose()?.map(|figures| figures.errors);
            Ok(Measured { seconds, figures, ensemble_errors, ..Measured::default() })
        };
        Ok(Some(spawn_blocking(test).await??))
    }
}

/// What a job came to.
fn words(plan: &Plan, job: usize, measured: &Measured, done: usize) -> String {
    let name = plan.jobs[job].recipe.name();
    let what = match (&measured.figures, &measured.validation) {
        (Some(_), _) => format!("{} errors", measured.errors()),
        (None, Some(validation)) => validation.words(),
        (None, None) => "labels captured".to_owned(),
    };
    format!("{done} of {}: {name}: {what}, {:.0} s", plan.len(), measured.seconds)
}
