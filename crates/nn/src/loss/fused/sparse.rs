//! Rows whose label names some classes: the student's softmax over all of them is computed in one
//! vectorised pass, and what the label says is put in place class by class.

use super::Scales;
use super::row::{Terms, argmax, largest, sum_exp};
use crate::error::LossError;
use crate::kernel::math::exp;
use crate::loss::config::LossConfig;
use crate::loss::outcomes::divergence;
use crate::loss::target::{check_ids, normalize};
use crate::loss::top_k::Known;

/// Terms against draws; `z` becomes the gradient.
pub(super) fn sampled(
    row: usize,
    z: &mut [f32],
    hard: Option<usize>,
    (draws, ids, counts): (u32, &[u32], &[u32]),
    config: &LossConfig,
    scales: Scales,
) -> Result<Terms, LossError> {
    check_ids(row, ids, z.len())?;
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    if total != u64::from(draws) || draws == 0 {
        let (field, value) = ("sum of the soft label's counts", total as f64);
        let expected = format!("the number of draws, {draws}, and at least 1");
        return Err(LossError::Row { field, row, value, expected });
    }
    let student = Student::of(z, config.temperature);
    let label = hard.map(|class| Label::new(z, class, scales.hard, &student));
    let mut terms =
        Terms { hard: label.as_ref().map_or(0.0, |label| label.value), ..Terms::default() };
    let frequencies = counts.iter().map(|&count| f64::from(count) / f64::from(draws));
    let named = ids.iter().map(|&id| id as usize).zip(frequencies);
    let value: f64 = named.clone().map(|(id, f)| -f * student.log(z[id])).sum();
    terms.soft = config.temperature * config.temperature * value;
    let scale = scales.soft * config.temperature;
    softmaxes(z, &student, scale, label.as_ref(), None);
    for (id, frequency) in named {
        z[id] -= (scale * frequency) as f32;
    }
    if let Some(label) = &label {
        z[label.class] -= scales.hard as f32;
    }
    Ok(terms)
}

/// Terms against k classes and the mass of the rest; `z`, which has more than k classes, becomes the
/// gradient.
pub(super) fn top_k(
    row: usize,
    z: &mut [f32],
    hard: Option<usize>,
    known: Known<'_>,
    config: &LossConfig,
    scales: Scales,
) -> Result<Terms, LossError> {
    check_ids(row, known.ids, z.len())?;
    let mut log_p: Vec<f64> = known.log_probabilities.iter().map(|&x| f64::from(x)).collect();
    log_p.push(f64::from(known.log_tail_mass));
    normalize(row, &mut log_p)?;
    let ids: Vec<usize> = known.ids.iter().map(|&id| id as usize).collect();
    let agrees = ids.get(argmax(known.log_probabilities)).is_some_and(|&id| id == argmax(z));
    let temperature = config.temperature;
    let student = Student::of(z, temperature);
    let label = hard.map(|class| Label::new(z, class, scales.hard, &student));
    let hard = label.as_ref().map_or(0.0, |label| label.value);
    let mut terms = Terms { agrees, hard, ..Terms::default() };
    // The tail on its own: as what is left of 1 it would be lost in rounding.
    let named: Vec<f32> = ids.iter().map(|&id| z[id]).collect();
    ids.iter().for_each(|&id| z[id] = f32::NEG_INFINITY);
    let tail = Student::of(z, temperature);
    ids.iter().zip(&named).for_each(|(&id, &z_id)| z[id] = z_id);
    let log_tail = (f64::from(tail.max) - f64::from(student.max)) / temperature + tail.log_sum
        - student.log_sum;
    let mut log_q: Vec<f64> = named.iter().map(|&z| student.log(z)).collect();
    log_q.push(log_tail);
    let mut slopes = vec![0.0; log_q.len()];
    let value = divergence(config.divergence, &log_p, &log_q, &mut slopes);
    terms.soft = temperature * temperature * value;
    // log q of a class in the tail moves the tail's by its share of it; the sum of all slopes goes
    // along with every q.
    let total: f64 = slopes.iter().sum();
    let of_tail = slopes.last().copied().unwrap_or(0.0);
    let scale = scales.soft * temperature;
    // The named classes have no share of the tail: what they have is put in its place.
    let own: Vec<f64> = ids
        .iter()
        .zip(log_q.iter().zip(&slopes))
        .map(|(&id, (log_q, slope))| {
            let of_label = label.as_ref().map_or(0.0, |label| label.slope(z[id]));
            scale * (slope - log_q.exp() * total) + of_label
        })
        .collect();
    let tails = (scale * of_tail != 0.0).then(|| tail.term(scale * of_tail));
    softmaxes(z, &student, -scale * total, label.as_ref(), tails);
    ids.iter().zip(own).for_each(|(&id, own)| z[id] = own as f32);
    if let Some(label) = &label {
        z[label.class] -= scales.hard as f32;
    }
    Ok(terms)
}

