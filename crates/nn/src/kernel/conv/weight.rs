//! The gradient of the weights.

use super::{Conv, Filters, LANES, Lanes};

/// Adds one image's share to `sum`: `padded` is what the convolution read, `grad` the gradient of
/// its output.
#[inline(always)]
pub(crate) fn add_weight_gradient<S: pulp::Simd>(
    simd: S,
    conv: &Conv,
    padded: &[Lanes],
    grad: &[Lanes],
    sum: &mut Filters,
) {
    let job = Job { conv, padded, grad, sum: &mut sum.panels };
    match LANES / S::F32_LANES {
        1 => job.by_stride::<S, 1>(simd),
        2 => job.by_stride::<S, 2>(simd),
        4 => job.by_stride::<S, 4>(simd),
        _ => job.by_stride::<S, LANES>(simd),
    }
}

struct Job<'a> {
    conv: &'a Conv,
    padded: &'a [Lanes],
    grad: &'a [Lanes],
    sum: &'a mut [Lanes],
}

impl Job<'_> {
    #[inline(always)]
    fn by_stride<S: pulp::Simd, const R: usize>(self, simd: S) {
        match self.conv.stride {
            1 => self.by_kernel::<S, R, 1>(simd),
            _ => self.by_kernel::<S, R, 2>(simd),
        }
    }

    /// Columns of the kernel and input channels summed at once: as many as registers hold.
    #[inline(always)]
    fn by_kernel<S: pulp::Simd, const R: usize, const STRIDE: usize>(self, simd: S) {
        match (R, self.conv.kernel, self.conv.input.channels) {
            (1, 3, 8..) => self.blocks::<S, R, STRIDE, 3, 8>(simd),
            (1, 5, 4..) => self.blocks::<S, R, STRIDE, 5, 4>(simd),
            (1, 3, _) => self.blocks::<S, R, STRIDE, 3, 1>(simd),
            (1, 5, _) => self.blocks::<S, R, STRIDE, 5, 1>(simd),
            (1 | 2, _, 4..) => self.blocks::<S, R, STRIDE, 1, 4>(simd),
            _ => self.blocks::<S, R, STRIDE, 1, 1>(simd),
        }
    }

    #[inline(always)]
    fn blocks<
        S: pulp::Simd,
        const R: usize,
        const STRIDE: usize,
        const K: usize,
        const I: usize,
    >(
        self,
        simd: S,
    ) {
        let Self { conv, padded, grad, sum } = self;
        let (within, out, k) = (conv.padded(), conv.output(), conv.kernel);
        for (to, grad) in grad.chunks_exact(out.pixels()).enumerate() {
            for (from, padded) in padded.chunks_exact(within.pixels()).enumerate() {
                let channels = LANES.min(within.channels - from * LANES);
                for row in 0..k {
                    for column in (0..k).step_by(K) {
                        let blocks = to * within.blocks() + from;
                        let at = ((blocks * k + row) * k + column) * LANES;
                        for channel in (0..channels).step_by(I) {
                            let place = (row, column, channel);
                            let sum = &mut sum[at + channel..];
                            tile::<S, R, STRIDE, K, I>(simd, conv, padded, grad, place, sum);
                        }
                    }
                }
            }
        }
    }
}

/// `K` columns of the kernel by `I` input channels, over all pixels. Channels past the last one hold
/// zeros, and so does their sum.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn tile<S: pulp::Simd, const R: usize, const STRIDE: usize, const K: usize, const I: usize>(
    simd: S,
    conv: &Conv,
    padded: &[Lanes],
    grad: &[Lanes],
    (row, column, channel): (usize, usize, usize),
    sum: &mut [Lanes],
) {
    let (out, width) = (conv.output(), conv.padded().width);
    let mut sums = [[[simd.splat_f32s(0.0); R]; I]; K];
    for j in 0..K {
        for i in 0..I {
            for r in 0..R {
                sums[j][i][r] = S::as_simd_f32s(&sum[j * LANES + i]).0[r];
            }
        }
    }
    for (h, grad) in grad.chunks_exact(out.width).enumerate() {
        let at = (h * STRIDE + row) * width + column;
        let pixels = &padded[at..][..(out.width - 1) * STRIDE + K];
        for (w, grad) in grad.iter().enumerate() {
            let grad = S::as_simd_f32s(grad).0;
            let pixels = &pixels[w * STRIDE..][..K];
            for j in 0..K {
                let channels = &pixels[j][channel..][..I];
                for i in 0..I {
                    let x = simd.splat_f32s(channels[i]);
                    for r in 0..R {
                        sums[j][i][r] = simd.mul_add_f32s(x, grad[r], sums[j][i][r]);
                    }
                }
            }
        }
    }
    for j in 0..K {
        for i in 0..I {
            for r in 0..R {
                S::as_mut_simd_f32s(&mut sum[j * LANES + i]).0[r] = sums[j][i][r];
            }
        }
    }
}
