//! The loss of an output projection: linear layer, softmax and divergence in one, a block of rows at a
//! time.
//!
//! Neither the logits of a whole batch nor their gradient is ever held: of a block of rows the
//! student's logits (and the teacher's, from its hidden states) are computed, turned into the gradient
//! where they stand, and multiplied on to the gradients of hidden states and weight. The memory is that
//! of one block, [`BLOCK`] elements for each side, whatever the number of rows and the vocabulary; no
//! product is computed twice. (Liger Kernel, arXiv 2410.10989, has the idea; cutting the vocabulary as
//! well would cost a second product for the gradient.)
//!
//! Rows are computed in f32, their sums in f64.

mod dense;
mod row;
mod sparse;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::batch::{LossParts, check_hard, distill};
use super::config::{Divergence, LossConfig, TopKForm};
use super::target::{RowTarget, SoftTarget};
use crate::error::LossError;
use crate::kernel::gemm::Matrix;
use crate::kernel::math::tanh;
use crate::kernel::precision::{Precision, Right};
use crate::layers::{SharedGradient, lock, shared_gradient};
use crate::model::PackedHead;
use crate::softmax::{LOWEST, log_softmax, narrow};
use row::Terms;
pub(crate) use row::argmax;

/// Logits that are held at once, at least 16 rows of them.
const BLOCK: usize = 1 << 23;
/// Temperatures that rows are computed at in f32: below, 1 / T could leave it; above, T^2 times the rounding
/// of sums would be more than is lost elsewhere.
const USUAL: std::ops::RangeInclusive<f64> = 1e-6..=32.0;
const MIN_ROWS: usize = 16;
const MAX_ROWS: usize = 1024;

/// A student's output projection.
#[derive(Clone, Copy, Debug)]
pub struct OutputLayer<'a> {
    /// [outputs, d], row-major.
    pub weight: &'a [f32],
    /// \[outputs\].
    pub bias: Option<&'a [f32]>,
    /// Logits z become `cap * tanh(z / cap)`.
    pub softcap: Option<f32>,
    /// d.
    pub width: usize,
    /// The first of them are the classes; those beyond are padding, which gets neither mass nor
    /// gradient.
    pub classes: usize,
    /// Of the products with the weight.
    pub precision: Precision,
}

impl OutputLayer<'_> {
    /// Logits of hidden states, [rows, classes].
    pub(crate) fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let &Self { weight, bias, softcap, width: d, classes, precision } = self;
        let rows = Matrix::new(hidden, hidden.len() / d, d);
        let mut logits = vec![0.0; rows.rows() * classes];
        let weight = precision.right(Matrix::new(&weight[..classes * d], classes, d).t());
        project(&mut logits, rows, &weight, bias, softcap, classes);
        logits
    }
}

/// What the teacher says of the rows.
#[derive(Clone, Copy, Debug)]
pub enum SoftLabels<'a> {
    /// Labels over the classes.
    Target(&'a SoftTarget),
    /// The teacher's hidden states [rows, d of the teacher], from which its head makes logits, of
    /// which the first `classes` count. At temperatures from 1e-6 to 32 they become the very
    /// log-probabilities in f32 that a teacher server sends of the same states.
    Hidden {
        /// Row-major.
        states: &'a [f32],
        /// The teacher's output projection, with at least as many rows as there are classes.
        head: &'a PackedHead,
    },
}

/// Where the gradients go.
pub(crate) struct Gradients<'a> {
    /// [rows, d], overwritten.
    pub(crate) hidden: &'a mut [f32],
    /// Of the weight [outputs, d], added to.
    pub(crate) weight: &'a SharedGradient,
    /// Of the bias, added to.
    pub(crate) bias: Option<&'a SharedGradient>,
}

/// A loss as sums over rows: what micro-batches add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// -log q\[y\] at T = 1, where there are hard labels.
    pub hard: Option<f64>,
    /// T^2 times the divergence, where there are soft labels.
    pub soft: Option<f64>,
    /// Rows where teacher and student have the same most probable class; none for draws, which do
    /// not tell the teacher's.
    pub agreeing: usize,
    /// Rows.
    pub rows: usize,
}

impl LossSums {
    /// Sums over `denominator`, usually [`Self::rows`], and their weighted sum.
    pub fn parts(&self, config: &LossConfig, denominator: f64) -> LossParts {
        let mean = |sum: Option<f64>| sum.map(|sum| sum / denominator);
        LossParts::new(mean(self.hard), mean(self.soft), config)
    }

