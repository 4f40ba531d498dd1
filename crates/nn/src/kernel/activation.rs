//! Nonlinearities with their slopes, alone or as the gate of another value.

use rayon::prelude::*;

use super::math::{erf, exp, sigmoid, tanh};
use super::parallel::PIECE;

/// A function and its derivative.
pub(crate) trait Nonlinearity: Copy + Send + Sync {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

#[derive(Clone, Copy)]
pub(crate) struct Relu;
#[derive(Clone, Copy)]
pub(crate) struct Silu;
#[derive(Clone, Copy)]
pub(crate) struct Gelu;
#[derive(Clone, Copy)]
pub(crate) struct GeluTanh;
#[derive(Clone, Copy)]
pub(crate) struct Tanh;

impl Nonlinearity for Relu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // NaN and minus infinity pass, for the loss to notice.
        if x < 0.0 && x > f32::NEG_INFINITY { 0.0 } else { x }
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

impl Nonlinearity for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s * x.mul_add(1.0 - s, 1.0)
    }
}

impl Nonlinearity for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        // The density of the normal distribution.
        const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
        let density = FRAC_1_SQRT_TAU * exp(-0.5 * x * x);
        x.mul_add(density, 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)))
    }
}

/// sqrt(2 / pi).
const SLOPE_AT_ZERO: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Nonlinearity for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        let inner = SLOPE_AT_ZERO * (CUBIC * x * x * x + x);
        0.5 * x * (1.0 + tanh(inner))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let inner = SLOPE_AT_ZERO * (CUBIC * x * x * x + x);
        let t = tanh(inner);
        let steep = SLOPE_AT_ZERO * (3.0 * CUBIC * x * x + 1.0);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * steep
    }
}

impl Nonlinearity for Tanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        tanh(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = tanh(x);
        1.0 - t * t
    }
}

/// f(x).
pub(crate) fn forward<N: Nonlinearity>(_: N, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(out, x)| {
        pulp::Arch::new().dispatch(Forward::<N> { x, gated: None, out, _kind: Default::default() });
    });
    out
}

/// f(gate) * up.
pub(crate) fn gated<N: Nonlinearity>(_: N, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let operands = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE));
    out.par_chunks_mut(PIECE).zip(operands).for_each(|(out, (x, up))| {
        let gated = Some(up);
        pulp::Arch::new().dispatch(Forward::<N> { x, gated, out, _kind: Default::default() });
    });
    out
}

/// `cap * tanh(x / cap)` in place.
pub(crate) fn cap(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| pulp::Arch::new().dispatch(Cap { x, cap }));
}

struct Cap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl pulp::WithSimd for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.x.iter_mut().for_each(|x| *x = self.cap * tanh(*x / self.cap));
    }
}

/// Turns the gradient of f(x) into that of x.
pub(crate) fn backward<N: Nonlinearity>(_: N, x: &[f32], grad: &mut [f32]) {
    grad.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(grad, x)| {
        let job = Backward::<N> { x, grad, gated: None, _kind: Default::default() };
        pulp::Arch::new().dispatch(job);
    });
}

/// From `grad`, that of f(gate) * up, to that of the gate in its place, and that of up.
pub(crate) fn gated_backward<N: Nonlinearity>(
    _: N,
    gate: &[f32],
    up: &[f32],
    grad: &mut [f32],
) -> Vec<f32> {
    let mut to_up = vec![0.0; up.len()];
    let operands = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE));
    grad.par_chunks_mut(PIECE).zip(to_up.par_chunks_mut(PIECE)).zip(operands).for_each(
        |((grad, to_up), (x, up))| {
            let gated = Some((up, to_up));
            let job = Backward::<N> { x, grad, gated, _kind: Default::default() };
            pulp::Arch::new().dispatch(job);
        },
    );
    to_up
}

struct Forward<'a, N> {
    x: &'a [f32],
    gated: Option<&'a [f32]>,
    out: &'a mut [f32],
    _kind: std::marker::PhantomData<N>,
}

impl<N: Nonlinearity> pulp::WithSimd for Forward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        match self.gated {
            None => self.out.iter_mut().zip(self.x).for_each(|(out, &x)| *out = N::value(x)),
            Some(up) => {
                for ((out, &x), &up) in self.out.iter_mut().zip(self.x).zip(up) {
                    *out = N::value(x) * up;
                }
            }
        }
    }
}

struct Backward<'a, N> {
    x: &'a [f32],
    grad: &'a mut [f32],
    /// The other factor, and where its gradient goes.
    gated: Option<(&'a [f32], &'a mut [f32])>,
    _kind: std::marker::PhantomData<N>,
}

impl<N: Nonlinearity> pulp::WithSimd for Backward<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        match self.gated {
            None => {
                for (grad, &x) in self.grad.iter_mut().zip(self.x) {
                    *grad *= N::slope(x);
                }
            }
            Some((up, to_up)) => {
                let operands = self.x.iter().zip(up);
                for ((grad, to_up), (&x, &up)) in self.grad.iter_mut().zip(to_up).zip(operands) {
                    *to_up = *grad * N::value(x);
                    *grad *= up * N::slope(x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slopes are those of the values, by central differences in f32.
    fn check<N: Nonlinearity>(kind: N) {
        let x: Vec<f32> = (0..200).map(|i| (i as f32 - 100.0) * 0.05 + 0.013).collect();
        let up: Vec<f32> = (0..200).map(|i| (i % 7) as f32 - 2.5).collect();
        let h = 1.0 / 64.0;
        let at = |by: f32| forward(kind, &x.iter().map(|x| x + by).collect::<Vec<_>>());
        let mut slope = vec![1.0; x.len()];
        backward(kind, &x, &mut slope);
        for ((high, low), (slope, x)) in at(h).iter().zip(at(-h)).zip(slope.iter().zip(&x)) {
            // The third derivative of none of them is above 3 between two kinks.
            if x.abs() > h {
                let numeric = (high - low) / (2.0 * h);
                assert!((numeric - slope).abs() < 3e-4, "{x}: {numeric} {slope}");
            }
        }
        let product = gated(kind, &x, &up);
        let mut to_gate = vec![2.0; x.len()];
        let to_up = gated_backward(kind, &x, &up, &mut to_gate);
        for (i, value) in forward(kind, &x).into_iter().enumerate() {
            assert_eq!(product[i], value * up[i]);
            assert_eq!(to_up[i], 2.0 * value);
            assert!((to_gate[i] - 2.0 * up[i] * slope[i]).abs() <= 1e-6 * (1.0 + to_gate[i].abs()));
        }
    }

    #[test]
    fn slopes_are_derivatives() {
        check(Relu);
        check(Silu);
        check(Gelu);
        check(GeluTanh);
        check(Tanh);
    }

    /// Values of `torch.nn.functional` at 1 and -2 (float64).
    #[test]
    fn known_values() {
        let of = |found: Vec<f32>, expected: [f64; 2]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 2e-7, "{found} {expected}");
            }
        };
        let x = [1.0, -2.0];
        of(forward(Silu, &x), [0.731_058_578_630_004_9, -0.238_405_844_044_235_1]);
        of(forward(Gelu, &x), [0.841_344_746_068_542_9, -0.045_500_263_896_358_42]);
        of(forward(GeluTanh, &x), [0.841_191_990_608_277_8, -0.045_402_305_912_224_89]);
        of(forward(Relu, &x), [1.0, 0.0]);
    }
}
