//! Log-probabilities of a row, and the mass of some of them.

use stillhouse_nn::softmax::{largest, sum_of_exp};

/// log(sum(exp(x))) of all parts; -infinity where there is nothing to sum.
pub(super) fn log_sum_exp<'a>(parts: impl Iterator<Item = &'a [f64]> + Clone) -> f64 {
    let largest = parts.clone().filter_map(largest).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + parts.map(|part| sum_of_exp(part, largest)).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use stillhouse_nn::softmax::log_softmax;

    fn softened(logits: &[f32], temperature: f32) -> Vec<f64> {
        let mut out = Vec::new();
        log_softmax(logits, temperature, &mut out);
        out
    }

    #[test]
    fn two_classes_follow_the_logistic_function() {
        for (gap, temperature) in [(0.0_f32, 1.0_f32), (3.0, 4.0), (-7.5, 0.5), (1e4, 1.0)] {
            let out = softened(&[gap, 0.0], temperature);
            let x = f64::from(gap) / f64::from(temperature);
            let expected = -(-x).exp().ln_1p();
            if expected.is_finite() {
                assert!((out[0] - expected).abs() <= 1e-14 * expected.abs().max(1e-300) + 1e-15);
            }
            assert!((out.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn extreme_logits_and_temperatures_stay_defined() {
        for logits in [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [f32::MAX, f32::MIN, 0.0]] {
            for temperature in [f32::MIN_POSITIVE, 1e-45, 1.0, 1e4, f32::MAX] {
                let out = softened(&logits, temperature);
                assert!(out.iter().all(|x| !x.is_nan() && *x <= 0.0), "{logits:?} {temperature}");
                assert!((out.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_high_temperature_approaches_the_uniform_distribution() {
        let out = softened(&[5.0, -3.0, 1.0, 0.0], 1e9);
        assert!(out.iter().all(|x| (x.exp() - 0.25).abs() < 1e-8));
    }
}
