//! What came out, as a table, beside what was published.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Plan, file::Run, plan::Job};
use crate::{
    eval::Figures,
    plot::{Chart, Scale, Series, render},
    run_folder::metrics::ValidationRecord,
};

/// What one run of one seed came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// Wall-clock time, in seconds; since the last resumption.
    pub(super) seconds: f64,
    /// On the test set, with the fitted bias where there is one; none of a capture.
    pub(super) figures: Option<Figures>,
    /// Of a student that reads text.
    pub(super) validation: Option<ValidationRecord>,
    /// Test errors of its teachers together, where they are an ensemble.
    pub(super) ensemble_errors: Option<u64>,
}

impl Measured {
    /// The validation loss of a language model.
    pub(super) fn loss(&self) -> Option<f64> {
        self.validation.as_ref().filter(|own| own.correct.is_none()).map(|own| own.loss)
    }

    /// Test errors without a fitted bias, or those of a validation.
    pub(super) fn errors(&self) -> u64 {
        if let Some(ValidationRecord { labels, correct: Some(correct), .. }) = &self.validation {
            return labels - correct.min(labels);
        }
        let before = |figures: &Figures| {
            figures.fitted.as_ref().map_or(figures.errors, |fitted| fitted.errors_before)
        };
        self.figures.as_ref().map_or(0, before)
    }

    /// Test errors with it.
    fn errors_after(&self) -> u64 {
        self.figures.as_ref().map_or(0, |figures| figures.errors)
    }

    /// Part of the rows of the fitted classes that are right with the bias, in percent.
    fn right_percent(&self) -> Option<f64> {
        let figures = self.figures.as_ref()?;
        let fitted = figures.fitted.as_ref()?;
        let own = figures.classes.iter().filter(|of| fitted.classes.contains(&of.class));
        let (rows, errors) = own.fold((0, 0), |sum, of| (sum.0 + of.rows, sum.1 + of.errors));
        Some(100.0 * (rows - errors) as f64 / rows.max(1) as f64)
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The run and the figure.
    pub what: String,
    /// What was published.
    pub paper: Option<f64>,
    /// Mean over the seeds.
    pub mean: f64,
    /// Of each seed.
    pub seeds: Vec<f64>,
    /// `%`, `nats`, or nothing for counts.
    pub unit: &'static str,
}

/// The table and its chart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Table {
    /// The sweep's name.
    pub name: String,
    /// Line by line.
    pub rows: Vec<Row>,
    /// Test errors, or the validation loss, by line of the chart: place and mean, over the seeds that all
    /// of the line's runs have.
    pub chart: BTreeMap<String, Vec<(f64, f64)>>,
    /// What the chart's places are, and what it shows.
    pub chart_axes: [String; 2],
}

impl Table {
    pub(super) fn new(plan: &Plan, done: &BTreeMap<usize, Measured>) -> Self {
        let of = |run: usize| -> Vec<&Measured> {
            let trained = |job: &Job| job.run == run && job.capture.is_none();
            let own = plan.jobs.iter().enumerate().filter(|(_, job)| trained(job));
            own.filter_map(|(index, _)| done.get(&index)).collect()
        };
        // Test errors, or the validation loss of a language model.
        let figure = |m: &&Measured| m.loss().unwrap_or_else(|| m.errors() as f64);
        let errors = |run: usize| of(run).iter().map(figure).collect::<Vec<f64>>();
        let mut rows = vec![];
        let mut lines: BTreeMap<String, Points> = BTreeMap::new();
        for (index, run) in plan.sweep.runs.iter().enumerate() {
            let title = run.title.as_ref().unwrap_or(&run.name);
            let mut add = |what: &str, unit, paper, seeds: Vec<f64>| {
                let what = format!("{title}{what}");
                rows.push(Row { what, paper, mean: mean(&seeds), seeds, unit });
            };
            let text = of(index).first().is_some_and(|m| m.loss().is_some());
            add("", if text { "nats" } else { "" }, run.paper.errors, errors(index));
            let kl = of(index).iter().filter_map(|m| m.validation.as_ref()?.teacher_kl).collect();
            let agreement = of(index)
                .iter()
                .filter_map(|m| m.validation.as_ref()?.teacher_agreement_percent)
                .collect::<Vec<f64>>();
            let accuracy = of(index)
                .iter()
                .filter_map(|m| m.validation.as_ref()?.accuracy_percent())
                .collect::<Vec<f64>>();
            if !accuracy.is_empty() {
                add(": accuracy", "%", None, accuracy);
                let losses =
                    of(index).iter().filter_map(|m| Some(m.validation.as_ref()?.loss)).collect();
                add(": validation loss", "nats", None, losses);
            }
            if !agreement.is_empty() {
                add(": KL from its teacher", "nats", None, kl);
                add(": the teacher's first choice, too", "%", None, agreement);
            }
            // They are the same for every seed.
            if let Some(own) = of(index).first().and_then(|m| m.ensemble_errors) {
                add(": those teachers together", "", None, vec![own as f64]);
            }
            if let Some(point) = &run.chart {
                let seeds = run.seeds.as_ref().unwrap_or(&plan.sweep.seeds).iter().copied();
                let by_seed = seeds.zip(errors(index)).collect();
                lines.entry(point.line.clone()).or_default().push((point.x, by_seed));
            }
            if !run.fit_bias.is_empty() {
                let after = of(index).iter().map(|m| m.errors_after() as f64).collect();
                let classes: Vec<String> = run.fit_bias.iter().map(usize::to_string).collect();
                let classes = classes.join(", ");
                let what = format!(", bias of {classes} set");
                add(&what, "", run.paper.errors_after_bias, after);
                let right = of(index).iter().filter_map(|m| m.right_percent()).collect();
                let what = format!(", bias of {classes} set: of {classes} right");
                add(&what, "%", run.paper.right_after_bias_percent, right);
            }
            if let Some(gap) = gap(plan, run, index, &errors) {
                add(": part of the gap to its teacher made up", "%", gap.0, gap.1);
            }
        }
        let chart = lines.into_iter().map(|(name, points)| (name, comparable(points))).collect();
        let x = plan.sweep.chart_x.as_deref().unwrap_or("temperature");
        let losses = done.values().any(|measured| measured.loss().is_some());
        let y = if losses { "validation loss" } else { "test errors" };
        let chart_axes = [x.to_owned(), y.to_owned()];
        Self { name: plan.sweep.name.clone(), rows, chart, chart_axes }
    }

