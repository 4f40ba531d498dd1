//! The convolution itself.

use super::{Conv, Filters, LANES, Lanes, Prepared};

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'a> {
    /// Added, where there is one; as large as the output.
    pub(crate) residual: Option<&'a [Lanes]>,
    /// Whether max(0, x) follows. What is not finite stays: NaN, and minus infinity too.
    pub(crate) relu: bool,
}

impl Epilogue<'_> {
    /// Sums as they are.
    pub(crate) const NONE: Self = Self { residual: None, relu: false };
}

/// One image.
pub(crate) struct Job<'a, F = Prepared> {
    pub(crate) conv: &'a Conv,
    pub(crate) filters: &'a F,
    /// As [`Conv::padded`] says.
    pub(crate) padded: &'a [Lanes],
    /// One entry for each block of outputs.
    pub(crate) bias: &'a [Lanes],
    pub(crate) epilogue: Epilogue<'a>,
    /// As [`Conv::output`] says.
    pub(crate) out: &'a mut [Lanes],
}

impl<'a> Job<'a> {
    /// Convolves.
    #[inline(always)]
    pub(crate) fn run<S: pulp::Simd>(self, simd: S) {
        // How many registers hold a block.
        match LANES / S::F32_LANES {
            1 => self.by_algorithm::<S, 1>(simd),
            2 => self.by_algorithm::<S, 2>(simd),
            4 => self.by_algorithm::<S, 4>(simd),
            _ => self.by_algorithm::<S, LANES>(simd),
        }
    }

    #[inline(always)]
    fn by_algorithm<S: pulp::Simd, const R: usize>(self, simd: S) {
        match self.filters {
            Prepared::Direct(filters) => self.with(filters).by_stride::<S, R>(simd),
            Prepared::Winograd(filters) => self.with(filters).by_count::<S, R>(simd),
        }
    }

    #[inline(always)]
    fn with<F>(self, filters: &'a F) -> Job<'a, F> {
        let Self { conv, padded, bias, epilogue, out, .. } = self;
        Job { conv, filters, padded, bias, epilogue, out }
    }
}

impl Job<'_, Filters> {
    #[inline(always)]
    fn by_stride<S: pulp::Simd, const R: usize>(self, simd: S) {
        match self.conv.stride {
            1 => self.by_width::<S, R, 1>(simd),
            _ => self.by_width::<S, R, 2>(simd),
        }
    }

    /// Pixels summed at once: as many as registers hold, and as divide a row well.
    #[inline(always)]
    fn by_width<S: pulp::Simd, const R: usize, const STRIDE: usize>(self, simd: S) {
        let width = self.conv.output().width;
        if R == 1 && width >= 8 {
            let cost = |tile: usize| width.div_ceil(tile) * tile;
            let best = [16, 14, 10, 8].into_iter().filter(|&tile| tile <= width);
            // The first of the cheapest.
            return match best.min_by_key(|&tile| cost(tile)) {
                Some(16) => self.rows::<S, R, STRIDE, 16>(simd),
                Some(14) => self.rows::<S, R, STRIDE, 14>(simd),
                Some(10) => self.rows::<S, R, STRIDE, 10>(simd),
                _ => self.rows::<S, R, STRIDE, 8>(simd),
            };
        }
        if R <= 2 && width >= 4 {
            return self.rows::<S, R, STRIDE, 4>(simd);
        }
        self.rows::<S, R, STRIDE, 1>(simd);
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn rows<S: pulp::Simd, const R: usize, const STRIDE: usize, const TILE: usize>(self, simd: S) {
        let Self { conv, filters, padded, bias, epilogue, out } = self;
        let (shape, filters) = (conv.output(), &filters.panels);
        let per_block = filters.len() / conv.output_blocks();
        for (block, (filters, bias)) in filters.chunks_exact(per_block).zip(bias).enumerate() {
            for row in 0..shape.height {
                let start = (block * shape.height + row) * shape.width;
                let mut next = 0;
                while next < shape.width {
                    // The last tile begins early rather than late: some pixels are computed twice.
                    let column = next.min(shape.width - TILE);
                    let mut sums =
                        tile::<S, R, STRIDE, TILE>(simd, conv, filters, padded, bias, row, column);
                    let at = start + column;
                    if let Some(residual) = epilogue.residual {
                        add::<S, R, TILE>(simd, &mut sums, &residual[at..][..TILE]);
                    }
                    if epilogue.relu {
                        sums.as_flattened_mut().iter_mut().for_each(|x| *x = relu(simd, *x));
                    }
                    for (out, sums) in out[at..][..TILE].iter_mut().zip(&sums) {
                        S::as_mut_simd_f32s(out).0[..R].copy_from_slice(sums);
                    }
                    next = column + TILE;
                }
            }
        }
    }
}

#[inline(always)]
fn add<S: pulp::Simd, const R: usize, const TILE: usize>(
    simd: S,
    sums: &mut [[S::f32s; R]; TILE],
    residual: &[Lanes],
) {
    for (sums, residual) in sums.iter_mut().zip(residual) {
        let residual = S::as_simd_f32s(residual).0;
        for r in 0..R {
            sums[r] = simd.add_f32s(sums[r], residual[r]);
        }
    }
}

/// Not a maximum: NaN must stay NaN. An overflow to minus infinity stays too, or the layers after it
/// would answer as if it were a 0.
#[inline(always)]
pub(crate) fn relu<S: pulp::Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (zero, least) = (simd.splat_f32s(0.0), simd.splat_f32s(f32::NEG_INFINITY));
    let clear = simd.and_m32s(simd.less_than_f32s(x, zero), simd.less_than_f32s(least, x));
    simd.select_f32s(clear, zero, x)
}

