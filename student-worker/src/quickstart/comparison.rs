//! What the quickstart found.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{Quickstart, recipes::STUDENT_ROWS};
use crate::{
    run_folder::{metrics, report::Report},
    train::{Error, Outcome},
};

/// The figures, for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Of the 10,000 test rows, how many the teacher gets wrong.
    pub teacher_errors: u64,
    /// The student that saw hard labels only.
    pub hard_errors: u64,
    /// The student that saw the teacher's soft labels too.
    pub distilled_errors: u64,
    /// Wall-clock time of everything.
    pub seconds: f64,
    /// The report.
    pub report: PathBuf,
}

/// The figures, and the table that is printed.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The figures.
    pub figures: Figures,
    rows: Vec<[String; 4]>,
}

const HEADINGS: [&str; 4] = ["model", "test errors", "accuracy", "seconds"];

impl Comparison {
    /// Compares the outcomes of teacher, student without and student with, and writes the report.
    pub(super) fn new(
        asked: &Quickstart,
        outcomes: &[Outcome],
        seconds: f64,
    ) -> Result<Self, Error> {
        let errors = |number: usize| {
            let test = outcomes.get(number).and_then(|outcome| outcome.test.as_ref());
            test.map_or(0, |test| test.errors)
        };
        let rows: Vec<[String; 4]> = outcomes.iter().map(row).collect();
        let mut facts = vec![("students' training rows".to_owned(), STUDENT_ROWS.to_string())];
        for [model, errors, accuracy, seconds] in &rows {
            facts.push((model.clone(), format!("{errors} errors, {accuracy}, {seconds} s")));
        }
        let mut runs = Vec::new();
        for outcome in outcomes.iter().skip(1) {
            let records = metrics::read(&outcome.folder.join("metrics.jsonl"))?;
            runs.push((outcome.name.clone(), records));
        }
        let report = Report {
            title: "Quickstart".to_owned(),
            summary: summary(errors(1), errors(2)),
            facts,
            runs,
        };
        let report = report.write(Path::new(&asked.output))?;
        let figures = Figures {
            teacher_errors: errors(0),
            hard_errors: errors(1),
            distilled_errors: errors(2),
            seconds,
            report,
        };
        Ok(Self { figures, rows })
    }
}

fn row(outcome: &Outcome) -> [String; 4] {
    let test = outcome.test.as_ref();
    [
        outcome.name.clone(),
        test.map_or(String::new(), |test| test.errors.to_string()),
        test.map_or(String::new(), |test| format!("{:.2} %", test.accuracy_percent())),
        format!("{:.1}", outcome.seconds),
    ]
}

fn summary(hard: u64, distilled: u64) -> String {
    format!(
        "The same student twice, on the same {STUDENT_ROWS} rows in the same order: from hard \
         labels only ({hard} errors on the test set), and from the teacher's soft labels over \
         gRPC at T = 4 with alpha = 0.9 ({distilled} errors)."
    )
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([HEADINGS[column].len()]).max().unwrap_or_default()
        };
        let widths = [width(0), width(1), width(2), width(3)];
        let mut line = |cells: [&str; 4]| {
            let [model, errors, accuracy, seconds] = cells;
            let [a, b, c, d] = widths;
            writeln!(f, "{model:<a$}  {errors:>b$}  {accuracy:>c$}  {seconds:>d$}")
        };
        line(HEADINGS)?;
        for [model, errors, accuracy, seconds] in &self.rows {
            line([model, errors, accuracy, seconds])?;
        }
        write!(f, "report: {}", self.figures.report.display())
    }
}
