//! Log-probabilities in f64, exact to the last digits that an f32 carries: as the teacher server sends them
//! and as a student makes them of hidden states. The same operations in the same order on every machine: no
//! bit depends on the vector width.

/// The lowest log-probability that f32 and bf16 hold.
pub const LOWEST: f64 = -3.0e38;
/// Sums that run beside each other.
const LANES: usize = 16;
/// 1.5 * 2^52: adding it rounds to the nearest whole number, which then stands in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// ln 2 in two parts: the first is exact in 32 bits.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// 1 / n!, from the highest down: below 0.35 the next term is under a unit in the last place of 1.
const TAYLOR: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// e^x within 2 units in the last place; NaN stays NaN.
#[inline(always)]
fn exp(x: f64) -> f64 {
    let x = if x < -746.0 { -746.0 } else { x };
    let x = if x > 710.0 { 710.0 } else { x };
    let shifted = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    let mut p = TAYLOR[0];
    for c in &TAYLOR[1..] {
        p = r.mul_add(p, *c);
    }
    // 2^whole as a product of two, either of which is a normal number.
    let n = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i64) -> f64 {
    f64::from_bits((n.wrapping_add(1023) as u64) << 52)
}

/// Makes e^x of every x, within 2 units in the last place, and adds them up.
pub fn exp_and_sum(values: &mut [f64]) -> f64 {
    pulp::Arch::new().dispatch(ExpAndSum(values))
}

/// The sum of e^(x - shift).
pub fn sum_of_exp(values: &[f64], shift: f64) -> f64 {
    pulp::Arch::new().dispatch(SumOfExp { values, shift })
}

struct SumOfExp<'a> {
    values: &'a [f64],
    shift: f64,
}

impl pulp::WithSimd for SumOfExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = self.values.as_chunks::<LANES>();
        for block in blocks {
            for (&x, lane) in block.iter().zip(&mut lanes) {
                *lane += exp(x - self.shift);
            }
        }
        for (&x, lane) in rest.iter().zip(&mut lanes) {
            *lane += exp(x - self.shift);
        }
        lanes.iter().sum()
    }
}

struct ExpAndSum<'a>(&'a mut [f64]);

impl pulp::WithSimd for ExpAndSum<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = self.0.as_chunks_mut::<LANES>();
        for block in blocks {
            for (x, lane) in block.iter_mut().zip(&mut lanes) {
                *x = exp(*x);
                *lane += *x;
            }
        }
        for (x, lane) in rest.iter_mut().zip(&mut lanes) {
            *x = exp(*x);
            *lane += *x;
        }
        lanes.iter().sum()
    }
}

/// log p_T of a row: `z / T - log(sum(exp(z / T)))`, in f64, shifted by the largest logit so that
/// no exponential overflows.
///
/// `logits` are f32 or f64, finite and within the range of f32; `temperature` is finite and above 0.
pub fn log_softmax<Z: Copy + PartialOrd + Into<f64>>(
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
pub fn largest<Z: Copy + PartialOrd>(values: &[Z]) -> Option<Z> {
    let larger = |a: Z, b: Z| if b > a { b } else { a };
    let (blocks, rest) = values.as_chunks::<16>();
    let of_blocks = blocks.iter().copied().reduce(|mut lanes, block| {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane = larger(*lane, value));
        lanes
    });
    of_blocks.iter().flatten().chain(rest).copied().reduce(larger)
}

/// A log-probability as f32, for a type that holds none below `lowest`. What is below it is a probability
/// that no floating-point number holds, and is 0.
pub fn narrow(log_probability: f64, lowest: f64) -> f32 {
    if log_probability < lowest { f32::NEG_INFINITY } else { log_probability as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: f64) -> f64 {
        let mut values = [x];
        exp_and_sum(&mut values);
        values[0]
    }

    #[test]
    fn is_within_two_units() {
        for i in 0..=400_000 {
            let x = -708.0 + 1417.0 * f64::from(i) / 400_000.0;
            let expected = x.exp();
            let unit = f64::from_bits(expected.to_bits() + 1) - expected;
            let off = (one(x) - expected).abs() / unit;
            // The library's own is within one.
            assert!(off <= 2.0, "exp({x}) is off by {off}");
        }
        for i in 0..=10_000 {
            let x = -745.0 + 37.0 * f64::from(i) / 10_000.0;
            assert!((one(x) - x.exp()).abs() < 1e-323, "{x}");
        }
    }

    #[test]
    fn extremes_are_limits() {
        assert_eq!((one(0.0), one(-0.0)), (1.0, 1.0));
        assert_eq!((one(f64::NEG_INFINITY), one(-1e300), one(-747.0)), (0.0, 0.0, 0.0));
        assert_eq!((one(f64::INFINITY), one(1e300)), (f64::INFINITY, f64::INFINITY));
        assert!(one(f64::NAN).is_nan());
    }

    #[test]
    fn every_value_is_added_once() {
        for n in 0..70 {
            let mut values: Vec<f64> = (0..n).map(|i| f64::from(i % 5).ln()).collect();
            let shifted = sum_of_exp(&values, 2.0);
            let sum = exp_and_sum(&mut values);
            assert!((shifted - sum * (-2f64).exp()).abs() < 1e-12, "{n}: {shifted}");
            let expected: f64 = (0..n).map(|i| f64::from(i % 5)).sum();
            assert!((sum - expected).abs() < 1e-12, "{n}: {sum}");
            assert!(values.iter().zip(0..n).all(|(x, i)| (x - f64::from(i % 5)).abs() < 1e-14));
        }
        assert_eq!(exp_and_sum(&mut []), 0.0);
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