    /// Takes in the rows of another batch.
    pub fn add(&mut self, other: &Self) {
        let add = |sum: &mut Option<f64>, other: Option<f64>| {
            *sum = match (*sum, other) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
        };
        add(&mut self.hard, other.hard);
        add(&mut self.soft, other.soft);
        self.agreeing += other.agreeing;
        self.rows += other.rows;
    }
}

/// Gradients of [`output_loss`].
#[derive(Clone, Debug, PartialEq)]
pub struct OutputGradients {
    /// By the hidden states, [rows, d].
    pub hidden: Vec<f32>,
    /// By the weight, of its shape; 0 for padding.
    pub weight: Vec<f32>,
    /// By the bias, where there is one.
    pub bias: Option<Vec<f32>>,
}

/// The loss of hidden states [rows, d] under an output projection, and its gradients, without ever
/// holding the logits of all rows: sums over the rows, and the gradients of those sums by the weights of
/// `config`, over `denominator`.
///
/// # Errors
///
/// A [`LossError`] for a configuration out of range, and labels that are missing, of the wrong size or
/// no labels at all. Hidden states that are not finite are no error: they give a loss that is not.
pub fn output_loss(
    hidden: &[f32],
    output: OutputLayer<'_>,
    hard: Option<&[u32]>,
    soft: Option<&SoftLabels<'_>>,
    config: &LossConfig,
    denominator: f64,
) -> Result<(LossSums, OutputGradients), LossError> {
    let mut to_hidden = vec![0.0; hidden.len()];
    let weight = shared_gradient(output.weight.len());
    let bias = output.bias.map(|bias| shared_gradient(bias.len()));
    let gradients = Gradients { hidden: &mut to_hidden, weight: &weight, bias: bias.as_ref() };
    let sums = fused_loss(hidden, output, hard, soft, config, denominator, Some(gradients))?;
    let values = |gradient: &SharedGradient| lock(gradient).values().to_vec();
    let (weight, bias) = (values(&weight), bias.as_ref().map(values));
    Ok((sums, OutputGradients { hidden: to_hidden, weight, bias }))
}

