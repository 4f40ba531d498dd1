//! Scenarios that measure: `acceptance NAME [--json]`, and `acceptance list`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use stillhouse_runtime::tuning;
use stillhouse_tests::scenarios::{self, Figures, Options};

/// Run a scenario that measures, across real processes on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// A scenario, or `list`.
    name: String,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
    /// How long each measured part runs, or each student trains where they take turns, in seconds
    /// [default: the scenario's own].
    #[arg(long)]
    seconds: Option<f64>,
    /// Run only this part of the scenario, as JSON (decouple: resnet, mlp; overhead: students, encodings,
    /// wire; share: students, second-epoch; simulate: the number of a seed).
    #[arg(long)]
    part: Option<String>,
    /// A teacher's folder (label-gradients).
    #[arg(long)]
    teacher: Option<PathBuf>,
    /// A student's folder (label-gradients).
    #[arg(long)]
    student: Option<PathBuf>,
    /// A recipe, for its text (label-gradients).
    #[arg(long)]
    recipe: Option<PathBuf>,
}

fn main() -> ExitCode {
    tuning::keep_freed_pages(None);
    tuning::quiet_candle_threads();
    let arguments = Arguments::parse();
    if arguments.name == "list" {
        for scenario in scenarios::ALL {
            println!("{:15} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    let Some(scenario) = scenarios::ALL.iter().find(|scenario| scenario.name == arguments.name)
    else {
        let names: Vec<&str> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
        eprintln!("no scenario {:?}; there are: list, {}", arguments.name, names.join(", "));
        return ExitCode::from(stillhouse_runtime::exit::CONFIGURATION);
    };
    if arguments.seconds.is_some_and(|seconds| !(3.0..=86_400.0).contains(&seconds)) {
        eprintln!("--seconds is {:?}; must be 3 to 86400", arguments.seconds);
        return ExitCode::from(stillhouse_runtime::exit::CONFIGURATION);
    }
    let Arguments { seconds, part, teacher, student, recipe, json, .. } = arguments;
    let options = Options { seconds, part, teacher, student, recipe };
    let figures: Figures = (scenario.run)(&options);
    if json || options.part.is_some() {
        println!("{}", figures.json());
    } else {
        print!("{}", figures.text());
    }
    if figures.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
