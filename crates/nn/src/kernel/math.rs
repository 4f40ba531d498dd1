//! Elementary functions without branches, for loops that the compiler turns into vectors. The same
//! operations in the same order on every machine: results do not depend on the vector width.

use std::f32::consts::LOG2_E;

/// 1.5 * 2^23: adding it rounds to the nearest whole number, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts: the first is exact in 10 bits.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Coefficients of `erf`, from least squares in Chebyshev points, highest power first.
const ERF_NEAR: [f32; 8] = [
    -9.673_591e-6,
    1.126_825_4e-4,
    -8.484_396_4e-4,
    5.221_053_5e-3,
    -2.686_543_8e-2,
    1.128_378_3e-1,
    -3.761_263_8e-1,
    1.283_791_7e-1,
];
const ERF_FAR: [f32; 10] = [
    -7.441_240_5e-2,
    3.530_312_5e-1,
    -6.170_513_6e-1,
    4.152_147e-1,
    -1.152_712_1e-1,
    2.389_426_4e-1,
    2.337_462_6e-1,
    2.838_418_8e-1,
    2.819_599e-1,
    4.580_279e-6,
];

/// e^x within 2 units in the last place; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -105.0 { -105.0 } else { x };
    let x = if x > 90.0 { 90.0 } else { x };
    let shifted = x.mul_add(LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // 2^whole as a product of two, either of which is a normal number.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Natural logarithm of a positive normal number within 2 units in the last place, or 1e-7 where that
/// is more; NaN of other numbers is not promised.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // x = m 2^e with m between sqrt(1/2) and sqrt(2).
    const SQRT_HALF: u32 = 0x3F35_04F3;
    let bits = x.to_bits().wrapping_sub(SQRT_HALF);
    let e = (bits as i32 >> 23) as f32;
    let m = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(SQRT_HALF));
    // ln m = 2 artanh s, s = (m - 1) / (m + 1), |s| < 0.172: the series up to s^11.
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let mut p = 2.0 / 11.0;
    for c in [2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0] {
        p = q.mul_add(p, c);
    }
    let ln_m = (s * q).mul_add(p, 2.0 * s);
    e.mul_add(LN_2_HIGH, e.mul_add(LN_2_LOW, ln_m))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x within 4 units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // (1 - e^-2|x|) / (1 + e^-2|x|), where that difference is not of equal numbers.
    let a = x.abs();
    let e = exp(-2.0 * a);
    let far = (1.0 - e) / (1.0 + e);
    // x + x^3 P(x^2), the Taylor series up to x^13: below 1/4 its remainder is under a half unit.
    let s = x * x;
    let mut p = 21844.0 / 6_081_075.0;
    for c in [-1382.0 / 155_925.0, 62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        p = s.mul_add(p, c);
    }
    let near = (s * a).mul_add(p, a);
    let magnitude = if a < 0.25 { near } else { far };
    if x < 0.0 { -magnitude } else { magnitude }
}

/// erf x within 2e-7.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    // Below 1: x + x Q(x^2).
    let s = x * x;
    let mut q = ERF_NEAR[0];
    for c in &ERF_NEAR[1..] {
        q = s.mul_add(q, *c);
    }
    let near = a.mul_add(q, a);
    // From 1 on: 1 - e^-x^2 R(t) with t = 1 / (1 + x / 2).
    let t = 1.0 / a.mul_add(0.5, 1.0);
    let mut r = ERF_FAR[0];
    for c in &ERF_FAR[1..] {
        r = t.mul_add(r, *c);
    }
    let far = 1.0 - exp(-s) * r;
    let magnitude = if a < 1.0 { near } else { far };
    if x < 0.0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests;
