//! From logits to log-probabilities at a temperature, one row at a time.

use stillhouse_nn::exp::sum_of_exp;

/// log p_T of a row: `z / T - log(sum(exp(z / T)))`, in f64, shifted by the largest logit so that
/// no exponential overflows.
///
/// `logits` are f32 or f64, finite and within the range of f32; `temperature` is finite and above 0.
pub(super) fn log_softmax<Z: Copy + PartialOrd + Into<f64>>(
    logits: &[Z],
    temperature: f32,
    out: &mut Vec<f64>,
) {
    let inverse = f64::from(temperature).recip();
    let largest = largest(logits).map_or(f64::NEG_INFINITY, Into::into);
    let shifted = |z: f64| {
        // T may be so small that 1 / T overflows; the largest logit stays at 0 all the same.
        let gap = z - largest;
        if gap == 0.0 { 0.0 } else { gap * inverse }
    };
    out.clear();
    out.extend(logits.iter().map(|&z| shifted(z.into())));
    let normalizer = sum_of_exp(out, 0.0).ln();
    out.iter_mut().for_each(|x| *x -= normalizer);
}

/// The largest of values that are numbers; several at once, for the compiler to use vectors.
fn largest<Z: Copy + PartialOrd>(values: &[Z]) -> Option<Z> {
    let larger = |a: Z, b: Z| if b > a { b } else { a };
    let (blocks, rest) = values.as_chunks::<16>();
    let of_blocks = blocks.iter().copied().reduce(|mut lanes, block| {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane = larger(*lane, value));
        lanes
    });
    of_blocks.iter().flatten().chain(rest).copied().reduce(larger)
}

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
    use super::*;

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

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        assert_eq!(largest::<f32>(&[]), None);
        for n in 1..70 {
            for at in 0..n {
                let values: Vec<f32> = (0..n).map(|i| if i == at { -1.0 } else { -2.0 }).collect();
                assert_eq!(largest(&values), Some(-1.0), "{at} of {n}");
            }
        }
    }
}