/// The loss of `hidden` [rows, d] and, where asked for, its gradients, as sums over the rows divided by
/// `denominator`: the number of rows of the whole batch, of which these may be a part.
///
/// # Errors
///
/// A [`LossError`] for a configuration out of range, and labels that are missing, of the wrong size or
/// no labels at all. Hidden states that are not finite are no error here: they give a loss that is not.
pub(crate) fn fused_loss(
    hidden: &[f32],
    output: OutputLayer<'_>,
    hard: Option<&[u32]>,
    soft: Option<&SoftLabels<'_>>,
    config: &LossConfig,
    denominator: f64,
    mut gradients: Option<Gradients<'_>>,
) -> Result<LossSums, LossError> {
    let classes = output.classes;
    let rows = count_rows(hidden, &output, soft)?;
    config.validate()?;
    if !(denominator.is_finite() && denominator > 0.0) {
        let (field, expected) = ("denominator", "a finite number above 0");
        return Err(LossError::Config { field, value: denominator, expected });
    }
    if let Some(cap) = output.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
        let (field, expected) = ("output softcap", "a finite number above 0, or none");
        return Err(LossError::Config { field, value: cap.into(), expected });
    }
    let (hard_weight, soft_weight) = config.weights();
    for (missing, weight, found) in
        [("hard", hard_weight, hard.is_some()), ("soft", soft_weight, soft.is_some())]
    {
        if weight > 0.0 && !found {
            return Err(LossError::MissingLabels { weight, missing });
        }
    }
    if let Some(hard) = hard {
        check_hard(hard, rows, classes)?;
    }
    let (targets, teacher) = match soft {
        None => (None, None),
        Some(SoftLabels::Target(target)) => {
            config.divergence.supports(target)?;
            (Some(target.rows(rows, classes)?), None)
        }
        Some(SoftLabels::Hidden { states, head }) => (None, Some((*states, *head))),
    };
    let wanted = gradients.is_some();
    let scales = Scales {
        hard: if wanted { hard_weight / denominator } else { 0.0 },
        soft: if wanted { soft_weight / denominator } else { 0.0 },
    };
    let d = output.width;
    let weight = &output.weight[..classes * d];
    let by_weight = output.precision.right(Matrix::new(weight, classes, d).t());
    let back = wanted.then(|| output.precision.right(Matrix::new(weight, classes, d)));
    let block = (BLOCK / classes).clamp(MIN_ROWS, MAX_ROWS).min(rows.max(1));
    let mut z = vec![0.0; block * classes];
    // Of logits, or of what they become.
    let labelled = teacher.is_some() && labels_of_states(config);
    let mut sums = LossSums { hard: hard.map(|_| 0.0), soft: soft.map(|_| 0.0), agreeing: 0, rows };
    for first in (0..rows).step_by(block) {
        let n = block.min(rows - first);
        let h = Matrix::new(&hidden[first * d..][..n * d], n, d);
        let z = &mut z[..n * classes];
        project(z, h, &by_weight, output.bias, output.softcap, classes);
        let t = match teacher {
            None => vec![],
            Some((states, head)) => {
                let d = head.hidden_size();
                teacher_rows(&states[first * d..][..n * d], head, first, (classes, config))?
            }
        };
        // The slope of the cap, from the logits before they become their gradient.
        let slopes = match output.softcap {
            Some(cap) if wanted => z.iter().map(|z| 1.0 - (z / cap) * (z / cap)).collect(),
            _ => vec![],
        };
        let target = |row: usize| match (&teacher, &targets) {
            (Some((_, head)), _) => {
                let own = &t[row * head.classes()..][..classes];
                match labelled {
                    true => Some(RowTarget::LogProbabilities(own)),
                    false => Some(RowTarget::Logits(own)),
                }
            }
            (None, Some(targets)) => Some(targets[first + row]),
            (None, None) => None,
        };
        // Of several rows that are refused, the first is the one that is named.
        let terms: Vec<Result<Terms, LossError>> = z
            .par_chunks_exact_mut(classes)
            .enumerate()
            .map(|(row, z)| {
                let hard = hard.map(|hard| hard[first + row] as usize);
                one_row(first + row, z, hard, target(row), config, scales)
            })
            .collect();
        for terms in terms {
            let terms = terms?;
            sums.hard = sums.hard.map(|sum| sum + terms.hard);
            sums.soft = sums.soft.map(|sum| sum + terms.soft);
            sums.agreeing += usize::from(terms.agrees);
        }
        if let (Some(gradients), Some(back)) = (&mut gradients, &back) {
            if !slopes.is_empty() {
                z.iter_mut().zip(&slopes).for_each(|(g, slope)| *g *= slope);
            }
            let g = Matrix::new(z, n, classes);
            let to_hidden = &mut gradients.hidden[first * d..][..n * d];
            back.multiply(to_hidden, false, g);
            lock(gradients.weight).add_product(output.precision, g.t(), h);
            if let Some(bias) = gradients.bias {
                let mut sum = vec![0.0; classes];
                for row in z.chunks_exact(classes) {
                    sum.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g);
                }
                lock(bias).add(&sum);
            }
        }
    }
    Ok(sums)
}

/// Whether a teacher's hidden states become log-probabilities: not where its logits themselves are wanted,
/// nor at temperatures that a loss of f32 labels would lose digits at.
fn labels_of_states(config: &LossConfig) -> bool {
    USUAL.contains(&config.temperature) && config.divergence != Divergence::LogitMse
}

/// Logits of some of the teacher's rows, the first of them number `first`, [rows, classes of the head]; or
/// log-probabilities of the first `classes` of each.
fn teacher_rows(
    states: &[f32],
    head: &PackedHead,
    first: usize,
    (classes, config): (usize, &LossConfig),
) -> Result<Vec<f32>, LossError> {
    let width = head.classes();
    // The size of the states has been checked.
    let mut rows = head.logits(states).unwrap_or_default();
    let (as_labels, temperature) = (labels_of_states(config), config.temperature as f32);
    let checked: Vec<Result<(), LossError>> = rows
        .par_chunks_exact_mut(width)
        .enumerate()
        .map_init(Vec::new, |wide, (row, z)| {
            let own = &mut z[..classes];
            if !own.iter().fold(true, |all, z| all & z.is_finite()) {
                let found = own.iter().find(|z| !z.is_finite()).copied().unwrap_or(f32::NAN);
                let (value, expected) = (f64::from(found), "a finite number".to_owned());
                let (field, row) = ("teacher logit", first + row);
                return Err(LossError::Row { field, row, value, expected });
            }
            if as_labels {
                log_softmax(own, temperature, wide);
                own.iter_mut().zip(wide.iter()).for_each(|(z, &log)| *z = narrow(log, LOWEST));
            }
            Ok(())
        })
        .collect();
    checked.into_iter().collect::<Result<(), _>>()?;
    Ok(rows)
}

