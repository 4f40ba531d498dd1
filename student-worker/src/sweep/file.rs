//! The file of a sweep.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Table;

use crate::recipe::teacher::EnsembleRule;

/// A whole sweep. Paths are relative to its file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// Name, for people and for the default output folder.
    pub name: String,
    /// Seeds of every run that does not name its own.
    pub seeds: Vec<u64>,
    /// Where results go; absent: `runs/` and the name, in the current directory.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// What the places in the chart are; absent: temperatures.
    #[serde(default)]
    pub chart_x: Option<String>,
    /// What all recipes share: a recipe without `name`, `seed` and `output`.
    pub base: Table,
    /// The runs; each names those before it only.
    pub runs: Vec<Run>,
}

/// One recipe of a sweep, run once for each seed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Name, unique in the sweep.
    pub name: String,
    /// What the table calls it; absent: the name.
    #[serde(default)]
    pub title: Option<String>,
    /// What differs from the base, table by table.
    #[serde(default)]
    pub set: Table,
    /// Seeds in place of the sweep's.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
    /// The run whose student is the teacher here.
    #[serde(default)]
    pub teacher: Option<TaughtBy>,
    /// Classes to whose logits one offset is added, the one with the fewest test errors.
    #[serde(default)]
    pub fit_bias: Vec<usize>,
    /// A run, of hard labels, say, from whose errors to the teacher's the table counts: it says which
    /// part of that way this run's students come.
    #[serde(default)]
    pub gap_from: Option<String>,
    /// What was published for it.
    #[serde(default)]
    pub paper: Paper,
    /// Its place in the chart.
    #[serde(default)]
    pub chart: Option<Point>,
}

/// Where a run's soft labels come from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaughtBy {
    /// The teacher's run. Of one seed, that student is the teacher of this run's student of the same
    /// seed, or of the teacher's only seed.
    pub run: String,
    /// All seeds together, as an ensemble by this rule.
    #[serde(default)]
    pub ensemble: Option<EnsembleRule>,
}

/// Published figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paper {
    /// Test errors.
    pub errors: Option<f64>,
    /// Test errors once the bias is fitted.
    pub errors_after_bias: Option<f64>,
    /// Part of the rows of the fitted classes that are then right, in percent.
    pub right_after_bias_percent: Option<f64>,
}

/// A point of the chart: test errors, or the validation loss, over a number.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The line that it belongs to.
    pub line: String,
    /// Its temperature, or what `chart_x` says: its place on the horizontal axis, which is logarithmic; above 0.
    pub x: f64,
}
