//! Rows whose label is a value for every class: logits, or log-probabilities at T.

use super::Scales;
use super::row::{LANES, PIECE, Terms, argmax, largest, sum, sum_exp};
use crate::error::LossError;
use crate::kernel::math::{exp, ln};
use crate::loss::config::{Divergence, LossConfig};
use crate::loss::reverse_kl::LOG_OF_ZERO;
use crate::loss::target::{MASS_TOLERANCE, RowTarget};

/// Whether [`row`] can compute it.
pub(super) fn handles(divergence: Divergence, target: &RowTarget<'_>) -> bool {
    let kind = matches!(
        divergence,
        Divergence::ForwardKl
            | Divergence::CrossEntropy
            | Divergence::ReverseKl
            | Divergence::JensenShannon { .. }
    );
    kind && matches!(target, RowTarget::LogProbabilities(_) | RowTarget::Logits(_))
}

/// Terms of a row; `z` becomes the gradient.
pub(super) fn row(
    row: usize,
    z: &mut [f32],
    hard: Option<usize>,
    target: RowTarget<'_>,
    config: &LossConfig,
    scales: Scales,
) -> Result<Terms, LossError> {
    let (t, logits) = match target {
        RowTarget::Logits(t) => (t, true),
        RowTarget::LogProbabilities(t) => (t, false),
        // `handles` has refused it.
        _ => return Ok(Terms::default()),
    };
    let temperature = config.temperature;
    let mut outcome = Ok(Terms::default());
    let agrees = argmax(z) == argmax(t);
    pulp::Arch::new().dispatch(Dense {
        row,
        z,
        t,
        hard,
        kind: config.divergence,
        inverse_t: (1.0 / temperature) as f32,
        teacher_inverse_t: if logits { (1.0 / temperature) as f32 } else { 1.0 },
        logits,
        hard_scale: scales.hard as f32,
        soft_scale: (scales.soft * temperature) as f32,
        outcome: &mut outcome,
    });
    outcome.map(|terms| Terms { soft: temperature * temperature * terms.soft, agrees, ..terms })
}

struct Dense<'a> {
    row: usize,
    z: &'a mut [f32],
    /// The teacher's logits, or log-probabilities.
    t: &'a [f32],
    hard: Option<usize>,
    kind: Divergence,
    inverse_t: f32,
    teacher_inverse_t: f32,
    logits: bool,
    hard_scale: f32,
    /// T times the weight: the derivative of T^2 D(z / T) by z.
    soft_scale: f32,
    outcome: &'a mut Result<Terms, LossError>,
}