    /// Writes `table.md`, `table.json` and, where runs have a place in it, `chart.svg`.
    ///
    /// # Errors
    /// If a file cannot be written; with its path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, (PathBuf, io::Error)> {
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| (path.clone(), error))?;
            Ok(path)
        };
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        put("table.json", &json)?;
        let mut text = format!("# {}\n\n{self}", self.name);
        if !self.chart.is_empty() {
            let series = self.chart.iter().map(|(name, points)| {
                // Places double, or nearly, from one to the next.
                let points = points.iter().map(|(x, y)| (x.log2(), *y)).collect();
                Series { name: name.clone(), points }
            });
            let [x, y] = &self.chart_axes;
            let chart = Chart {
                title: format!("{y} by {x}"),
                x_label: format!("log2 of the {x}"),
                y_label: y.clone(),
                scale: Scale::Fitted,
                series: series.collect(),
            };
            put("chart.svg", &render(&[chart]))?;
            text += &format!("\n![{y} by {x}](chart.svg)\n");
        }
        put("table.md", &text)
    }
}

/// What part of the way from the student without a teacher to the teacher each seed comes: as
/// published, and measured, in percent. Of the means of the other two.
fn gap(
    plan: &Plan,
    run: &Run,
    index: usize,
    errors: &impl Fn(usize) -> Vec<f64>,
) -> Option<(Option<f64>, Vec<f64>)> {
    let find = |name: &str| plan.sweep.runs.iter().position(|run| run.name == name);
    let student = find(run.gap_from.as_deref()?)?;
    let teacher = find(&run.teacher.as_ref()?.run)?;
    let part = |student: f64, own: f64, teacher: f64| 100.0 * (student - own) / (student - teacher);
    let (from, to) = (mean(&errors(student)), mean(&errors(teacher)));
    if from == to {
        // There is no gap.
        return None;
    }
    let seeds = errors(index).into_iter().map(|own| part(from, own, to)).collect();
    let paper = |run: usize| plan.sweep.runs[run].paper.errors;
    let paper = match (paper(student), paper(index), paper(teacher)) {
        (Some(student), Some(own), Some(teacher)) if student != teacher => {
            Some(part(student, own, teacher))
        }
        _ => None,
    };
    Some((paper, seeds))
}

/// Places on a line and, by seed, the test errors there.
type Points = Vec<(f64, BTreeMap<u64, f64>)>;

/// A line's points in order, each with the mean over the seeds that all have, or over its own where they
/// have none in common: seeds differ by as much as places do.
fn comparable(mut points: Points) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let everywhere = |seed: &u64| points.iter().all(|(_, errors)| errors.contains_key(seed));
    let any = points.iter().any(|(_, errors)| errors.keys().any(everywhere));
    let of = |errors: &BTreeMap<u64, f64>| {
        let taken = errors.iter().filter(|(seed, _)| !any || everywhere(seed));
        mean(&taken.map(|(_, errors)| *errors).collect::<Vec<f64>>())
    };
    points.iter().map(|(x, errors)| (*x, of(errors))).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loss = self.rows.first().is_some_and(|row| row.unit == "nats");
        let what = if loss { "validation loss of a token" } else { "test errors" };
        writeln!(f, "| {what} | paper | here, mean | each seed |")?;
        writeln!(f, "|---|---:|---:|---|")?;
        for row in &self.rows {
            let number = |x: &f64| {
                let digits = match row.unit {
                    "nats" => 4,
                    unit => usize::from(x.fract() != 0.0 || !unit.is_empty()),
                };
                format!("{x:.digits$}{}{}", if row.unit.is_empty() { "" } else { " " }, row.unit)
            };
            let paper = row.paper.as_ref().map(number).unwrap_or_default();
            let mut seeds = String::new();
            for (i, seed) in row.seeds.iter().enumerate() {
                write!(seeds, "{}{}", if i > 0 { ", " } else { "" }, number(seed))?;
            }
            writeln!(f, "| {} | {paper} | {} | {seeds} |", row.what, number(&row.mean))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_a_line_are_of_the_same_seeds() {
        let of = |seeds: &[(u64, f64)]| seeds.iter().copied().collect::<BTreeMap<u64, f64>>();
        let points = vec![(20.0, of(&[(1, 73.0), (2, 81.0), (3, 89.0)])), (4.0, of(&[(1, 76.0)]))];
        assert_eq!(comparable(points), [(4.0, 76.0), (20.0, 73.0)]);
        let apart = vec![(1.0, of(&[(1, 3.0), (2, 5.0)])), (2.0, of(&[(3, 7.0)]))];
        assert_eq!(comparable(apart), [(1.0, 4.0), (2.0, 7.0)]);
        let shared = vec![(1.0, of(&[(1, 3.0), (2, 5.0)])), (2.0, of(&[(1, 7.0), (2, 8.0)]))];
        assert_eq!(comparable(shared), [(1.0, 4.0), (2.0, 7.5)]);
    }
}
