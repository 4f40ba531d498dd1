//! Gradient clipping by the norm over all parameters.

use crate::kernel::parallel::sum_of_squares;
use crate::layers::{Parameter, lock};

/// Root of the sum of squares of every gradient, in f64, in the order of `parameters`.
pub(crate) fn global_norm(parameters: &[&Parameter]) -> f64 {
    let of = |p: &&Parameter| sum_of_squares(lock(p.gradient()).values());
    parameters.iter().map(of).sum::<f64>().sqrt()
}

/// What to multiply gradients of norm `norm` by so that it does not exceed `max`, as
/// `torch.nn.utils.clip_grad_norm_` does.
pub(crate) fn clip_scale(norm: f64, max: Option<f64>) -> f64 {
    max.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_down_only() {
        assert_eq!(clip_scale(0.5, Some(1.0)), 1.0);
        assert_eq!(clip_scale(1e9, None), 1.0);
        assert!((clip_scale(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
        assert_eq!(clip_scale(0.0, Some(1.0)), 1.0);
    }

    #[test]
    fn the_norm_runs_over_all_parameters() {
        let make = |values: Vec<f32>| {
            let n = values.len();
            let p = Parameter::new("p", vec![0.0; n], &[n]).unwrap();
            lock(p.gradient()).add(&values);
            p
        };
        let (a, b) = (make(vec![1.0, 2.0]), make(vec![-2.0, 4.0]));
        assert_eq!(global_norm(&[&a, &b]), 5.0);
    }
}
