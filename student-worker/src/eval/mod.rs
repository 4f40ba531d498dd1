//! Tests a trained model.
//!
//! * [`run`]: a model or an ensemble on a test set, with the errors of every class; start here.
//! * `tested`: the models, and the logits of all of them together.
//! * `offset`: the offset to the logits of some classes that leaves the fewest errors.

mod offset;
mod tested;

use std::fmt;

use offset::Duel;
use serde::Serialize;
use tested::Models;
pub use tested::Tested;

use crate::{
    data::{self, DataError, Split},
    recipe::DataSection,
    run_folder::metrics::TestRecord,
    train::Error,
};

/// What is added to logits before a class is decided on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bias {
    /// Classes and what is added to their logits.
    pub add: Vec<(usize, f64)>,
    /// Classes to whose logits one more number is added, the one with the fewest errors; none: no
    /// such number is sought.
    pub fit: Vec<usize>,
}

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
    /// The same for the rows of each class, in the order of the classes.
    pub classes: Vec<ClassFigures>,
    /// The offset that was sought and is in all figures above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fitted: Option<Fitted>,
}

/// What a test found in the rows of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassFigures {
    /// The class.
    pub class: usize,
    /// Rows that have it as their label.
    pub rows: u64,
    /// Those of them that were taken for another.
    pub errors: u64,
}

/// An offset that was fitted to the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// The classes to whose logits it is added.
    pub classes: Vec<usize>,
    /// The offset.
    pub offset: f64,
    /// Errors without it.
    pub errors_before: u64,
    /// Errors with it, the fewest that any offset leaves.
    pub errors_after: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fitted) = &self.fitted {
            let classes: Vec<String> = fitted.classes.iter().map(usize::to_string).collect();
            let (offset, before, after) =
                (fitted.offset, fitted.errors_before, fitted.errors_after);
            let classes = classes.join(",");
            writeln!(
                f,
                "fitted bias of {classes}: {offset:+} ({before} errors before, {after} after)"
            )?;
        }
        writeln!(
            f,
            "test accuracy {:.2} % ({} of {} wrong), loss {:.4}",
            self.accuracy_percent, self.errors, self.rows, self.loss
        )?;
        write!(f, "{:>7} {:>9} {:>9} {:>8}", "class", "rows", "errors", "percent")?;
        for of in self.classes.iter().filter(|of| of.rows > 0) {
            let percent = 100.0 * of.errors as f64 / of.rows as f64;
            write!(f, "\n{:>7} {:>9} {:>9} {percent:>8.2}", of.class, of.rows, of.errors)?;
        }
        Ok(())
    }
}

/// Tests a model, or several as one, on the test set that `data` names.
///
/// # Errors
/// If either cannot be read, they do not fit together, or the bias names a class that is not there
/// or a value that is not finite.
pub fn run(tested: &Tested, data: &DataSection, bias: &Bias) -> Result<Figures, Error> {
    let models = Models::load(tested)?;
    let classes = models.fit().classes;
    bias.check(classes)?;
    let data = data::read(data, Split::Test, models.fit())?;
    let mut logits = models.logits(&data)?;
    let labels = data.labels().unwrap_or_default();
    for (class, value) in &bias.add {
        shift(&mut logits, classes, *class, *value);
    }
    let named = Named::new(&bias.fit, classes);
    let fitted = (!bias.fit.is_empty()).then(|| {
        let rows = logits.chunks_exact(classes).zip(labels);
        let duels: Vec<Duel> = rows.map(|(row, label)| named.duel(row, *label)).collect();
        let best = offset::best(&duels);
        Fitted {
            classes: bias.fit.clone(),
            offset: best.offset,
            errors_before: offset::errors(&duels, 0.0) as u64,
            errors_after: best.errors as u64,
        }
    });
    Ok(named.figures(&logits, labels, fitted))
}

impl Bias {
    fn check(&self, classes: usize) -> Result<(), DataError> {
        let range = || format!("a class from 0 to {}", classes.max(1) - 1);
        for (class, value) in &self.add {
            if *class >= classes {
                return Err(DataError::mismatch("--bias", format!("{class}={value}"), range()));
            }
            if !value.is_finite() {
                let found = format!("{class}={value}");
                return Err(DataError::mismatch("--bias", found, "a finite value"));
            }
        }
        if let Some(class) = self.fit.iter().find(|class| **class >= classes) {
            return Err(DataError::mismatch("--fit-bias", class, range()));
        }
        if !self.fit.is_empty() && (0..classes).all(|class| self.fit.contains(&class)) {
            let expected = "not all classes: one offset to all of them changes nothing";
            return Err(DataError::mismatch("--fit-bias", format!("{:?}", self.fit), expected));
        }
        Ok(())
    }
}

/// Adds to one class's logit in every row.
fn shift(logits: &mut [f64], classes: usize, class: usize, value: f64) {
    for row in logits.chunks_exact_mut(classes) {
        row[class] += value;
    }
}

/// Classes that an offset is added to; it may be none of them.
struct Named {
    is_named: Vec<bool>,
}

impl Named {
    fn new(named: &[usize], classes: usize) -> Self {
        Self { is_named: (0..classes).map(|class| named.contains(&class)).collect() }
    }

    /// The best class of the named or of the others, the first of equals, and its logit.
    fn best(&self, row: &[f64], named: bool) -> (usize, f64) {
        let of_these =
            row.iter().copied().enumerate().filter(|(class, _)| self.is_named[*class] == named);
        of_these.fold(
            (usize::MAX, f64::NEG_INFINITY),
            |best, next| {
                if next.1 > best.1 { next } else { best }
            },
        )
    }

