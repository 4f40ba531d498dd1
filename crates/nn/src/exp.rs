//! e^x over slices in f64, for log-probabilities that are exact to the last digits an f32 carries. The
//! same operations in the same order on every machine: no bit depends on the vector width.

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
}
