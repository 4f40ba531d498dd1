//! AdamW on flat slices.

use rayon::prelude::*;

use crate::kernel::parallel::PIECE;
use crate::kernel::real::Real;

/// The constants of one step.
#[derive(Clone, Copy)]
pub(super) struct AdamWStep {
    pub(super) learning_rate: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f64,
    pub(super) weight_decay: f64,
    /// Number of this step; the first is 1.
    pub(super) step: u64,
    /// What gradients are multiplied by first.
    pub(super) gradient_scale: f64,
}

impl AdamWStep {
    /// One step in place, in the order of operations of `torch.optim.AdamW`, but that a mean too small to be
    /// a normal number becomes 0. Where gradients end (a unit that is never active again), it would shrink to
    /// a few of the smallest subnormals and stay there, as 0.9 of them rounds to themselves, and every later
    /// step would be slow. Returns whether all that it wrote is finite.
    pub(super) fn apply<T: Real>(
        self,
        values: &mut [T],
        grad: &[T],
        mean: &mut [T],
        mean_square: &mut [T],
    ) -> bool {
        values
            .par_chunks_mut(PIECE)
            .zip(grad.par_chunks(PIECE))
            .zip(mean.par_chunks_mut(PIECE))
            .zip(mean_square.par_chunks_mut(PIECE))
            .map(|(((values, grad), mean), mean_square)| {
                let piece = Piece { step: self, values, grad, mean, mean_square };
                pulp::Arch::new().dispatch(piece)
            })
            .reduce(|| true, |a, b| a & b)
    }
}

/// A part of the values, in the widest registers that there are. A struct, as a closure that is
/// called through a function of its own would be compiled for the narrowest.
struct Piece<'a, T> {
    step: AdamWStep,
    values: &'a mut [T],
    grad: &'a [T],
    mean: &'a mut [T],
    mean_square: &'a mut [T],
}

impl<T: Real> pulp::WithSimd for Piece<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> bool {
        let Self { step, values, grad, mean, mean_square } = self;
        let number = step.step as f64;
        let correction = 1.0 - step.beta1.powf(number);
        let root_correction = (1.0 - step.beta2.powf(number)).sqrt();
        let keep = T::from_f64(1.0 - step.learning_rate * step.weight_decay);
        let step_size = T::from_f64(step.learning_rate / correction);
        let to_root = T::from_f64(1.0 / root_correction);
        let weight1 = T::from_f64(1.0 - step.beta1);
        let beta2 = T::from_f64(step.beta2);
        let weight2 = T::from_f64(1.0 - step.beta2);
        let eps = T::from_f64(step.eps);
        let scale = T::from_f64(step.gradient_scale);
        let mut finite = true;
        for (((x, &g), m), v) in values.iter_mut().zip(grad).zip(mean).zip(mean_square) {
            let g = g * scale;
            *m = (*m + weight1 * (g - *m)).without_subnormals();
            *v = beta2 * *v + weight2 * g * g;
            *x = *x * keep - step_size * (*m / (v.sqrt() * to_root + eps));
            // Not `&&`: a branch would keep the loop out of vector registers.
            finite &= x.is_finite() & m.is_finite() & v.is_finite();
        }
        finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_steps_equal_pytorch() {
        crate::optim::fixtures::check("adamw", |constants, learning_rate, values, gradients| {
            let constant = |name: &str| constants[name].as_f64().unwrap();
            let (mut mean, mut square) = (vec![0.0; values.len()], vec![0.0; values.len()]);
            (1..)
                .zip(gradients)
                .map(|(step, grad)| {
                    let step = AdamWStep {
                        learning_rate,
                        beta1: constant("beta1"),
                        beta2: constant("beta2"),
                        eps: constant("eps"),
                        weight_decay: constant("weight_decay"),
                        step,
                        gradient_scale: 1.0,
                    };
                    step.apply(values, grad, &mut mean, &mut square);
                    values.to_vec()
                })
                .collect()
        });
    }

    #[test]
    fn an_overflow_is_told_wherever_it_is() {
        let step = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: 1,
            gradient_scale: 1.0,
        };
        let n = 2 * PIECE + 3;
        for at in [0, 17, PIECE, n - 1] {
            // The square of the gradient, the gradient with the mean, the weight.
            for (grad, mean, value) in
                [(1e30f32, 0.0, 0.0), (3e38, -3e38, 0.0), (0.0, 0.0, f32::NAN)]
            {
                let (mut x, mut g) = (vec![1.0f32; n], vec![0.5f32; n]);
                let (mut m, mut v) = (vec![0.0f32; n], vec![0.0f32; n]);
                assert!(step.apply(&mut x, &g, &mut m, &mut v));
                (x[at], g[at], m[at]) = (value, grad, mean);
                assert!(!step.apply(&mut x, &g, &mut m, &mut v), "{at} {grad} {mean} {value}");
            }
        }
    }

    /// After one gradient of 1 the mean is 0.1, and falls to 0.9 of itself with each that is 0: below 2^-126 at
    /// step 809.
    #[test]
    fn a_mean_without_gradients_ends_at_zero() {
        let step = |number| AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: number,
            gradient_scale: 1.0,
        };
        let (mut x, mut m, mut v) = ([1.0f32; 9], [0.0; 9], [0.0; 9]);
        step(1).apply(&mut x, &[1.0; 9], &mut m, &mut v);
        for number in 2..1_000 {
            step(number).apply(&mut x, &[0.0; 9], &mut m, &mut v);
            assert!(m.iter().all(|m| !m.is_subnormal()), "{number}: {m:?}");
            assert_eq!(m[0] == 0.0, number > 808, "{number}: {m:?}");
        }
    }

    /// The first step moves every weight by the learning rate against the gradient's sign, after
    /// the decay.
    #[test]
    fn the_first_step_is_signed() {
        let step = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-12,
            weight_decay: 0.5,
            step: 1,
            gradient_scale: 1.0,
        };
        let (mut x, mut m, mut v) = ([1.0f64, 1.0], [0.0; 2], [0.0; 2]);
        step.apply(&mut x, &[3.0, -1e-3], &mut m, &mut v);
        assert!((x[0] - (0.95 - 0.1)).abs() < 1e-8, "{x:?}");
        assert!((x[1] - (0.95 + 0.1)).abs() < 1e-8, "{x:?}");
    }
}