    fn duel(&self, row: &[f64], label: u32) -> Duel {
        let (named, other) = (self.best(row, true), self.best(row, false));
        Duel {
            threshold: other.1 - named.1,
            named_wins_ties: named.0 < other.0,
            named_is_right: named.0 == label as usize,
            other_is_right: other.0 == label as usize,
        }
    }

    /// Counts what is wrong with an offset, or without one.
    fn figures(&self, logits: &[f64], labels: &[u32], fitted: Option<Fitted>) -> Figures {
        let count = self.is_named.len();
        let mut classes: Vec<ClassFigures> =
            (0..count).map(|class| ClassFigures { class, rows: 0, errors: 0 }).collect();
        let mut loss = 0.0;
        for (row, label) in logits.chunks_exact(count).zip(labels) {
            let label = *label as usize;
            let of_class = &mut classes[label];
            of_class.rows += 1;
            let mut row = row.to_vec();
            let found = match &fitted {
                None => self.best(&row, false).0,
                Some(fitted) => {
                    // Decided as it was fitted: a sum could round where the difference does not.
                    let wins = self.duel(&row, label as u32).named_wins(fitted.offset);
                    let found = self.best(&row, wins).0;
                    let named = row.iter_mut().zip(&self.is_named).filter(|(_, named)| **named);
                    named.for_each(|(logit, _)| *logit += fitted.offset);
                    found
                }
            };
            of_class.errors += u64::from(found != label);
            loss += cross_entropy(&row, label);
        }
        let (rows, errors) = (labels.len() as u64, classes.iter().map(|of| of.errors).sum());
        let loss = loss / rows.max(1) as f64;
        let test = TestRecord { step: 0, epoch: 0, loss, errors, rows };
        let accuracy_percent = test.accuracy_percent();
        Figures { loss, errors, rows, accuracy_percent, classes, fitted }
    }
}

/// -log softmax(row)\[label\], in nats.
fn cross_entropy(row: &[f64], label: usize) -> f64 {
    log_sum_exp(row.iter().copied()) - row[label]
}

/// log of the sum of `exp(x)`, whatever the size of the largest x.
fn log_sum_exp(xs: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = xs.clone().fold(f64::NEG_INFINITY, f64::max);
    max + xs.map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use stillhouse_nn::evaluate_logits;

    use super::*;

    const LOGITS: [f64; 12] = [2.0, 1.0, 0.0, 3.0, 3.0, 1.0, 0.5, 0.0, 4.0, 1.0, 2.5, 2.0];
    const LABELS: [u32; 4] = [0, 1, 2, 2];

    #[test]
    fn every_class_is_counted_and_the_whole_agrees_with_the_trainer() {
        let figures = Named::new(&[], 3).figures(&LOGITS, &LABELS, None);
        let logits = LOGITS.map(|logit| logit as f32);
        let expected = evaluate_logits(&logits, 3, &LABELS).unwrap();
        assert_eq!(figures.errors, expected.errors as u64);
        assert!((figures.loss - expected.loss).abs() < 1e-14, "{figures:?}");
        let counted: Vec<_> = figures.classes.iter().map(|of| (of.rows, of.errors)).collect();
        // The second row's first two logits are equal: the first counts.
        assert_eq!(counted, [(1, 0), (1, 1), (2, 1)]);
        assert_eq!((figures.accuracy_percent, figures.fitted), (50.0, None));
    }

    #[test]
    fn an_offset_is_in_all_figures() {
        let named = Named::new(&[1, 2], 3);
        let duels: Vec<Duel> =
            LOGITS.chunks(3).zip(LABELS).map(|(row, label)| named.duel(row, label)).collect();
        // Row 0 is lost from 1 on; row 1 is won above 0; row 3 is lost whatever the offset.
        assert_eq!(offset::errors(&duels, 0.0), 2);
        let best = offset::best(&duels);
        assert_eq!((best.offset, best.errors), (0.5, 1));
        let fitted =
            Fitted { classes: vec![1, 2], offset: best.offset, errors_before: 2, errors_after: 1 };
        let figures = named.figures(&LOGITS, &LABELS, Some(fitted));
        assert_eq!(figures.errors, 1);
        let mut moved = LOGITS.to_vec();
        shift(&mut moved, 3, 1, 0.5);
        shift(&mut moved, 3, 2, 0.5);
        let plain = Named::new(&[], 3).figures(&moved, &LABELS, None);
        assert_eq!((plain.errors, plain.loss), (figures.errors, figures.loss));
        assert_eq!(plain.classes, figures.classes);
    }

    #[test]
    fn classes_that_are_not_there_are_named() {
        let refused = |add: &[(usize, f64)], fit: &[usize]| {
            let bias = Bias { add: add.to_vec(), fit: fit.to_vec() };
            bias.check(3).unwrap_err().to_string()
        };
        assert_eq!(refused(&[(3, 1.0)], &[]), "--bias is 3=1, expected a class from 0 to 2");
        assert_eq!(refused(&[(2, f64::NAN)], &[]), "--bias is 2=NaN, expected a finite value");
        assert_eq!(refused(&[], &[1, 5]), "--fit-bias is 5, expected a class from 0 to 2");
        assert!(refused(&[], &[0, 1, 2]).contains("expected not all classes"));
    }
}