/// Sums of one block of outputs for `TILE` pixels of one row, in `R` registers a pixel.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn tile<S: pulp::Simd, const R: usize, const STRIDE: usize, const TILE: usize>(
    simd: S,
    conv: &Conv,
    filters: &[Lanes],
    padded: &[Lanes],
    bias: &Lanes,
    row: usize,
    column: usize,
) -> [[S::f32s; R]; TILE] {
    let start: [S::f32s; R] = std::array::from_fn(|r| S::as_simd_f32s(bias).0[r]);
    let mut sums = [start; TILE];
    let within = conv.padded();
    let (k, span) = (conv.kernel, (TILE - 1) * STRIDE + 1);
    for block in 0..within.blocks() {
        let channels = LANES.min(within.channels - block * LANES);
        for i in 0..k {
            let at = (block * within.height + row * STRIDE + i) * within.width + column * STRIDE;
            let pixels = &padded[at..][..span + k - 1];
            for j in 0..k {
                let pixels = &pixels[j..][..span];
                let filters = &filters[((block * k + i) * k + j) * LANES..][..channels];
                for (channel, weights) in filters.iter().enumerate() {
                    // Says that it is below LANES.
                    let channel = channel % LANES;
                    let weights = S::as_simd_f32s(weights).0;
                    // By index: a reference to the sums would keep them out of registers.
                    for t in 0..TILE {
                        let x = simd.splat_f32s(pixels[t * STRIDE][channel]);
                        for r in 0..R {
                            sums[t][r] = simd.mul_add_f32s(x, weights[r], sums[t][r]);
                        }
                    }
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reference::{Case, cases, normals};
    use super::super::{Shape, pack, place, unpack, winograd};
    use super::*;
    use crate::rng::Philox;

    impl pulp::WithSimd for Job<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            self.run(simd);
        }
    }

    fn blocked(planes: &[f32], shape: Shape) -> Vec<Lanes> {
        let mut image = vec![[0.0; LANES]; shape.len()];
        pack(planes, shape, &mut image, |_, x| x);
        image
    }

    fn run(case: &Case, weight: &[f32], relu: bool, residual: Option<&[f32]>) -> Vec<f32> {
        let (conv, out) = (&case.conv, case.conv.output());
        let mut padded = vec![[0.0; LANES]; conv.padded().len()];
        let image = blocked(&case.input, conv.input);
        place(&image, conv.input, &mut padded, conv.padded(), conv.padding, 1);
        let mut bias = vec![[0.0; LANES]; out.blocks()];
        bias.as_flattened_mut()[..conv.outputs].copy_from_slice(&case.bias);
        let filters = Prepared::new(conv, weight, |_| 1.0);
        let residual = residual.map(|planes| blocked(planes, out));
        let epilogue = Epilogue { residual: residual.as_deref(), relu };
        let mut image = vec![[f32::NAN; LANES]; out.len()];
        let arch = pulp::Arch::new();
        let (filters, padded, bias, out_image) = (&filters, &padded, &bias, &mut image);
        arch.dispatch(Job { conv, filters, padded, bias, epilogue, out: out_image });
        let mut planes = vec![0.0; out.features()];
        unpack(&image, out, &mut planes);
        planes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each element is the chain of fused multiply-adds that the module's comment states, bit
        /// for bit; by Winograd's algorithm the same number but for rounding.
        #[test]
        fn is_the_stated_chain(case in cases(), relu: bool, seed: u64) {
            let out = case.conv.output();
            let residual = normals(&mut Philox::new(seed, 0), out.features());
            for residual in [None, Some(&residual[..])] {
                let found = run(&case, &case.weight, relu, residual);
                for (index, &found) in found.iter().enumerate() {
                    let chain = case.chain(index) + residual.map_or(0.0, |r| r[index]);
                    let expected = if relu && chain < 0.0 { 0.0 } else { chain };
                    if winograd::fits(&case.conv) {
                        prop_assert!((found - expected).abs() < 1e-4, "{} {}", found, expected);
                    } else {
                        prop_assert_eq!(found.to_bits(), expected.to_bits());
                    }
                }
            }
        }

        /// An image's output by Winograd's algorithm is exact where all numbers are small integers.
        #[test]
        fn small_integers_are_exact(
            (inputs, outputs) in (1usize..36, 1usize..36),
            (height, width) in (1usize..20, 1usize..36),
            padding in 1usize..3,
            seed: u64,
        ) {
            let input = Shape::new(inputs, height, width);
            let conv = Conv { input, outputs, kernel: 3, stride: 1, padding };
            let mut case = Case::new(conv, &mut Philox::new(seed, 0));
            let weight = case.weight.iter_mut().map(|w| (4.0 * *w).round() * 4.0);
            case.weight = weight.collect();
            case.input.iter_mut().for_each(|x| *x = (3.0 * *x).round());
            case.bias.iter_mut().for_each(|b| *b = b.round());
            let found = run(&case, &case.weight, false, None);
            for (index, &found) in found.iter().enumerate() {
                prop_assert_eq!(found, case.chain(index));
            }
        }
    }

    #[test]
    fn nothing_that_is_not_finite_is_swallowed_by_relu() {
        let conv =
            Conv { input: Shape::new(1, 1, 4), outputs: 1, kernel: 1, stride: 1, padding: 0 };
        let input = vec![f32::NAN, f32::NEG_INFINITY, -1.0, f32::INFINITY];
        let case = Case { conv, input, weight: vec![1.0], bias: vec![0.0] };
        let found = run(&case, &case.weight, true, None);
        assert!(found[0].is_nan());
        assert_eq!(found[1..], [f32::NEG_INFINITY, 0.0, f32::INFINITY]);
    }
}
