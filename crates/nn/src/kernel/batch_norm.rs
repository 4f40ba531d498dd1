//! Batch normalisation (Ioffe and Szegedy, 2015) of images in blocks of channels: what is done to one
//! image, and how images are put together.
//!
//! With m and v the mean and the biased variance of a channel over all images and pixels, x^ = (x - m) /
//! sqrt(v + eps) and y = gamma x^ + beta.

use super::conv::{LANES, Lanes, relu};

/// Mean and sum of squared deviations of one block of channels over the pixels of one image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    mean: [f64; LANES],
    squares: [f64; LANES],
}

impl Moments {
    pub(crate) const ZERO: Self = Self { mean: [0.0; LANES], squares: [0.0; LANES] };

    /// Of `pixels`, whose rows are `width` long. Rows are summed in f32, and their sums in f64.
    #[inline(always)]
    pub(crate) fn of(pixels: &[Lanes], width: usize) -> Self {
        let mut sum = [0f64; LANES];
        for row in pixels.chunks_exact(width) {
            let mut part = [0f32; LANES];
            for lanes in row {
                part.iter_mut().zip(lanes).for_each(|(sum, x)| *sum += x);
            }
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(x));
        }
        let mean = sum.map(|sum| sum / pixels.len() as f64);
        // Off by a rounding, whose square is all that the sum is off by.
        let center = mean.map(|mean| mean as f32);
        let mut squares = [0f64; LANES];
        for row in pixels.chunks_exact(width) {
            let mut part = [0f32; LANES];
            for lanes in row {
                for ((sum, x), center) in part.iter_mut().zip(lanes).zip(center) {
                    *sum += (x - center) * (x - center);
                }
            }
            squares.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(x));
        }
        Self { mean, squares }
    }
}

/// Mean and biased variance of every channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) variance: Vec<f64>,
    /// Elements of a channel.
    pub(crate) count: usize,
}

impl Statistics {
    /// Puts images together, in order (Chan, Golub and LeVeque, 1979): `moments` holds `blocks` of
    /// them for each image, each over `pixels` pixels.
    pub(crate) fn combine(moments: &[Moments], blocks: usize, pixels: usize) -> Self {
        let (mut mean, mut squares) = (vec![0.0; blocks * LANES], vec![0.0; blocks * LANES]);
        let new = pixels as f64;
        let mut count = 0.0;
        for image in moments.chunks_exact(blocks) {
            let total = count + new;
            for (channel, (mean, squares)) in mean.iter_mut().zip(&mut squares).enumerate() {
                let own = &image[channel / LANES];
                let delta = own.mean[channel % LANES] - *mean;
                *mean += delta * new / total;
                *squares += own.squares[channel % LANES] + delta * delta * count * new / total;
            }
            count = total;
        }
        let variance = squares.into_iter().map(|sum| sum / count.max(1.0)).collect();
        Self { mean, variance, count: count as usize }
    }
}

/// Per channel, in blocks: what one pass over the images multiplies with or adds.
pub(crate) fn lanes(values: impl Iterator<Item = f64>, blocks: usize) -> Vec<Lanes> {
    let mut lanes = vec![[0.0; LANES]; blocks];
    for (lane, value) in lanes.as_flattened_mut().iter_mut().zip(values) {
        *lane = value as f32;
    }
    lanes
}

/// `out = max(0, x * scale + shift + residual)` of one image. What is not finite stays.
#[inline(always)]
pub(crate) fn scale_shift_relu<S: pulp::Simd>(
    simd: S,
    x: &[Lanes],
    scale: &[Lanes],
    shift: &[Lanes],
    residual: Option<&[Lanes]>,
    out: &mut [Lanes],
) {
    let pixels = x.len() / scale.len();
    for (i, (x, out)) in x.iter().zip(out).enumerate() {
        let (scale, shift) = (&scale[i / pixels], &shift[i / pixels]);
        let (scale, shift) = (S::as_simd_f32s(scale).0, S::as_simd_f32s(shift).0);
        let (x, out) = (S::as_simd_f32s(x).0, S::as_mut_simd_f32s(out).0);
        for (r, out) in out.iter_mut().enumerate() {
            let mut y = simd.mul_add_f32s(x[r], scale[r], shift[r]);
            if let Some(residual) = residual {
                y = simd.add_f32s(y, S::as_simd_f32s(&residual[i]).0[r]);
            }
            *out = relu(simd, y);
        }
    }
}

