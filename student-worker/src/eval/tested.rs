//! What is tested: one model, or several that answer as one.

use std::path::PathBuf;

use stillhouse_nn::{Classifier, ModelError};

use super::log_sum_exp;
use crate::{
    data::{DataError, Dataset, Fit},
    recipe::teacher::EnsembleRule,
    train::Error,
};

/// Rows that are tested at once.
const ROWS: usize = 1_000;

/// The folders of what is tested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tested {
    /// Of each model, with `config.json` and `model.safetensors`; one or more.
    pub folders: Vec<PathBuf>,
    /// How the distributions of several become one, at a temperature of 1.
    pub rule: EnsembleRule,
}

impl From<PathBuf> for Tested {
    fn from(folder: PathBuf) -> Self {
        Self { folders: vec![folder], ..Self::default() }
    }
}

/// The models themselves, which agree on what a row and a label are.
pub(super) struct Models {
    models: Vec<Classifier>,
    rule: EnsembleRule,
    fit: Fit,
}

impl Models {
    pub(super) fn load(tested: &Tested) -> Result<Self, Error> {
        let mut models: Vec<Classifier> = Vec::with_capacity(tested.folders.len());
        let mut fit: Option<Fit> = None;
        for folder in &tested.folders {
            let model = Classifier::load(folder).map_err(Error::Load)?;
            let own = Fit::of(model.config());
            let all = match fit {
                None => own,
                Some(all) => all.with(own).ok_or_else(|| {
                    let found = format!("{}, a model of {own}", folder.display());
                    DataError::mismatch("MODEL", found, format!("{all}, as the one before it"))
                })?,
            };
            fit = Some(all);
            models.push(model);
        }
        match fit {
            Some(fit) => Ok(Self { models, rule: tested.rule, fit }),
            None => Err(DataError::mismatch("MODEL", "an empty list", "one or more").into()),
        }
    }

    /// What data must be for all of them.
    pub(super) fn fit(&self) -> &Fit {
        &self.fit
    }

    /// The logits of all rows, `[rows, classes]`; of an arithmetic mean of probabilities, their
    /// logarithms.
    pub(super) fn logits(&self, data: &Dataset) -> Result<Vec<f64>, Error> {
        let mut members = self.models.iter().map(|model| logits(model, data));
        let Some(first) = members.next() else { return Ok(vec![]) };
        let mut all = vec![first?];
        for member in members {
            all.push(member?);
        }
        Ok(match (all.len(), self.rule) {
            (1, _) => all.swap_remove(0),
            (_, EnsembleRule::Geometric) => mean(&all),
            (_, EnsembleRule::Arithmetic) => log_mean_softmax(&all, self.fit.classes),
        })
    }
}

/// The logits of one model for all rows, `[rows, classes]`.
fn logits(model: &Classifier, data: &Dataset) -> Result<Vec<f64>, Error> {
    let rows: Vec<u32> = (0..data.len() as u32).collect();
    let mut all = Vec::with_capacity(rows.len() * model.classes());
    for rows in rows.chunks(ROWS) {
        let input = data.gather_f32(rows, model.rescale_factor());
        let logits = model.infer(&input, rows.len())?.logits;
        let row = |at: usize| rows[at / model.classes()] as usize;
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(ModelError::NonFiniteLogits { row: row(at) }.into());
        }
        all.extend(logits.into_iter().map(f64::from));
    }
    Ok(all)
}

/// The mean of the members' logits.
fn mean(members: &[Vec<f64>]) -> Vec<f64> {
    let sums = |at: usize| members.iter().map(|logits| logits[at]).sum::<f64>();
    (0..members[0].len()).map(|at| sums(at) / members.len() as f64).collect()
}

/// log of the mean of the members' softmax. Probabilities that 64 bits cannot hold have a logarithm
/// all the same.
fn log_mean_softmax(members: &[Vec<f64>], classes: usize) -> Vec<f64> {
    let count = (members.len() as f64).ln();
    let normalised: Vec<Vec<f64>> = members
        .iter()
        .map(|logits| {
            let rows = logits.chunks_exact(classes);
            rows.flat_map(|row| {
                let sum = log_sum_exp(row.iter().copied());
                row.iter().map(move |logit| logit - sum)
            })
            .collect()
        })
        .collect();
    let of_all = |at: usize| log_sum_exp(normalised.iter().map(|logits| logits[at]));
    (0..members[0].len()).map(|at| of_all(at) - count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_become_one_by_either_rule() {
        let members =
            [vec![1.0, 2.0, 4.0, 0.0, 0.0, -900.0], vec![3.0, 0.0, 0.0, 0.0, 1.0, -900.0]];
        assert_eq!(mean(&members), [2.0, 1.0, 2.0, 0.0, 0.5, -900.0]);
        let found = log_mean_softmax(&members, 3);
        for (row, found) in found.chunks(3).enumerate() {
            let softmax = |member: usize, class: usize| {
                let of_row = &members[member][3 * row..3 * row + 3];
                of_row[class].exp() / of_row.iter().map(|logit| logit.exp()).sum::<f64>()
            };
            for (class, found) in found.iter().enumerate() {
                let expected = (softmax(0, class) + softmax(1, class)) / 2.0;
                assert!((found.exp() - expected).abs() < 1e-15, "{row} {class}: {found}");
            }
        }
        // exp(-900) is none of 64 bits; its logarithm is: the mean of e^-900 / 2 and e^-900 / (1 + e).
        let one = 1.0_f64;
        let expected = -900.0 + ((0.5 + 1.0 / (1.0 + one.exp())) / 2.0).ln();
        assert!((found[5] - expected).abs() < 1e-12, "{}", found[5]);
    }
}
