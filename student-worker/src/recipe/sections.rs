//! The sections of a recipe that are not another part's own configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use stillhouse_nn::{LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig};

use super::{LossSchedule, TeacherSection, loss_weights, strict};
use crate::data::{Augment, Filter};

/// A whole recipe. Paths are relative to the recipe's file as written, and absolute once loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run, for people: in the report, in the progress, in the default output folder.
    pub name: String,
    /// Seed of everything random: initial weights, dropout, order of rows, choice of a subset,
    /// what is done to images, the teacher's draws.
    #[serde(default)]
    pub seed: u64,
    /// What to train and test on.
    pub data: DataSection,
    /// The student's architecture.
    #[serde(deserialize_with = "strict::section")]
    pub student: ModelConfig,
    /// Where soft labels come from; without it the student learns from hard labels only.
    pub teacher: Option<TeacherSection>,
    /// How hard and soft labels are combined.
    #[serde(default, with = "loss_weights")]
    pub loss: LossConfig,
    /// How the loss changes from epoch to epoch.
    #[serde(default)]
    pub loss_schedule: LossSchedule,
    /// How gradients become updates.
    #[serde(default, deserialize_with = "strict::section")]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default, deserialize_with = "strict::section")]
    pub schedule: ScheduleConfig,
    /// How long and in which pieces.
    #[serde(default)]
    pub train: TrainSection,
    /// Where results go.
    #[serde(default)]
    pub output: OutputSection,
}

/// Format of the files of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// Four idx files as of MNIST, plain or gzip-compressed.
    #[default]
    Mnist,
    /// The binary version of CIFAR-10, plain or gzip-compressed.
    Cifar10,
    /// Folders of PNG and JPEG files, one for each class.
    Folder,
    /// Parquet files with PNG or JPEG images in them, as of Hugging Face's datasets.
    Parquet,
}

impl DataFormat {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::Cifar10 => "cifar10",
            Self::Folder => "folder",
            Self::Parquet => "parquet",
        }
    }
}

/// What to train and test on: a folder, or files named one by one (which win over the folder).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Format of the files.
    pub format: DataFormat,
    /// Folder that holds the files under their usual names.
    pub dir: Option<PathBuf>,
    /// Of `mnist`: images to train on.
    pub train_images: Option<PathBuf>,
    /// Their labels.
    pub train_labels: Option<PathBuf>,
    /// Of `mnist`: images to test on.
    pub test_images: Option<PathBuf>,
    /// Their labels.
    pub test_labels: Option<PathBuf>,
    /// Of `cifar10` and `parquet`: files to train on, in order.
    pub train_files: Vec<PathBuf>,
    /// Of `cifar10` and `parquet`: files to test on, in order.
    pub test_files: Vec<PathBuf>,
    /// Of `parquet`: the column of images; absent: [`DataSection::IMAGE_COLUMN`].
    pub image_column: Option<String>,
    /// Of `parquet`: the column of labels; absent: [`DataSection::LABEL_COLUMN`].
    pub label_column: Option<String>,
    /// Whether the training rows have no labels, or none that are to be read.
    pub unlabelled: bool,
    /// Classes that are not trained on; the test set keeps all.
    pub leave_out: Vec<u32>,
    /// The only classes that are trained on; absent: all.
    pub keep: Option<Vec<u32>>,
    /// Part of the rows to train on, class-balanced and chosen by the seed; absent: all.
    pub fraction: Option<f64>,
    /// Rows to train on, class-balanced and chosen by the seed; absent: all.
    pub train_rows: Option<usize>,
    /// What is done at random to the images that are trained on.
    pub augment: Augment,
}

impl DataSection {
    /// The column of images in a Parquet file.
    pub const IMAGE_COLUMN: &str = "image";
    /// The column of labels in a Parquet file.
    pub const LABEL_COLUMN: &str = "label";

    /// Which rows are trained on.
    pub fn filter(&self) -> Filter<'_> {
        Filter {
            leave_out: &self.leave_out,
            keep: self.keep.as_deref(),
            fraction: self.fraction,
            rows: self.train_rows,
        }
    }
}

/// How long and in which pieces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Passes over the training rows.
    pub epochs: u32,
    /// Rows per step; the last step of an epoch may have fewer.
    pub batch_size: usize,
    /// Epochs between two tests; the last epoch is always tested.
    pub eval_every: u32,
    /// Steps between two checkpoints; 0: only at the end, which always leaves one, early or not.
    pub checkpoint_every_steps: u64,
    /// Checkpoints to keep, newest first.
    pub keep_checkpoints: usize,
    /// Largest L2 norm of the gradient over all parameters; absent: not clipped.
    pub clip_norm: Option<f64>,
    /// Largest L2 norm of each unit's incoming weights; absent: no limit.
    pub max_norm: Option<f64>,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 128,
            eval_every: 1,
            checkpoint_every_steps: 500,
            keep_checkpoints: 2,
            clip_norm: None,
            max_norm: None,
        }
    }
}

/// Where results go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSection {
    /// The run's folder; absent: `runs/` and the recipe's name, in the current directory.
    pub dir: Option<PathBuf>,
}
