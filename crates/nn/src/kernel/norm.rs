//! Normalisation of rows: by the root of their mean square, or by mean and standard deviation.

use rayon::prelude::*;

/// Rows whose gradients by the weight are summed before the sums are: a fixed number, so that the
/// result does not depend on how many threads there are.
const ROWS: usize = 64;
const LANES: usize = 16;

/// A normalisation with its weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    /// \[width\].
    pub(crate) weight: &'a [f32],
    /// Added to the weight.
    pub(crate) offset: f32,
    /// Of a layer norm, \[width\]; none: root mean square, without a mean.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to the mean square or the variance.
    pub(crate) eps: f64,
}

/// Gradients of a normalisation.
#[derive(Debug)]
pub(crate) struct NormGradients {
    /// [rows, width].
    pub(crate) input: Vec<f32>,
    /// \[width\].
    pub(crate) weight: Vec<f32>,
    /// \[width\]; of zeros where there is no bias.
    pub(crate) bias: Vec<f32>,
}

impl Norm<'_> {
    /// [rows, width] to the same.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let piece = ROWS * self.weight.len();
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(out, x)| {
            pulp::Arch::new().dispatch(Forward { norm: self, x, out });
        });
        out
    }

    /// Gradients from `grad`, that of the output for the input `x`.
    pub(crate) fn backward(&self, x: &[f32], grad: &[f32]) -> NormGradients {
        let width = self.weight.len();
        let piece = ROWS * width;
        let mut input = vec![0.0; x.len()];
        let sums: Vec<(Vec<f32>, Vec<f32>)> = input
            .par_chunks_mut(piece)
            .zip(x.par_chunks(piece).zip(grad.par_chunks(piece)))
            .map(|(to_x, (x, grad))| {
                let (mut to_weight, mut to_bias) = (vec![0.0; width], vec![0.0; width]);
                let sums = (&mut *to_weight, &mut *to_bias);
                pulp::Arch::new().dispatch(Backward { norm: self, x, grad, to_x, sums });
                (to_weight, to_bias)
            })
            .collect();
        let mut gradients =
            NormGradients { input, weight: vec![0.0; width], bias: vec![0.0; width] };
        for (weight, bias) in sums {
            gradients.weight.iter_mut().zip(weight).for_each(|(sum, x)| *sum += x);
            gradients.bias.iter_mut().zip(bias).for_each(|(sum, x)| *sum += x);
        }
        gradients
    }

    /// Mean (0 without a bias) and 1 / sqrt(variance + eps) of a row.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let width = x.len() as f64;
        let mean = if self.bias.is_some() { (sum(x) / width) as f32 } else { 0.0 };
        let square = squares(x, mean) / width;
        (mean, (1.0 / (square + self.eps).sqrt()) as f32)
    }
}

/// The sum of a row in sixteen interleaved parts.
#[inline(always)]
fn sum(x: &[f32]) -> f64 {
    let mut lanes = [0f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &x)| *lane += x);
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += x);
    lanes.iter().map(|&x| f64::from(x)).sum()
}

/// The sum of (x - mean)^2 likewise.
#[inline(always)]
fn squares(x: &[f32], mean: f32) -> f64 {
    let mut lanes = [0f32; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &x)| {
            let x = x - mean;
            *lane = x.mul_add(x, *lane);
        });
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| {
        let x = x - mean;
        *lane = x.mul_add(x, *lane);
    });
    lanes.iter().map(|&x| f64::from(x)).sum()
}

struct Forward<'a> {
    norm: &'a Norm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl pulp::WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Norm { weight, offset, bias, .. } = *self.norm;
        let width = weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (mean, scale) = self.norm.statistics(x);
            let pairs = out.iter_mut().zip(x).zip(weight);
            match bias {
                None => pairs.for_each(|((out, &x), &w)| *out = x * scale * (w + offset)),
                Some(bias) => {
                    for (((out, &x), &w), &b) in pairs.zip(bias) {
                        *out = ((x - mean) * scale).mul_add(w + offset, b);
                    }
                }
            }
        }
    }
}

struct Backward<'a> {
    norm: &'a Norm<'a>,
    x: &'a [f32],
    grad: &'a [f32],
    to_x: &'a mut [f32],
    /// Of the weight and of the bias.
    sums: (&'a mut [f32], &'a mut [f32]),
}

