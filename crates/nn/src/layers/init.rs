//! Initial weights.

use crate::rng::Philox;

/// `count` draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch's `nn.Linear` starts its
/// weight and its bias with. One word of `rng` each.
pub fn uniform_fan_in(rng: &mut Philox, fan_in: usize, count: usize) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f64).sqrt();
    (0..count).map(|_| (bound * (2.0 * f64::from(rng.next_f32()) - 1.0)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_within_the_bound_and_fills_it() {
        let draws = uniform_fan_in(&mut Philox::new(0, 0), 100, 5_000);
        let largest = draws.iter().fold(0f32, |max, x| max.max(x.abs()));
        assert!((0.099..=0.1).contains(&largest), "{largest}");
        let variance = draws.iter().map(|x| x * x).sum::<f32>() / 5_000.0;
        assert!((variance - 0.01 / 3.0).abs() < 2e-4, "{variance}");
    }
}
