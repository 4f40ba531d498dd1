//! Teacher and student as log-probabilities over the same outcomes, and how a divergence between
//! them reaches the student's logits.

use super::config::Divergence;
use super::{jsd, kl, reverse_kl, skew, tv};

/// The maximum of those that are numbers; -inf of none.
fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, |max, x| if x > max { x } else { max })
}

/// log sum exp, shifted by the maximum; -inf over nothing or over -inf alone.
pub(super) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = largest(values.clone());
    if max == f64::NEG_INFINITY {
        // Nothing above -inf: no mass, unless there was a NaN, which must show.
        return values.fold(max, |sum, x| if x.is_nan() { x } else { sum });
    }
    max + values.map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// log(exp a + exp b).
pub(super) fn log_add_exp(a: f64, b: f64) -> f64 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// The maximum, and log sum exp of what lies below it: apart, because the second vanishes in the
/// rounding of a large first.
pub(super) fn max_and_log_sum(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let max = largest(values.clone());
    (max, values.map(|x| (x - max).exp()).sum::<f64>().ln())
}

/// Logits over `temperature`, shifted so that the largest is 0: softmax does not see the shift,
/// and the difference of two logits is not lost where their quotients are huge.
pub(super) fn soften(logits: &[f64], temperature: f64) -> Vec<f64> {
    let max = largest(logits.iter().copied());
    logits.iter().map(|z| (z - max) / temperature).collect()
}

/// log softmax.
pub(super) fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let (max, log_sum) = max_and_log_sum(logits.iter().copied());
    logits.iter().map(|z| (z - max) - log_sum).collect()
}

/// D(p, q) from the logarithms of both, and in `grad` its derivative by each log q, where a
/// multiple of q may be left out: it vanishes under the constraint that q sums to 1.
pub(super) fn divergence(
    divergence: Divergence,
    log_p: &[f64],
    log_q: &[f64],
    grad: &mut [f64],
) -> f64 {
    let pairs = log_p.iter().copied().zip(log_q.iter().copied());
    let terms = pairs.zip(grad);
    let mut value = 0.0;
    for ((log_p, log_q), grad) in terms {
        let (term, slope) = match divergence {
            Divergence::ForwardKl => kl::forward(log_p, log_q),
            Divergence::CrossEntropy => kl::cross_entropy(log_p, log_q),
            Divergence::ReverseKl => reverse_kl::term(log_p, log_q),
            Divergence::JensenShannon { beta } => jsd::term(beta, log_p, log_q),
            Divergence::SkewKl { lambda } => skew::term(lambda, log_p, log_q),
            Divergence::TotalVariation => tv::term(log_p, log_q),
            // Not a function of probabilities: `dense` computes it from logits.
            Divergence::LogitMse => (f64::NAN, f64::NAN),
        };
        value += term;
        *grad = slope;
    }
    value
}

/// Turns derivatives by log q over all classes into derivatives by the logits behind q.
pub(super) fn through_softmax(grad: &mut [f64], log_q: &[f64]) {
    let total: f64 = grad.iter().sum();
    for (g, log_q) in grad.iter_mut().zip(log_q) {
        *g -= log_q.exp() * total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_extremes() {
        let of = |values: &[f64]| log_sum_exp(values.iter().copied());
        assert_eq!(of(&[]), f64::NEG_INFINITY);
        assert_eq!(of(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
        assert!((of(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-9);
        // Shifting by the largest magnitude, -1e4, would overflow.
        assert_eq!(of(&[-1e4, 0.0]), 0.0);
        assert!(of(&[f64::NAN, 0.0]).is_nan() && of(&[f64::NAN]).is_nan());
        assert!((log_add_exp(0.3, -0.2) - of(&[0.3, -0.2])).abs() < 1e-15);
        assert_eq!(log_add_exp(f64::NEG_INFINITY, 1.0), 1.0);
    }

    #[test]
    fn ties_far_from_zero_stay_ties() {
        for z in [-1e17, 1e4, 1e17] {
            assert!(log_softmax(&[z; 4]).iter().all(|x| *x == -(4f64.ln())));
        }
        assert_eq!(soften(&[3.0, 1.0, 3.0], 0.5), [0.0, -4.0, 0.0]);
        assert!(log_softmax(&[f64::INFINITY, 0.0])[0].is_nan());
    }

    /// Over two classes q = (s, 1 - s) with s the logistic function of z1 - z2.
    #[test]
    fn softmax_of_two_classes_is_logistic() {
        for difference in [-1e4, -3.0, 0.0, 0.7, 40.0] {
            let log_q = log_softmax(&[difference + 5.0, 5.0]);
            let expected = -(-difference).exp().ln_1p();
            let expected = if difference < -700.0 { difference } else { expected };
            assert!((log_q[0] - expected).abs() < 1e-12, "{difference}");
        }
    }
}
