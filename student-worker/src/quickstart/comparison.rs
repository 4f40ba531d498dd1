//! What the quickstart found.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::Quickstart;
use crate::{
    run_folder::{
        metrics::{self, TestRecord},
        report::Report,
    },
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
        outcomes: &[Outcome; 3],
        seconds: f64,
    ) -> Result<Self, Error> {
        let [teacher, hard, distilled] =
            [tested(&outcomes[0])?, tested(&outcomes[1])?, tested(&outcomes[2])?];
        let rows: Vec<[String; 4]> =
            outcomes.iter().zip([teacher, hard, distilled]).map(row).collect();
        let student_rows = asked.size.student_rows.to_string();
        let mut facts = vec![("students' training rows".to_owned(), student_rows)];
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
            summary: summary(asked.size.student_rows, hard.errors, distilled.errors),
            facts,
            runs,
        };
        let report = report.write(Path::new(&asked.output))?;
        let figures = Figures {
            teacher_errors: teacher.errors,
            hard_errors: hard.errors,
            distilled_errors: distilled.errors,
            seconds,
            report,
        };
        Ok(Self { figures, rows })
    }
}

/// The test of a trained model; a model without one must not look like one without errors.
fn tested(outcome: &Outcome) -> Result<&TestRecord, Error> {
    outcome.test.as_ref().ok_or_else(|| Error::Untested { name: outcome.name.clone() })
}

fn row((outcome, test): (&Outcome, &TestRecord)) -> [String; 4] {
    [
        outcome.name.clone(),
        test.errors.to_string(),
        format!("{:.2} %", test.accuracy_percent()),
        format!("{:.1}", outcome.seconds),
    ]
}

fn summary(rows: usize, hard: u64, distilled: u64) -> String {
    format!(
        "The same student twice, on the same {rows} rows in the same order: from hard labels only \
         ({hard} errors on the test set), and from the teacher's soft labels over gRPC at T = 4 \
         with alpha = 0.9 ({distilled} errors)."
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quickstart::Size;

    #[test]
    fn a_model_without_a_test_is_an_error_and_not_one_without_errors() {
        let outcome = |name: &str| Outcome {
            name: name.to_owned(),
            finished: true,
            steps: 1,
            total_steps: 1,
            test: (name != "hard-labels").then_some(TestRecord {
                step: 1,
                epoch: 1,
                loss: 1.0,
                errors: 3,
                rows: 10,
            }),
            seconds: 1.0,
            examples_per_second: 1.0,
            stall_fraction: 0.0,
            steps_without_teacher: 0,
            teacher: None,
            folder: "f".into(),
            checkpoint: None,
            report: None,
        };
        let asked = Quickstart {
            seed: 1,
            data: "d".into(),
            output: "o".into(),
            silent: true,
            size: Size::default(),
        };
        let outcomes = ["teacher", "hard-labels", "distilled"].map(outcome);
        let error = Comparison::new(&asked, &outcomes, 1.0).unwrap_err().to_string();
        assert_eq!(error, "hard-labels: the student was not tested");
    }
}
