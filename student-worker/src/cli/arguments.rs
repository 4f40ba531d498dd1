//! What the subcommands take.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use stillhouse_runtime::traces::{self, Traces};

use super::Failure;
use crate::{
    data::DataError,
    recipe::{DataFormat, DataSection, teacher::EnsembleRule},
};

#[derive(Debug, Args)]
pub(super) struct TrainArguments {
    /// The recipe.
    pub(super) recipe: PathBuf,
    /// Change a value of the recipe: --set train.epochs=3. Can be repeated. Paths are relative to
    /// the recipe's folder, as in the recipe.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Go on from the newest checkpoint, or start where there is none; of a run that is done, print
    /// the result again.
    #[arg(long)]
    pub(super) resume: bool,
    /// Print the result as one JSON object, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
    /// Address that Prometheus scrapes, at /metrics [default: none].
    #[arg(long, value_name = "ADDR", env = "STILLHOUSE_METRICS_LISTEN")]
    pub(super) metrics_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub(super) traces: TracesArguments,
}

/// Where traces go.
#[derive(Debug, Args)]
pub(super) struct TracesArguments {
    /// OpenTelemetry collector that traces go to, over gRPC, such as http://collector:4317; of binaries
    /// that were built with the feature `otlp` [default: none].
    #[arg(long, value_name = "URL", env = "STILLHOUSE_TRACES_ENDPOINT")]
    pub(super) traces_endpoint: Option<String>,
    /// The part of the requests that is traced, 0 to 1.
    #[arg(long, value_name = "PART", env = "STILLHOUSE_TRACES_RATIO", default_value_t = 1.0)]
    pub(super) traces_ratio: f64,
    /// Authorities of a collector with https, in PEM [default: the system's].
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_TRACES_CA")]
    pub(super) traces_ca: Option<PathBuf>,
}

impl TracesArguments {
    pub(super) fn start(self) -> Result<(), Failure> {
        let Self { traces_endpoint: endpoint, traces_ratio: ratio, traces_ca: ca } = self;
        let traces = Traces { endpoint, ratio, ca };
        traces::start(&traces, "student-worker").map_err(|error| {
            // The flag, where a file of settings has a key.
            let error = error.to_string();
            let flag = error.strip_prefix("traces.").map(|rest| format!("--traces-{rest}"));
            Failure::Traces(flag.unwrap_or(error))
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct CaptureArguments {
    /// The recipe.
    pub(super) recipe: PathBuf,
    /// The folder to store them in; otherwise `captures/` and the recipe's name.
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Change a value of the recipe, as of train.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// Go on where an earlier process ended, or start where none has been; check a capture that is
    /// complete.
    #[arg(long)]
    pub(super) resume: bool,
    /// Print the result as one JSON object, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) traces: TracesArguments,
}

#[derive(Debug, Args)]
pub(super) struct EvalArguments {
    /// Folder with config.json and model.safetensors; several are tested as one ensemble.
    #[arg(required = true)]
    pub(super) model: Vec<PathBuf>,
    /// Of several models: the mean of their probabilities, or of their logits.
    #[arg(long, value_enum, default_value_t)]
    pub(super) ensemble: EnsembleRule,
    /// Folder with the data set, under the names that its format has for the files of its test part.
    #[arg(long, value_name = "DIR", required_unless_present = "test_file")]
    pub(super) data: Option<PathBuf>,
    /// Format of the data set.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: DataFormat,
    /// A file to test on, instead of those in a folder; can be repeated. Of mnist: the images, then
    /// the labels.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub(super) test_file: Vec<PathBuf>,
    /// Of folder: the folders in its `train` are no classes, as with data.unlabelled.
    #[arg(long)]
    pub(super) unlabelled: bool,
    /// Of parquet: the column of images.
    #[arg(long, value_name = "NAME", default_value = DataSection::IMAGE_COLUMN)]
    pub(super) image_column: String,
    /// Of parquet: the column of labels.
    #[arg(long, value_name = "NAME", default_value = DataSection::LABEL_COLUMN)]
    pub(super) label_column: String,
    /// Add a number to a class's logit before a class is decided on. Can be repeated.
    #[arg(long, value_name = "CLASS=VALUE", value_parser = class_and_value)]
    pub(super) bias: Vec<(usize, f64)>,
    /// Find the number which, added to the logits of these classes, leaves the fewest errors on this
    /// test set, and test with it: --fit-bias 7,8.
    #[arg(long, value_name = "CLASSES", value_delimiter = ',')]
    pub(super) fit_bias: Vec<usize>,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

impl EvalArguments {
    /// The data, as a recipe would name them.
    pub(super) fn data(&self) -> Result<DataSection, DataError> {
        let mut section = DataSection {
            format: self.format,
            dir: self.data.clone(),
            unlabelled: self.unlabelled,
            image_column: Some(self.image_column.clone()),
            label_column: Some(self.label_column.clone()),
            ..DataSection::default()
        };
        let given = self.test_file.len();
        match (self.format, self.test_file.as_slice()) {
            (_, []) => {}
            (DataFormat::Cifar10 | DataFormat::Parquet, files) => {
                section.test_files = files.to_vec();
            }
            (DataFormat::Mnist, [images, labels]) => {
                section.test_images = Some(images.clone());
                section.test_labels = Some(labels.clone());
            }
            (DataFormat::Mnist, _) => {
                let found = format!("given {given} times");
                let expected = "twice with --format mnist: the images, then the labels";
                return Err(DataError::mismatch("--test-file", found, expected));
            }
            (DataFormat::Folder, _) => {
                let expected = "--data DIR with --format folder";
                return Err(DataError::mismatch("--test-file", "given", expected));
            }
        }
        Ok(section)
    }
}

/// Reads CLASS=VALUE.
fn class_and_value(argument: &str) -> Result<(usize, f64), String> {
    let parsed = argument
        .split_once('=')
        .and_then(|(class, value)| Some((class.trim().parse().ok()?, value.trim().parse().ok()?)));
    parsed.ok_or_else(|| "expected a class's number, `=` and a number, such as 3=1.5".to_owned())
}

#[derive(Debug, Args)]
pub(super) struct QuickstartArguments {
    /// Seed of everything random.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(super) seed: u64,
    /// Folder with MNIST's idx files.
    #[arg(long, value_name = "DIR", default_value = "examples/data/mnist")]
    pub(super) data: PathBuf,
    /// Where results go; what an earlier quickstart left there is replaced.
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    pub(super) output: PathBuf,
    /// Print the result as one JSON object, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SweepArguments {
    /// The sweep.
    pub(super) sweep: PathBuf,
    /// Runs at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) jobs: u16,
    /// Print the table as one JSON object, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
}