/// The student's side at T: log q of a logit is `(z - max) / T - log_sum`.
#[derive(Clone, Copy)]
struct Student {
    max: f32,
    temperature: f64,
    log_sum: f64,
}

impl Student {
    fn of(z: &[f32], temperature: f64) -> Self {
        let (mut max, mut sum) = (0.0, 0.0);
        pulp::Arch::new().dispatch(Normalize { z, temperature, max: &mut max, sum: &mut sum });
        Self { max, temperature, log_sum: sum.ln() }
    }

    /// `scale` times its softmax.
    fn term(&self, scale: f64) -> Term {
        Term {
            scale: scale as f32,
            max: self.max,
            inverse_t: (1.0 / self.temperature) as f32,
            log_sum: self.log_sum as f32,
        }
    }

    fn log(&self, z: f32) -> f64 {
        (f64::from(z) - f64::from(self.max)) / self.temperature - self.log_sum
    }
}

/// A hard label beside a sparse one.
struct Label {
    class: usize,
    /// -log q\[class\] at T = 1.
    value: f64,
    /// Of its gradient.
    scale: f64,
    cold: Student,
}

impl Label {
    fn new(z: &[f32], class: usize, scale: f64, student: &Student) -> Self {
        let cold = if student.temperature == 1.0 { *student } else { Student::of(z, 1.0) };
        Self { class, value: -cold.log(z[class]), scale, cold }
    }

    /// What the softmax at T = 1 adds to the gradient by `z`.
    fn slope(&self, z: f32) -> f64 {
        self.scale * self.cold.log(z).exp()
    }
}

struct Normalize<'a> {
    z: &'a [f32],
    temperature: f64,
    max: &'a mut f32,
    sum: &'a mut f64,
}

impl pulp::WithSimd for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        *self.max = largest(self.z);
        *self.sum = sum_exp(self.z, *self.max, (1.0 / self.temperature) as f32);
    }
}

/// `z` to `soft` times its softmax at T, plus the hard label's and another's.
fn softmaxes(
    z: &mut [f32],
    student: &Student,
    mut soft: f64,
    label: Option<&Label>,
    other: Option<Term>,
) {
    let mut cold = None;
    if let Some(label) = label.filter(|label| label.scale != 0.0) {
        if student.temperature == 1.0 {
            soft += label.scale;
        } else {
            cold = Some(label.cold.term(label.scale));
        }
    }
    let own = student.term(soft);
    match (cold, other) {
        (None, None) => pulp::Arch::new().dispatch(Softmaxes { z, terms: [own] }),
        (Some(term), None) | (None, Some(term)) => {
            pulp::Arch::new().dispatch(Softmaxes { z, terms: [own, term] });
        }
        (Some(cold), Some(other)) => {
            pulp::Arch::new().dispatch(Softmaxes { z, terms: [own, cold, other] });
        }
    }
}

/// `scale * exp((z - max) * inverse_t - log_sum)`.
#[derive(Clone, Copy)]
struct Term {
    scale: f32,
    max: f32,
    inverse_t: f32,
    log_sum: f32,
}

struct Softmaxes<'a, const N: usize> {
    z: &'a mut [f32],
    terms: [Term; N],
}

impl<const N: usize> pulp::WithSimd for Softmaxes<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for z in self.z {
            let mut sum = 0.0;
            for term in self.terms {
                let log = (*z - term.max).mul_add(term.inverse_t, -term.log_sum);
                sum = term.scale.mul_add(exp(log), sum);
            }
            *z = sum;
        }
    }
}