/// Sums of g and of g * x^ over the pixels of one image, for each block, where g is `grad` past the
/// ReLU whose output is `out`.
#[inline(always)]
pub(crate) fn gradient_sums(
    grad: &[Lanes],
    out: &[Lanes],
    x: &[Lanes],
    mean: &[Lanes],
    inverse_std: &[Lanes],
    width: usize,
    sums: &mut [[[f64; LANES]; 2]],
) {
    let pixels = grad.len() / mean.len();
    for (block, sums) in sums.iter_mut().enumerate() {
        *sums = [[0.0; LANES]; 2];
        let (mean, inverse_std) = (&mean[block], &inverse_std[block]);
        for row in (block * pixels..(block + 1) * pixels).step_by(width) {
            let mut part = [[0f32; LANES]; 2];
            let rows = grad[row..][..width].iter().zip(&out[row..][..width]);
            for ((grad, out), x) in rows.zip(&x[row..][..width]) {
                for l in 0..LANES {
                    let g = if out[l] > 0.0 { grad[l] } else { 0.0 };
                    part[0][l] += g;
                    part[1][l] += g * ((x[l] - mean[l]) * inverse_std[l]);
                }
            }
            for (sums, part) in sums.iter_mut().zip(part) {
                sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
    }
}

/// What turns the gradient of a normalised block of channels into that of its input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backward<'a> {
    /// One entry a block, as the following.
    pub(crate) mean: &'a [Lanes],
    pub(crate) inverse_std: &'a [Lanes],
    /// gamma / sqrt(v + eps).
    pub(crate) scale: &'a [Lanes],
    /// Mean of g.
    pub(crate) mean_grad: &'a [Lanes],
    /// Mean of g * x^.
    pub(crate) mean_product: &'a [Lanes],
}

impl Backward<'_> {
    /// The gradient of one image's `x`: scale (g - mean g - x^ mean(g x^)).
    #[inline(always)]
    pub(crate) fn apply(&self, g: &[Lanes], x: &[Lanes], to_input: &mut [Lanes]) {
        let pixels = g.len() / self.mean.len();
        for (block, to_input) in to_input.chunks_exact_mut(pixels).enumerate() {
            let Self { mean, inverse_std, scale, mean_grad, mean_product } = *self;
            let (mean, inverse_std, scale) = (&mean[block], &inverse_std[block], &scale[block]);
            let (mean_grad, mean_product) = (&mean_grad[block], &mean_product[block]);
            let block = block * pixels..(block + 1) * pixels;
            for ((g, x), to_input) in g[block.clone()].iter().zip(&x[block]).zip(to_input) {
                for l in 0..LANES {
                    let normal = (x[l] - mean[l]) * inverse_std[l];
                    to_input[l] = scale[l] * (g[l] - mean_grad[l] - normal * mean_product[l]);
                }
            }
        }
    }
}

/// Zeroes `grad` where the ReLU whose output is `out` gave 0.
#[inline(always)]
pub(crate) fn through_relu<S: pulp::Simd>(simd: S, grad: &mut [Lanes], out: &[Lanes]) {
    let zero = simd.splat_f32s(0.0);
    for (grad, out) in grad.iter_mut().zip(out) {
        let (grad, out) = (S::as_mut_simd_f32s(grad).0, S::as_simd_f32s(out).0);
        for (grad, &out) in grad.iter_mut().zip(out) {
            *grad = simd.select_f32s(simd.less_than_f32s(zero, out), *grad, zero);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    #[test]
    fn statistics_are_those_of_all_pixels_together() {
        let mut rng = Philox::new(5, 0);
        let (images, blocks, width, height) = (5, 2, 3, 4);
        let pixels = width * height;
        // Far from 0: a difference of large sums would lose the variance.
        let data: Vec<Lanes> = (0..images * blocks * pixels)
            .map(|_| std::array::from_fn(|l| 1e3 + l as f32 + rng.normal() as f32))
            .collect();
        let moments: Vec<Moments> =
            data.chunks_exact(pixels).map(|block| Moments::of(block, width)).collect();
        let found = Statistics::combine(&moments, blocks, pixels);
        assert_eq!(found.count, images * pixels);
        for channel in 0..blocks * LANES {
            let of_channel = |i: &usize| i / pixels % blocks == channel / LANES;
            let values: Vec<f64> = (0..data.len())
                .filter(of_channel)
                .map(|i| f64::from(data[i][channel % LANES]))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance =
                values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / values.len() as f64;
            assert!((found.mean[channel] - mean).abs() < 1e-4, "{channel}");
            assert!((found.variance[channel] / variance - 1.0).abs() < 1e-4, "{channel}");
        }
    }
}
