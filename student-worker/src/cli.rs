//! The command line.

mod arguments;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
};

use arguments::{
    CaptureArguments, EvalArguments, QuickstartArguments, SweepArguments, TrainArguments,
};
use clap::{Parser, Subcommand};
use serde::Serialize;
use stillhouse_runtime::{
    exit,
    metrics_server::MetricsServer,
    shutdown::Signals,
    telemetry::{self, LogFormat, Metrics, TelemetryError},
};
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    capture,
    eval::{self, Bias, Tested},
    load::{self, LoadArguments},
    metrics,
    planner::{self, PlanArguments},
    progress,
    quickstart::{self, Quickstart, Size},
    recipe::{self, RecipeError},
    run_folder::Existing,
    sweep,
    text::{self, TextOutcome},
    top::{self, TopArguments},
    train,
};

/// Train a student on soft labels pulled from a teacher.
///
/// Exit codes: 0 done; 64 wrong configuration or input; 75 no teacher answered for too long or
/// another run is at work in the folder, try again with --resume; 130 ended at once by a second
/// signal; 143 told to stop, with what was done kept; 1 anything else.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// What is logged: a filter such as `info` or `warn,student_worker=debug`.
    #[arg(
        long,
        value_name = "FILTER",
        env = "STILLHOUSE_LOG",
        default_value = "warn",
        global = true
    )]
    log: String,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a student as a recipe says.
    Train(TrainArguments),
    /// Store the teacher's labels for everything that `train` would ask for, to train on them with no
    /// teacher: teacher.kind = "captured", teacher.dir = DIR.
    Capture(CaptureArguments),
    /// Test a trained model, or several as an ensemble.
    Eval(EvalArguments),
    /// Distil a small student from a freshly trained teacher, and compare it with one without.
    Quickstart(QuickstartArguments),
    /// Train every run of a sweep, and print one table of what came out.
    Sweep(SweepArguments),
    /// Say what a recipe needs: how many teachers, how far ahead to ask, how many bytes a second.
    Plan(PlanArguments),
    /// Ask teachers for labels at a given rate, and tell how they answer.
    Load(LoadArguments),
    /// Show what teachers are doing: their queues, batches, caches, clients and students.
    Top(TopArguments),
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The recipe cannot be run.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The run failed.
    #[error(transparent)]
    Run(Box<train::Error>),
    /// What to log does not parse.
    #[error(
        "--log (STILLHOUSE_LOG): {value:?} is not a filter such as `info` or \
         `warn,student_worker=debug`: {reason}"
    )]
    Filter {
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Traces cannot be sent.
    #[error("{0}")]
    Traces(String),
    /// Logging cannot be started.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The metrics' port cannot be had.
    #[error("--metrics-listen: {0} cannot be bound: {1}")]
    MetricsPort(SocketAddr, #[source] io::Error),
    /// Signals cannot be caught.
    #[error("signals cannot be handled")]
    Signals(#[source] io::Error),
    /// The result cannot be printed.
    #[error("standard output cannot be written")]
    Output(#[source] io::Error),
}

impl From<train::Error> for Failure {
    fn from(error: train::Error) -> Self {
        Self::Run(Box::new(error))
    }
}

impl Failure {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Recipe(_) | Self::Filter { .. } | Self::Traces(_) | Self::Telemetry(_) => {
                exit::CONFIGURATION
            }
            Self::Run(error) => error.exit_code(),
            Self::MetricsPort(..) => exit::TEMPORARY,
            Self::Signals(_) | Self::Output(_) => exit::FAILED,
        }
    }
}

/// Does what was asked for, and returns the exit code.
///
/// # Errors
/// If it cannot be done.
pub async fn run(arguments: Arguments) -> Result<u8, Failure> {
    telemetry::start_logs(&arguments.log, LogFormat::Text).map_err(|error| match error {
        TelemetryError::Filter { value, reason } => Failure::Filter { value, reason },
        error => Failure::Telemetry(error),
    })?;
    let stop = stop_on_signal()?;
    match arguments.command {
        Command::Train(arguments) => train(arguments, stop).await,
        Command::Capture(arguments) => capture(arguments, stop).await,
        Command::Eval(arguments) => eval(arguments, stop).await,
        Command::Quickstart(arguments) => quickstart(arguments, stop).await,
        Command::Sweep(arguments) => sweep(&arguments, stop).await,
        Command::Plan(arguments) => {
            let mut stop = stop;
            let planning = Box::pin(planner::run(&arguments));
            let Some(needs) = train::unless(&mut stop, planning).await else {
                return Ok(exit::TERMINATED);
            };
            let needs = needs?;
            match arguments.json {
                true => print_json(&needs)?,
                false => print(&needs.to_string())?,
            }
            Ok(exit::DONE)
        }
        Command::Load(arguments) => {
            let figures = load::run(&arguments, stop).await.map_err(train::Error::from)?;
            match arguments.json {
                true => print_json(&figures)?,
                false => print(&figures.to_string())?,
            }
            Ok(if figures.all_labelled() { exit::DONE } else { exit::TEMPORARY })
        }
        Command::Top(arguments) => {
            let answered = top::run(&arguments, stop).await.map_err(Failure::Output)?;
            Ok(if answered { exit::DONE } else { exit::TEMPORARY })
        }
    }
}

/// Lets a run be scraped.
async fn serve_metrics(address: SocketAddr) -> Result<(), Failure> {
    let metrics = Metrics::install(metrics::CATALOGUE)?;
    tokio::spawn(metrics.clone().upkeep());
    let server = MetricsServer::bind(address);
    let server = server.await.map_err(|error| Failure::MetricsPort(address, error))?;
    tracing::info!(address = %server.address(), "metrics");
    tokio::spawn(server.serve(metrics, Vec::new()));
    Ok(())
}

async fn train(arguments: TrainArguments, stop: watch::Receiver<bool>) -> Result<u8, Failure> {
    if let Some(address) = arguments.metrics_listen {
        serve_metrics(address).await?;
    }
    arguments.traces.start()?;
    let (table, folder) = recipe::read(&arguments.recipe, &arguments.set)?;
    let existing = if arguments.resume { Existing::Resume } else { Existing::Refuse };
    let observer = progress::observer(arguments.json);
    if text::recipe::is_text(&table) {
        let recipe = text::recipe::from_table(table, folder)?;
        let outcome = Box::pin(text::run(recipe, existing, observer, stop)).await?;
        return tell_text(&outcome, arguments.json);
    }
    let recipe = recipe::from_table(table, folder)?;
    let outcome = train::run(recipe, existing, observer, stop).await?;
    if arguments.json {
        print_json(&outcome)?;
    } else if let (Some(test), Some(report)) = (&outcome.test, &outcome.report) {
        let (accuracy, seconds) = (test.accuracy_percent(), outcome.seconds);
        print(&format!(
            "{}: test accuracy {accuracy:.2} % ({} of {} wrong) after {seconds:.1} s\nreport: {}",
            outcome.name,
            test.errors,
            test.rows,
            report.display()
        ))?;
    } else {
        let train::Outcome { name, steps, total_steps, folder, checkpoint, .. } = &outcome;
        print(&stopped_words(name, [*steps, *total_steps], folder, checkpoint.is_some()))?;
    }
    Ok(if outcome.finished { exit::DONE } else { exit::TERMINATED })
}

fn tell_text(outcome: &TextOutcome, json: bool) -> Result<u8, Failure> {
    if json {
        print_json(outcome)?;
    } else if let (Some(validation), Some(report)) = (&outcome.validation, &outcome.report) {
        print(&format!(
            "{}: {} after {:.1} s\nreport: {}",
            outcome.name,
            validation.words(),
            outcome.seconds,
            report.display()
        ))?;
    } else {
        let TextOutcome { name, steps, total_steps, folder, checkpoint, .. } = outcome;
        print(&stopped_words(name, [*steps, *total_steps], folder, checkpoint.is_some()))?;
    }
    Ok(if outcome.finished { exit::DONE } else { exit::TERMINATED })
}

/// What is said of a run that was told to stop.
fn stopped_words(name: &str, [steps, total]: [u64; 2], folder: &Path, checkpoint: bool) -> String {
    let folder = folder.display();
    if checkpoint {
        return format!(
            "{name}: stopped after step {steps} of {total}; go on with --resume: {folder}"
        );
    }
    format!(
        "{name}: stopped before the first of {total} steps; there is nothing to go on from: {folder}"
    )
}

async fn capture(arguments: CaptureArguments, stop: watch::Receiver<bool>) -> Result<u8, Failure> {
    arguments.traces.start()?;
    let (table, folder) = recipe::read(&arguments.recipe, &arguments.set)?;
    if text::recipe::is_text(&table) {
        let words =
            "[data] is text, whose labels are not captured yet; train asks the teacher itself";
        return Err(RecipeError::Section(words.to_owned()).into());
    }
    let recipe = recipe::from_table(table, folder)?;
    let existing = if arguments.resume { Existing::Resume } else { Existing::Refuse };
    let observer = progress::observer(arguments.json);
    let folder = arguments.out.unwrap_or_else(|| capture::output_folder(&recipe));
    let outcome = capture::run(recipe, &folder, existing, observer, stop).await?;
    let (name, place) = (&outcome.name, outcome.folder.display());
    if arguments.json {
        print_json(&outcome)?;
    } else if let Some(bytes) = outcome.bytes_per_row {
        let (rows, each) = (outcome.rows, outcome.labels_per_row);
        let times = if each == 1 { String::new() } else { format!(", {each} labels each") };
        print(&format!(
            "{name}: labels of {rows} rows{times}: {} bytes, {bytes:.1} a label, after {:.1} s\n\
             train on them with teacher.kind = \"captured\", teacher.dir = \"{place}\"",
            outcome.bytes, outcome.seconds
        ))?;
    } else {
        let (done, total) = (outcome.requests, outcome.total_requests);
        print(&format!(
            "{name}: stopped after request {done} of {total}; go on with --resume: {place}"
        ))?;
    }
    Ok(if outcome.finished { exit::DONE } else { exit::TERMINATED })
}

async fn eval(arguments: EvalArguments, mut stop: watch::Receiver<bool>) -> Result<u8, Failure> {
    let bias = Bias { add: arguments.bias.clone(), fit: arguments.fit_bias.clone() };
    let data = arguments.data().map_err(train::Error::Data)?;
    let tested = Tested { folders: arguments.model.clone(), rule: arguments.ensemble };
    let testing = spawn_blocking(move || eval::run(&tested, &data, &bias));
    let figures = tokio::select! {
        figures = testing => figures.map_err(train::Error::Thread)??,
        // There is nothing to keep.
        Ok(_) = stop.wait_for(|stop| *stop) => return Ok(exit::TERMINATED),
    };
    if arguments.json {
        print_json(&figures)?;
    } else {
        print(&figures.to_string())?;
    }
    Ok(exit::DONE)
}

async fn quickstart(
    arguments: QuickstartArguments,
    stop: watch::Receiver<bool>,
) -> Result<u8, Failure> {
    let asked = Quickstart {
        seed: arguments.seed,
        // Absolute, so that the recipes it leaves behind can be run again from anywhere.
        data: std::path::absolute(&arguments.data).unwrap_or(arguments.data),
        output: std::path::absolute(&arguments.output).unwrap_or(arguments.output),
        silent: arguments.json,
        size: Size::default(),
    };
    let Some(comparison) = quickstart::run(&asked, stop).await? else {
        if !arguments.json {
            print("quickstart: stopped before all three models were trained; nothing is compared")?;
        }
        return Ok(exit::TERMINATED);
    };
    if arguments.json {
        print_json(&comparison.figures)?;
    } else {
        print(&comparison.to_string())?;
    }
    Ok(exit::DONE)
}

async fn sweep(arguments: &SweepArguments, stop: watch::Receiver<bool>) -> Result<u8, Failure> {
    let plan = sweep::load(&arguments.sweep)?;
    let jobs = usize::from(arguments.jobs);
    let Some(table) = sweep::run(&plan, jobs, arguments.json, stop).await? else {
        if !arguments.json {
            print("sweep: stopped before all was trained; the same command goes on")?;
        }
        return Ok(exit::TERMINATED);
    };
    let written = table.write(&plan.output).map_err(|(path, error)| {
        Failure::Output(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    })?;
    if arguments.json {
        print_json(&table)?;
    } else {
        print(&format!("{table}\ntable: {}", written.display()))?;
    }
    Ok(exit::DONE)
}

/// Turns true at SIGTERM or SIGINT.
fn stop_on_signal() -> Result<watch::Receiver<bool>, Failure> {
    let mut signals = Signals::install().map_err(Failure::Signals)?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        let signal = signals.next().await;
        tracing::warn!(signal, "stopping after this step; another signal ends it at once");
        stop.send_replace(true);
        signals.end_at_next();
        // The receivers live as long as the run; keep the sender for them.
        stop.closed().await;
    });
    Ok(stopping)
}

fn print(text: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))?;
    print(&text)
}