impl pulp::WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { norm, x, grad, to_x, sums: (to_weight, to_bias) } = self;
        let (width, offset) = (norm.weight.len(), norm.offset);
        let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
        for ((x, grad), to_x) in rows.zip(to_x.chunks_exact_mut(width)) {
            let (mean, scale) = norm.statistics(x);
            // With g the gradient times the weight and n the normalised row: the row's gradient is
            // scale * (g - mean(g) - n * mean(g n)); the middle term only where a mean was taken.
            let (mut lanes, mut products) = ([0f32; LANES], [0f32; LANES]);
            for (i, to_x) in to_x.iter_mut().enumerate() {
                *to_x = grad[i] * (norm.weight[i] + offset);
            }
            for (to_weight, (&x, &g)) in to_weight.iter_mut().zip(x.iter().zip(grad)) {
                *to_weight = ((x - mean) * scale).mul_add(g, *to_weight);
            }
            let (blocks, rest) = to_x.as_chunks::<LANES>();
            let (x_blocks, x_rest) = x.as_chunks::<LANES>();
            for (block, x) in blocks.iter().zip(x_blocks) {
                for i in 0..LANES {
                    lanes[i] += block[i];
                    products[i] = ((x[i] - mean) * scale).mul_add(block[i], products[i]);
                }
            }
            for (i, (&g, &x)) in rest.iter().zip(x_rest).enumerate() {
                lanes[i] += g;
                products[i] = ((x - mean) * scale).mul_add(g, products[i]);
            }
            let over = |lanes: [f32; LANES]| {
                (lanes.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64) as f32
            };
            let product = over(products);
            let shift = if norm.bias.is_some() { over(lanes) } else { 0.0 };
            for (to_x, &x) in to_x.iter_mut().zip(x) {
                *to_x = scale * (*to_x - shift - (x - mean) * scale * product);
            }
            if norm.bias.is_some() {
                to_bias.iter_mut().zip(grad).for_each(|(sum, &g)| *sum += g);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    /// The definition, in f64.
    fn reference(norm: &Norm<'_>, x: &[f64]) -> Vec<f64> {
        let width = norm.weight.len();
        let row = |x: &[f64]| {
            let n = width as f64;
            let mean = norm.bias.map_or(0.0, |_| x.iter().sum::<f64>() / n);
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let of = |(i, x): (usize, &f64)| {
                let weight = f64::from(norm.weight[i]) + f64::from(norm.offset);
                let bias = norm.bias.map_or(0.0, |bias| f64::from(bias[i]));
                (x - mean) / (square + norm.eps).sqrt() * weight + bias
            };
            x.iter().enumerate().map(of).collect::<Vec<_>>()
        };
        x.chunks_exact(width).flat_map(row).collect()
    }

    #[test]
    fn value_and_gradients_are_those_of_the_definition() {
        let mut rng = Philox::new(3, 0);
        for (width, rows) in [(1, 2), (5, 3), (16, 2), (37, 70)] {
            let mut draw =
                |n: usize| (0..n).map(|_| rng.normal() as f32 + 0.3).collect::<Vec<f32>>();
            let (x, weight, bias) = (draw(rows * width), draw(width), draw(width));
            let grad = draw(rows * width);
            for (offset, bias) in [(0.0, None), (1.0, None), (0.0, Some(&*bias))] {
                let norm = Norm { weight: &weight, offset, bias, eps: 1e-3 };
                let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                let expected = reference(&norm, &wide);
                for (found, expected) in norm.forward(&x).iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
                }
                let found = norm.backward(&x, &grad);
                let dot = |out: &[f64]| -> f64 {
                    out.iter().zip(&grad).map(|(out, &g)| out * f64::from(g)).sum()
                };
                let h = 1e-6;
                for i in (0..wide.len()).step_by(width.div_ceil(3)) {
                    let at = |by: f64| {
                        let mut moved = wide.clone();
                        moved[i] += by;
                        dot(&reference(&norm, &moved))
                    };
                    let numeric = (at(h) - at(-h)) / (2.0 * h);
                    let off = (f64::from(found.input[i]) - numeric).abs();
                    assert!(off < 2e-4 * (1.0 + numeric.abs()), "{i}: {numeric}");
                }
                let unit = reference(
                    &Norm {
                        weight: &vec![1.0; width],
                        offset: 0.0,
                        bias: norm.bias.map(|_| &*vec![0.0; width].leak()),
                        eps: 1e-3,
                    },
                    &wide,
                );
                for i in 0..width {
                    let column = || (i..rows * width).step_by(width);
                    let weight: f64 = column().map(|at| unit[at] * f64::from(grad[at])).sum();
                    let bias: f64 = column().map(|at| f64::from(grad[at])).sum();
                    assert!((f64::from(found.weight[i]) - weight).abs() < 1e-4);
                    let bias = if norm.bias.is_some() { bias } else { 0.0 };
                    assert!((f64::from(found.bias[i]) - bias).abs() < 1e-4);
                }
            }
        }
    }
}
