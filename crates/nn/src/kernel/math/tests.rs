use super::*;

/// Units in the last place between `found` and `expected`.
fn ulps(found: f32, expected: f64) -> f64 {
    let rounded = expected as f32;
    let unit = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
    (f64::from(found) - expected).abs() / unit
}

fn grid(from: f32, to: f32) -> impl Iterator<Item = f32> {
    let n = 200_001;
    (0..n).map(move |i| from + (to - from) * i as f32 / (n - 1) as f32)
}

#[test]
fn exp_is_within_two_units() {
    for x in grid(-87.0, 88.5) {
        let off = ulps(exp(x), f64::from(x).exp());
        assert!(off < 2.0, "exp({x}) is off by {off}");
    }
    // Subnormal results keep their absolute precision.
    for x in grid(-104.0, -87.0) {
        assert!((f64::from(exp(x)) - f64::from(x).exp()).abs() < 3e-45, "{x}");
    }
}

#[test]
fn exp_of_extremes() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(-106.0)), (0.0, 0.0, 0.0));
    assert_eq!((exp(f32::INFINITY), exp(1e30)), (f32::INFINITY, f32::INFINITY));
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn ln_is_within_two_units() {
    for x in grid(1e-3, 3.0).chain(grid(1.0, 1e6)).chain([2e-38, 1e38, f32::MIN_POSITIVE]) {
        let expected = f64::from(x).ln();
        let off = (f64::from(ln(x)) - expected).abs();
        assert!(off < 1e-7 || ulps(ln(x), expected) < 2.0, "ln({x}) is off by {off}");
    }
    assert_eq!(ln(1.0), 0.0);
}

#[test]
fn tanh_and_sigmoid() {
    for x in grid(-12.0, 12.0) {
        let off = ulps(tanh(x), f64::from(x).tanh());
        assert!(off < 4.0, "tanh({x}) is off by {off}");
        let off = ulps(sigmoid(x), 1.0 / (1.0 + (-f64::from(x)).exp()));
        assert!(off < 4.0, "sigmoid({x}) is off by {off}");
    }
    assert_eq!((tanh(0.0), tanh(1e30), tanh(-1e30)), (0.0, 1.0, -1.0));
    assert_eq!((sigmoid(1e30), sigmoid(-1e30)), (1.0, 0.0));
    assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
}

/// erf by its series sum of (-1)^n x^(2n+1) / (n! (2n+1)) times 2 / sqrt(pi), in f64: good for |x| < 4.
fn series(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn erf_is_within_two_ten_millionths() {
    for x in grid(-4.0, 4.0) {
        let off = (f64::from(erf(x)) - series(f64::from(x))).abs();
        assert!(off < 2e-7, "erf({x}) is off by {off}");
    }
    assert_eq!((erf(0.0), erf(6.0), erf(-100.0)), (0.0, 1.0, -1.0));
}
