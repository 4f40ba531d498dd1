//! Tests a trained model.

use std::path::Path;

use serde::Serialize;
use stillhouse_nn::{Classifier, evaluate_logits};

use crate::{
    data::{self, Fit, Split},
    recipe::DataSection,
    run_folder::metrics::TestRecord,
    train::Error,
};

/// Rows that are tested at once.
const ROWS: usize = 1_000;

/// What a test found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Rows whose most probable class is not their label; of equal logits the first counts.
    pub errors: u64,
    /// Rows.
    pub rows: u64,
    /// Part of the rows that were classified correctly, in percent.
    pub accuracy_percent: f64,
}

/// Tests the model in `model` on the test set in `data`.
///
/// # Errors
/// If either cannot be read, or they do not fit together.
pub fn run(model: &Path, data: &Path) -> Result<Figures, Error> {
    let classifier = Classifier::load(model).map_err(Error::Load)?;
    let classes = classifier.classes();
    let section = DataSection { dir: Some(data.to_owned()), ..DataSection::default() };
    let data = data::read(&section, Split::Test, &Fit::of(classifier.config()))?;
    let rows: Vec<u32> = (0..data.len() as u32).collect();
    let (mut loss, mut errors) = (0.0, 0_u64);
    for rows in rows.chunks(ROWS) {
        let input = data.gather_f32(rows, classifier.rescale_factor());
        let logits = classifier.infer(&input, rows.len())?.logits;
        let part =
            evaluate_logits(&logits, classes, &data.gather_labels(rows).unwrap_or_default())?;
        loss += part.loss * part.rows as f64;
        errors += part.errors as u64;
    }
    let test = TestRecord {
        step: 0,
        epoch: 0,
        loss: loss / data.len() as f64,
        errors,
        rows: data.len() as u64,
    };
    Ok(Figures {
        loss: test.loss,
        errors: test.errors,
        rows: test.rows,
        accuracy_percent: test.accuracy_percent(),
    })
}
