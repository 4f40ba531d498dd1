//! `report.md` and `plot.svg`: a run for a person.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use super::{
    RunError,
    metrics::{Record, TestRecord},
};
use crate::plot::{Chart, Scale, Series, render};

/// The report's file.
pub const REPORT: &str = "report.md";

/// A report about one run, or about several side by side.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// What is to be known before the figures: a paragraph, may be empty.
    pub summary: String,
    /// Name and value, as a table.
    pub facts: Vec<(String, String)>,
    /// Name and records of each run.
    pub runs: Vec<(String, Vec<Record>)>,
}

impl Report {
    /// Writes both files and returns the path of the report.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, RunError> {
        put(folder, &self.charts(), self.markdown())
    }

    /// Of one run, the parts of its training loss; of several, whose training losses are of
    /// different kinds, the loss on the test set.
    fn charts(&self) -> [Chart; 2] {
        // The distillation term starts high (T^2) and falls by orders of magnitude.
        let (title, scale, losses) = match self.runs.as_slice() {
            [(_, records)] => ("Training loss", Scale::Logarithmic, parts_of_loss(records)),
            _ => ("Test loss", Scale::FromZero, self.tests(|test| test.loss)),
        };
        [
            Chart {
                title: title.into(),
                x_label: "step".into(),
                y_label: "loss (nats)".into(),
                scale,
                series: losses,
            },
            Chart {
                title: "Test accuracy".into(),
                x_label: "step".into(),
                y_label: "accuracy (%)".into(),
                scale: Scale::Fitted,
                series: self.tests(TestRecord::accuracy_percent),
            },
        ]
    }

    /// A figure of every test, as a line for each run.
    fn tests(&self, figure: fn(&TestRecord) -> f64) -> Vec<Series> {
        let point = |record: &Record| match record {
            Record::Test(test) => Some((test.step as f64, figure(test))),
            Record::Step(_) | Record::Validation(_) => None,
        };
        let line = |(name, records): &(String, Vec<Record>)| Series {
            name: name.clone(),
            points: records.iter().filter_map(point).collect(),
        };
        self.runs.iter().map(line).collect()
    }

    fn markdown(&self) -> String {
        let mut title = self.title.clone();
        if !self.summary.is_empty() {
            title += &format!("\n\n{}", self.summary);
        }
        let mut text = page(&title, &self.facts, "loss and accuracy", "");
        for (name, records) in &self.runs {
            let _ = write!(
                text,
                "\n## Tests: {name}\n\n| epoch | step | test loss | errors | accuracy |\n\
                 |---:|---:|---:|---:|---:|\n"
            );
            for record in records {
                if let Record::Test(test) = record {
                    let _ = writeln!(
                        text,
                        "| {} | {} | {:.4} | {} of {} | {:.2} % |",
                        test.epoch,
                        test.step,
                        test.loss,
                        test.errors,
                        test.rows,
                        test.accuracy_percent()
                    );
                }
            }
        }
        text
    }
}

/// Writes a report's text and its plot, and returns the path of the text.
pub(crate) fn put(folder: &Path, charts: &[Chart], text: String) -> Result<PathBuf, RunError> {
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|source| RunError::io(&path, source))?;
        Ok(path)
    };
    put("plot.svg", render(charts))?;
    put(REPORT, text)
}

/// The name of a figure of this process's part of a run, which it took on after `begins_at` steps: what a
/// process measures does not outlive it.
pub(crate) fn since(what: &str, begins_at: u64) -> String {
    match begins_at {
        0 => what.to_owned(),
        step => format!("{what}, since the run was resumed at step {step}"),
    }
}

/// A report: heading, facts as a table, the plot, and what follows.
pub(crate) fn page(title: &str, facts: &[(String, String)], plot: &str, rest: &str) -> String {
    let mut text = format!("# {title}\n\n| | |\n|---|---|\n");
    for (name, value) in facts {
        let _ = writeln!(text, "| {} | {} |", cell(name), cell(value));
    }
    let _ = write!(text, "\n![{plot}](plot.svg)\n");
    if !rest.is_empty() {
        let _ = write!(text, "\n{rest}");
    }
    text
}

/// The total loss and, where both are in it, its two parts.
pub(crate) fn parts_of_loss(records: &[Record]) -> Vec<Series> {
    let steps = || {
        records.iter().filter_map(|record| match record {
            Record::Step(step) => Some(step),
            Record::Test(_) | Record::Validation(_) => None,
        })
    };
    let total = steps().map(|step| (step.step as f64, step.loss)).collect();
    let hard = steps().filter_map(|step| Some((step.step as f64, step.hard_loss?))).collect();
    let soft: Vec<_> =
        steps().filter_map(|step| Some((step.step as f64, step.soft_loss?))).collect();
    let mut series = vec![Series { name: "total".into(), points: total }];
    if !soft.is_empty() {
        series.push(Series { name: "hard labels".into(), points: hard });
        series.push(Series { name: "soft labels".into(), points: soft });
    }
    series
}

/// Text as it may stand in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::metrics::tests::step;

    #[test]
    fn a_report_holds_facts_tests_and_a_plot() {
        let folder = tempfile::tempdir().unwrap();
        let test =
            Record::Test(TestRecord { step: 2, epoch: 1, loss: 0.5, errors: 25, rows: 1000 });
        let report = Report {
            title: "mnist".into(),
            summary: String::new(),
            facts: vec![("a|b".into(), "c".into())],
            runs: vec![("student".into(), vec![step(1, 2.0), step(2, 1.0), test])],
        };
        let path = report.write(folder.path()).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# mnist\n"));
        assert!(text.contains("| a\\|b | c |") && text.contains("(plot.svg)"));
        assert!(text.contains("| 1 | 2 | 0.5000 | 25 of 1000 | 97.50 % |"), "{text}");
        let plot = fs::read_to_string(folder.path().join("plot.svg")).unwrap();
        assert!(plot.contains(">Training loss<") && plot.contains(">Test accuracy<"));
    }
}
