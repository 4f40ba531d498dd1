//! What a run measured, one JSON object a line.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use serde::{Deserialize, Serialize};
use stillhouse_proto::v1::StudentReport;

use super::{RunError, append::AppendFile};

/// One optimisation step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: u64,
    /// The epoch it belongs to, counted from 1.
    pub epoch: u64,
    /// The total loss, mean over the batch's rows, in nats.
    pub loss: f64,
    /// Cross-entropy with the hard labels, before its weight.
    pub hard_loss: Option<f64>,
    /// The distillation term, before its weight.
    pub soft_loss: Option<f64>,
    /// Alpha, where it changes over the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Temperature, where it changes over the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Whether its labels did not come, so that it was taken on hard labels alone
    /// (`teacher.on_teacher_loss`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_teacher: bool,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Rows per second, over the last seconds.
    pub examples_per_second: f64,
    /// Part of the time that was spent waiting for labels, since the run was started or resumed.
    pub stall_fraction: f64,
}

impl StepRecord {
    /// The same for a teacher, of a run with so many steps.
    pub(crate) fn report(&self, run: &str, steps: u64) -> StudentReport {
        let end = run.floor_char_boundary(128);
        StudentReport {
            run: run[..end].to_owned(),
            step: self.step,
            steps,
            loss: self.loss,
            examples_per_second: self.examples_per_second,
            stall_fraction: self.stall_fraction.clamp(0.0, 1.0),
            // Filled in by who asks for labels.
            client: String::new(),
        }
    }
}

/// One test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Rows whose most probable class is not their label.
    pub errors: u64,
    /// Rows.
    pub rows: u64,
}

impl TestRecord {
    /// Part of the rows that were classified correctly, in percent.
    pub fn accuracy_percent(&self) -> f64 {
        100.0 * (self.rows - self.errors.min(self.rows)) as f64 / self.rows.max(1) as f64
    }
}

/// One validation of a language model, or of a classifier of texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy of the next token, or of the class, in nats.
    pub loss: f64,
    /// Tokens that were predicted, or texts that were classified.
    #[serde(alias = "tokens")]
    pub labels: u64,
    /// Of a classifier: texts whose most probable class is their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<u64>,
    /// KL(teacher || student) at T = 1, mean over the labels that the teacher was asked for, in nats.
    pub teacher_kl: Option<f64>,
    /// Part of those where both find the same most probable, in percent.
    pub teacher_agreement_percent: Option<f64>,
}

impl ValidationRecord {
    /// e to the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }

    /// Of a classifier: part of the texts whose most probable class is their own, in percent.
    pub fn accuracy_percent(&self) -> Option<f64> {
        self.correct.map(|correct| 100.0 * correct as f64 / self.labels.max(1) as f64)
    }

    /// Loss and quality, in words.
    pub fn words(&self) -> String {
        let (loss, labels) = (self.loss, self.labels);
        match self.accuracy_percent() {
            None => {
                let perplexity = self.perplexity();
                format!(
                    "validation loss {loss:.4} (perplexity {perplexity:.3}) over {labels} tokens"
                )
            }
            Some(accuracy) => {
                format!("accuracy {accuracy:.2} %, validation loss {loss:.4} over {labels} texts")
            }
        }
    }
}

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// Training went one step on.
    Step(StepRecord),
    /// The student was tested.
    Test(TestRecord),
    /// The student was validated.
    Validation(ValidationRecord),
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub(super) struct MetricsLog(AppendFile);

impl MetricsLog {
    pub(super) fn open(path: &Path, length: u64) -> Result<Self, RunError> {
        Ok(Self(AppendFile::open(path, length)?))
    }

    pub(super) fn append(&mut self, record: &Record) -> Result<(), RunError> {
        let mut line = serde_json::to_vec(record).map_err(RunError::Encode)?;
        line.push(b'\n');
        self.0.write(&line)
    }

    pub(super) fn sync(&mut self) -> Result<u64, RunError> {
        self.0.sync()
    }
}

/// Reads a run's records. A last line that was cut off is left out.
///
/// # Errors
/// If the file cannot be read, or a line before the last is no record.
pub fn read(path: &Path) -> Result<Vec<Record>, RunError> {
    let file = File::open(path).map_err(|source| RunError::io(path, source))?;
    let mut records = Vec::new();
    let mut bad = None;
    for (line, number) in BufReader::new(file).split(b'\n').zip(1..) {
        // Something follows the bad line: it was not cut off, it is wrong.
        if let Some(error) = bad {
            return Err(error);
        }
        let line = line.map_err(|source| RunError::io(path, source))?;
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(source) => {
                bad = Some(RunError::Record { file: path.to_owned(), line: number, source });
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    pub(crate) fn step(step: u64, loss: f64) -> Record {
        Record::Step(StepRecord {
            step,
            epoch: 1,
            loss,
            hard_loss: Some(loss),
            soft_loss: None,
            alpha: None,
            temperature: None,
            without_teacher: false,
            grad_norm: 1.0,
            learning_rate: 0.1,
            examples_per_second: 1000.0,
            stall_fraction: 0.0,
        })
    }

    /// What was called tokens before there were texts with a class.
    #[test]
    fn a_validation_of_an_earlier_version_is_read() {
        let line = r#"{"kind":"validation","step":6,"loss":2.0,"tokens":9,"teacher_kl":null,
            "teacher_agreement_percent":null}"#;
        let Record::Validation(read) = serde_json::from_str(line).unwrap() else { panic!() };
        assert_eq!((read.labels, read.correct, read.accuracy_percent()), (9, None, None));
        assert_eq!(read.words(), "validation loss 2.0000 (perplexity 7.389) over 9 tokens");
        let read = ValidationRecord { correct: Some(6), ..read };
        assert_eq!(read.words(), "accuracy 66.67 %, validation loss 2.0000 over 9 texts");
    }

    #[test]
    fn records_come_back_and_a_cut_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let test = Record::Test(TestRecord { step: 2, epoch: 1, loss: 0.5, errors: 3, rows: 100 });
        let written = [step(1, 2.25), step(2, 0.1 + 0.2), test];
        let mut log = MetricsLog::open(&path, 0).unwrap();
        written.iter().for_each(|record| log.append(record).unwrap());
        let length = log.sync().unwrap();
        assert_eq!(read(&path).unwrap(), written);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, length);
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert_eq!(read(&path).unwrap(), written[..2]);
    }

    #[test]
    fn a_step_of_before_losses_could_change_is_read() {
        let text = serde_json::to_string(&step(1, 2.0)).unwrap();
        assert!(!text.contains("alpha") && !text.contains("temperature"), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), step(1, 2.0));
    }

    #[test]
    fn a_line_that_is_no_record_is_named_unless_it_is_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        [step(1, 1.0), step(2, 1.0)].iter().for_each(|record| log.append(record).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let (first, second) = text.split_once('\n').unwrap();
        for last in ["{\"kind\":", "\0\0\0\n"] {
            fs::write(&path, format!("{text}{last}")).unwrap();
            assert_eq!(read(&path).unwrap().len(), 2);
        }
        for middle in ["{}", "", "\0\0", "{\"kind\":\"step\"}"] {
            fs::write(&path, format!("{first}\n{middle}\n{second}")).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.ends_with("metrics.jsonl: line 2 is no record of a run"), "{error}");
        }
    }

    #[test]
    fn accuracy_is_in_percent() {
        let record = TestRecord { step: 1, epoch: 1, loss: 0.0, errors: 150, rows: 10_000 };
        assert!((record.accuracy_percent() - 98.5).abs() < 1e-12);
    }
}