/// What gradients by the logits are multiplied by.
#[derive(Clone, Copy, Debug)]
struct Scales {
    hard: f64,
    soft: f64,
}

/// `rows` times the transposed weight, with bias and cap.
fn project(
    out: &mut [f32],
    rows: Matrix<'_, f32>,
    weight: &Right<'_>,
    bias: Option<&[f32]>,
    softcap: Option<f32>,
    classes: usize,
) {
    if let Some(bias) = bias {
        out.chunks_exact_mut(classes).for_each(|out| out.copy_from_slice(&bias[..classes]));
    }
    weight.multiply(out, bias.is_some(), rows);
    if let Some(cap) = softcap {
        out.par_chunks_mut(classes).for_each(|row| {
            row.iter_mut().for_each(|z| *z = cap * tanh(*z / cap));
        });
    }
}

/// Number of rows, once all sizes fit each other.
fn count_rows(
    hidden: &[f32],
    output: &OutputLayer<'_>,
    soft: Option<&SoftLabels<'_>>,
) -> Result<usize, LossError> {
    let check = |field, found: usize, expected: usize| {
        if found == expected { Ok(()) } else { Err(LossError::Size { field, found, expected }) }
    };
    let &OutputLayer { weight, width, classes, .. } = output;
    for (field, found) in [("output classes", classes), ("output width", width)] {
        if found == 0 {
            return Err(LossError::Size { field, found, expected: 1 });
        }
    }
    let least = classes.saturating_mul(width);
    if weight.len() < least {
        return Err(LossError::Size {
            field: "output weight",
            found: weight.len(),
            expected: least,
        });
    }
    if let Some(bias) = output.bias.filter(|bias| bias.len() < classes) {
        let (found, expected) = (bias.len(), classes);
        return Err(LossError::Size { field: "output bias", found, expected });
    }
    let rows = hidden.len() / width;
    check("hidden states", hidden.len(), rows.max(1) * width)?;
    if let Some(SoftLabels::Hidden { states, head }) = soft {
        check("teacher's hidden states", states.len(), rows.saturating_mul(head.hidden_size()))?;
        if head.classes() < classes {
            let found = head.classes();
            return Err(LossError::Size { field: "teacher's head", found, expected: classes });
        }
    }
    Ok(rows)
}

/// Terms of one row of logits, which becomes the gradient of the loss by it.
fn one_row(
    row: usize,
    z: &mut [f32],
    hard: Option<usize>,
    target: Option<RowTarget<'_>>,
    config: &LossConfig,
    scales: Scales,
) -> Result<Terms, LossError> {
    let usual = USUAL.contains(&config.temperature);
    match target {
        None => Ok(row::hard_only(z, hard, scales.hard)),
        Some(target) if !usual => exactly(row, z, hard, target, config, scales),
        Some(target) if dense::handles(config.divergence, &target) => {
            dense::row(row, z, hard, target, config, scales)
        }
        Some(RowTarget::Sampled { draws, ids, counts }) => {
            sparse::sampled(row, z, hard, (draws, ids, counts), config, scales)
        }
        Some(RowTarget::TopK { ids, log_probabilities, log_tail_mass })
            if config.top_k_form == TopKForm::TailBucket && ids.len() < z.len() =>
        {
            let known = super::top_k::Known { ids, log_probabilities, log_tail_mass };
            sparse::top_k(row, z, hard, known, config, scales)
        }
        Some(target) => exactly(row, z, hard, target, config, scales),
    }
}

/// The remaining divergences, in f64.
fn exactly(
    row: usize,
    z: &mut [f32],
    hard: Option<usize>,
    target: RowTarget<'_>,
    config: &LossConfig,
    scales: Scales,
) -> Result<Terms, LossError> {
    let wide: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
    let agrees = row::argmax_of(&target).is_some_and(|class| class == argmax(z));
    let (value, slopes) = distill(row, &wide, target, config)?;
    let mut terms = row::hard_only(z, hard, scales.hard);
    let scale = scales.soft * config.temperature;
    z.iter_mut().zip(slopes).for_each(|(g, slope)| *g += (scale * slope) as f32);
    terms.soft = config.temperature * config.temperature * value;
    terms.agrees = agrees;
    Ok(terms)
}
