//! Stochastic gradient descent on flat slices.

use rayon::prelude::*;

use crate::kernel::parallel::PIECE;
use crate::kernel::real::Real;

/// The constants of one step.
#[derive(Clone, Copy)]
pub(super) struct SgdStep {
    pub(super) learning_rate: f64,
    pub(super) momentum: f64,
    pub(super) nesterov: bool,
    pub(super) weight_decay: f64,
    /// What gradients are multiplied by first.
    pub(super) gradient_scale: f64,
}

impl SgdStep {
    /// One step in place. With g the gradient plus the decayed weight: velocity = momentum *
    /// velocity + g, and the weight falls by the learning rate times the velocity (nesterov: times
    /// g + momentum * velocity). A velocity too small to be a normal number becomes 0, as the mean of AdamW.
    /// Returns whether all that it wrote is finite.
    pub(super) fn apply<T: Real>(self, values: &mut [T], grad: &[T], velocity: &mut [T]) -> bool {
        values
            .par_chunks_mut(PIECE)
            .zip(grad.par_chunks(PIECE))
            .zip(velocity.par_chunks_mut(PIECE))
            .map(|((values, grad), velocity)| {
                pulp::Arch::new().dispatch(Piece { step: self, values, grad, velocity })
            })
            .reduce(|| true, |a, b| a & b)
    }
}

/// A part of the values, as of AdamW.
struct Piece<'a, T> {
    step: SgdStep,
    values: &'a mut [T],
    grad: &'a [T],
    velocity: &'a mut [T],
}

impl<T: Real> pulp::WithSimd for Piece<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> bool {
        let Self { step, values, grad, velocity } = self;
        let rate = T::from_f64(step.learning_rate);
        let momentum = T::from_f64(step.momentum);
        let decay = T::from_f64(step.weight_decay);
        let scale = T::from_f64(step.gradient_scale);
        let mut finite = true;
        for ((x, &g), v) in values.iter_mut().zip(grad).zip(velocity) {
            let g = g * scale + decay * *x;
            *v = (momentum * *v + g).without_subnormals();
            let direction = if step.nesterov { g + momentum * *v } else { *v };
            *x -= rate * direction;
            // Not `&&`: a branch would keep the loop out of vector registers.
            finite &= x.is_finite() & v.is_finite();
        }
        finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_steps_equal_pytorch() {
        crate::optim::fixtures::check("sgd", |constants, learning_rate, values, gradients| {
            let step = SgdStep {
                learning_rate,
                momentum: constants["momentum"].as_f64().unwrap(),
                nesterov: constants["nesterov"].as_bool().unwrap(),
                weight_decay: constants["weight_decay"].as_f64().unwrap(),
                gradient_scale: 1.0,
            };
            let mut velocity = vec![0.0; values.len()];
            gradients
                .iter()
                .map(|grad| {
                    step.apply(values, grad, &mut velocity);
                    values.to_vec()
                })
                .collect()
        });
    }

    #[test]
    fn an_overflow_is_told_wherever_it_is() {
        let step = SgdStep {
            learning_rate: 10.0,
            momentum: 0.5,
            nesterov: false,
            weight_decay: 0.0,
            gradient_scale: 1.0,
        };
        let n = 2 * PIECE + 3;
        for at in [0, 17, PIECE, n - 1] {
            // The weight, and the velocity alone.
            for (rate, grad) in [(10.0, 3e38f32), (0.0, f32::INFINITY)] {
                let (mut x, mut v) = (vec![1.0f32; n], vec![0.0f32; n]);
                let mut g = vec![0.5f32; n];
                assert!(step.apply(&mut x, &g, &mut v));
                g[at] = grad;
                let step = SgdStep { learning_rate: rate, ..step };
                assert!(!step.apply(&mut x, &g, &mut v), "{at} {rate} {grad}");
            }
        }
    }

    #[test]
    fn a_velocity_without_gradients_ends_at_zero() {
        let step = SgdStep {
            learning_rate: 0.1,
            momentum: 0.5,
            nesterov: false,
            weight_decay: 0.0,
            gradient_scale: 1.0,
        };
        let (mut x, mut v) = ([0.0f32; 9], [0.0; 9]);
        step.apply(&mut x, &[1.0; 9], &mut v);
        for halvings in 1..200 {
            step.apply(&mut x, &[0.0; 9], &mut v);
            let expected = if halvings <= 126 { 0.5f32.powi(halvings) } else { 0.0 };
            assert_eq!(v, [expected; 9], "{halvings}");
        }
    }

    #[test]
    fn two_steps_by_hand() {
        let step = SgdStep {
            learning_rate: 0.1,
            momentum: 0.5,
            nesterov: false,
            weight_decay: 0.0,
            gradient_scale: 2.0,
        };
        let (mut x, mut v) = ([1.0f64], [0.0]);
        step.apply(&mut x, &[1.0], &mut v);
        assert!((x[0] - 0.8).abs() < 1e-15 && v == [2.0]);
        step.apply(&mut x, &[1.0], &mut v);
        assert!((x[0] - 0.5).abs() < 1e-15 && v == [3.0]);
        let ahead = SgdStep { nesterov: true, weight_decay: 1.0, ..step };
        ahead.apply(&mut x, &[1.0], &mut v);
        // g = 2.5, v = 1.5 + 2.5 = 4, direction = 2.5 + 2.
        assert!((x[0] - 0.05).abs() < 1e-15 && v == [4.0]);
    }
}