/// The sum over pairs of elements of a term of `log q` and `log p`. A macro, as a closure is not always
/// inlined where the vector instructions are.
macro_rules! pair_sum {
    ($z:expr, $t:expr, $student:expr, $teacher:expr, |$log_q:ident, $log_p:ident| $term:expr) => {{
        let mut total = 0f64;
        for (z, t) in $z.chunks(PIECE).zip($t.chunks(PIECE)) {
            let mut lanes = [0f32; LANES];
            let ((z, z_rest), (t, t_rest)) = (z.as_chunks::<LANES>(), t.as_chunks::<LANES>());
            for (z, t) in z.iter().zip(t) {
                for i in 0..LANES {
                    let ($log_q, $log_p) = ($student.log(z[i]), $teacher.log(t[i]));
                    lanes[i] += $term;
                }
            }
            for (lane, (&z, &t)) in lanes.iter_mut().zip(z_rest.iter().zip(t_rest)) {
                let ($log_q, $log_p) = ($student.log(z), $teacher.log(t));
                *lane += $term;
            }
            total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        total
    }};
}

/// One side's logits as log-probabilities: `(z - max) * inverse_t - log_sum`.
#[derive(Clone, Copy)]
struct Side {
    max: f32,
    inverse_t: f32,
    log_sum: f32,
}

impl Side {
    #[inline(always)]
    fn log(self, z: f32) -> f32 {
        let log = (z - self.max).mul_add(self.inverse_t, -self.log_sum);
        // p = 0, as a label has it: its logarithm must not meet a 0.
        if log == f32::NEG_INFINITY { LOG_OF_ZERO as f32 } else { log }
    }
}

/// What the hard label adds to the gradient, where its softmax is not the one at T.
#[derive(Clone, Copy)]
struct Cold {
    side: Side,
    scale: f32,
}

impl Cold {
    #[inline(always)]
    fn gradient(self, z: f32) -> f32 {
        self.scale * exp(self.side.log(z))
    }
}

/// beta p + (1 - beta) q.
#[derive(Clone, Copy)]
struct Mixture {
    log_beta: f32,
    log_rest: f32,
}

impl Mixture {
    #[inline(always)]
    fn log(self, log_p: f32, log_q: f32) -> f32 {
        let (a, b) = (self.log_beta + log_p, self.log_rest + log_q);
        let (high, low) = if a > b { (a, b) } else { (b, a) };
        high + ln(1.0 + exp(low - high))
    }
}

impl pulp::WithSimd for Dense<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let teacher_max = largest(self.t);
        let teacher_sum = sum_exp(self.t, teacher_max, self.teacher_inverse_t);
        if let Err(error) = self.check(teacher_max, teacher_sum) {
            *self.outcome = Err(error);
            return;
        }
        let Self { z, t, hard, kind, inverse_t, hard_scale, soft_scale, .. } = self;
        let max = largest(z);
        let sum_at_t = sum_exp(z, max, inverse_t);
        let student = Side { max, inverse_t, log_sum: sum_at_t.ln() as f32 };
        let teacher = Side {
            max: teacher_max,
            inverse_t: self.teacher_inverse_t,
            log_sum: teacher_sum.ln() as f32,
        };
        let mut terms = Terms::default();
        let mut cold = Cold { side: student, scale: 0.0 };
        if let Some(class) = hard {
            let sum = if inverse_t == 1.0 { sum_at_t } else { sum_exp(z, max, 1.0) };
            terms.hard = sum.ln() - (f64::from(z[class]) - f64::from(max));
            let log_sum = sum.ln() as f32;
            cold = Cold { side: Side { max, inverse_t: 1.0, log_sum }, scale: hard_scale };
        }
        // At T = 1 both terms share the student's softmax.
        let mut shared = 0.0;
        if inverse_t == 1.0 {
            (shared, cold.scale) = (cold.scale, 0.0);
        }
        terms.soft = match kind {
            Divergence::ReverseKl => {
                let value =
                    pair_sum!(z, t, student, teacher, |log_q, log_p| exp(log_q) * (log_q - log_p));
                let mean = value as f32;
                for (z, &t) in z.iter_mut().zip(t) {
                    let (log_q, log_p) = (student.log(*z), teacher.log(t));
                    let slope = soft_scale * ((log_q - log_p) - mean) + shared;
                    *z = exp(log_q).mul_add(slope, cold.gradient(*z));
                }
                value
            }
            Divergence::JensenShannon { beta } => {
                let (beta, rest) = (beta as f32, (1.0 - beta) as f32);
                let mixture = Mixture { log_beta: ln(beta), log_rest: ln(rest) };
                let students = pair_sum!(z, t, student, teacher, |log_q, log_p| {
                    rest * exp(log_q) * (log_q - mixture.log(log_p, log_q))
                });
                let teachers = pair_sum!(z, t, student, teacher, |log_q, log_p| {
                    beta * exp(log_p) * (log_p - mixture.log(log_p, log_q))
                });
                let mean = students as f32;
                for (z, &t) in z.iter_mut().zip(t) {
                    let (log_q, log_p) = (student.log(*z), teacher.log(t));
                    let slope = rest * (log_q - mixture.log(log_p, log_q)) - mean;
                    let slope = soft_scale.mul_add(slope, shared);
                    *z = exp(log_q).mul_add(slope, cold.gradient(*z));
                }
                students + teachers
            }
            _ => {
                let own = if kind == Divergence::CrossEntropy { 0.0 } else { 1.0 };
                let value = pair_sum!(z, t, student, teacher, |log_q, log_p| {
                    exp(log_p) * (own * log_p - log_q)
                });
                let (of_q, of_p) = (soft_scale + shared, soft_scale);
                for (z, &t) in z.iter_mut().zip(t) {
                    let (q, p) = (exp(student.log(*z)), exp(teacher.log(t)));
                    *z = q.mul_add(of_q, cold.gradient(*z)) - of_p * p;
                }
                value
            }
        };
        if let Some(class) = hard {
            z[class] -= hard_scale;
        }
        *self.outcome = Ok(terms);
    }
}

impl Dense<'_> {
    /// Refuses labels that are none.
    #[inline(always)]
    fn check(&self, max: f32, sum: f64) -> Result<(), LossError> {
        let row = self.row;
        if self.logits {
            // 0 unless one of them is not finite.
            let finite = sum!(self.t, |x| x * 0.0);
            if finite == 0.0 {
                return Ok(());
            }
            let found = self.t.iter().find(|t| !t.is_finite()).copied().unwrap_or(f32::NAN);
            let (value, expected) = (f64::from(found), "a finite number".to_owned());
            return Err(LossError::Row { field: "teacher logit", row, value, expected });
        }
        let mass = sum * f64::from(max).exp();
        if (mass - 1.0).abs() <= MASS_TOLERANCE {
            return Ok(());
        }
        let expected = format!("1 within {MASS_TOLERANCE}");
        let field = "probability mass of the soft label";
        Err(LossError::Row { field, row, value: mass, expected })
    }
}
