//! A matrix product whose every element is computed in one fixed order.
//!
//! `gemm` picks kernels by shape, so a row's result depends on how many rows it is computed with.
//! Here element (row, j) is always `bias[j]` followed by one fused multiply-add per input in
//! ascending order: the row's batch, its position in it, the number of threads and the width of
//! the vector registers cannot change a bit. Vectors run over j, tiles hold several rows, and
//! neither touches the order within an element.

use rayon::prelude::*;

/// Outputs computed at once: one AVX-512 register or two AVX ones.
const LANES: usize = 16;
/// Rows computed at once: with two AVX registers each, as many sums as sixteen registers hold.
const ROWS: usize = 6;

/// `weight` [outputs, inputs] and its bias, rearranged once for repeated products.
#[derive(Clone, Debug)]
pub(crate) struct PackedLinear {
    inputs: usize,
    outputs: usize,
    /// For each group of `LANES` outputs, [inputs, LANES], the last group filled up with zeros.
    panels: Vec<[f32; LANES]>,
    /// [groups, LANES], filled up with zeros.
    bias: Vec<[f32; LANES]>,
}

impl PackedLinear {
    /// Packs a row-major [outputs, inputs] weight and a bias of `outputs` elements (none: zeros).
    pub(crate) fn new(weight: &[f32], bias: Option<&[f32]>, outputs: usize, inputs: usize) -> Self {
        assert_eq!(weight.len(), outputs * inputs, "a {outputs} x {inputs} weight");
        let groups = outputs.div_ceil(LANES);
        let mut panels = vec![[0.0; LANES]; groups * inputs];
        for (output, row) in weight.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[output / LANES * inputs..][..inputs];
            for (lanes, &w) in panel.iter_mut().zip(row) {
                lanes[output % LANES] = w;
            }
        }
        let mut lanes = vec![[0.0; LANES]; groups];
        for (output, &b) in bias.unwrap_or_default().iter().enumerate() {
            lanes[output / LANES][output % LANES] = b;
        }
        Self { inputs, outputs, panels, bias: lanes }
    }

    /// Width of a row of the result.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `input` [rows, inputs] times the weight plus the bias: [rows, outputs].
    pub(crate) fn apply(&self, input: &[f32], relu: bool) -> Vec<f32> {
        let rows = input.len() / self.inputs;
        let mut out = vec![0.0; rows * self.outputs];
        // Whole tiles for each thread; the cut does not change results.
        let share = rows.div_ceil(rayon::current_num_threads()).max(1).next_multiple_of(ROWS);
        out.par_chunks_mut(share * self.outputs)
            .zip(input.par_chunks(share * self.inputs))
            .for_each(|(out, input)| {
                let tiles = interleave(input, self.inputs);
                pulp::Arch::new().dispatch(Share { layer: self, tiles, out, relu });
            });
        out
    }
}

/// For each `ROWS` rows of `input` [rows, inputs], [inputs, ROWS]: what a tile reads at once lies
/// together. The last tile is filled up with zeros.
fn interleave(input: &[f32], inputs: usize) -> Vec<[f32; ROWS]> {
    let mut tiles = vec![[0.0; ROWS]; (input.len() / inputs).div_ceil(ROWS) * inputs];
    for (row, values) in input.chunks_exact(inputs).enumerate() {
        let tile = &mut tiles[row / ROWS * inputs..][..inputs];
        for (lanes, &x) in tile.iter_mut().zip(values) {
            lanes[row % ROWS] = x;
        }
    }
    tiles
}

/// One thread's rows.
struct Share<'a> {
    layer: &'a PackedLinear,
    tiles: Vec<[f32; ROWS]>,
    /// [rows, outputs].
    out: &'a mut [f32],
    relu: bool,
}

impl pulp::WithSimd for Share<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        // How many registers hold a group of outputs.
        match LANES / S::F32_LANES {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl Share<'_> {
    #[inline(always)]
    fn run<S: pulp::Simd, const R: usize>(self, simd: S) {
        let &PackedLinear { inputs, outputs, ref panels, ref bias } = self.layer;
        let rows_out = self.out.len() / outputs;
        for (group, (panel, bias)) in panels.chunks_exact(inputs).zip(bias).enumerate() {
            let start = group * LANES;
            let width = LANES.min(outputs - start);
            for (tile, values) in self.tiles.chunks_exact(inputs).enumerate() {
                let sums = product::<S, R>(simd, values, panel, bias);
                let first = tile * ROWS;
                for (row, sums) in (first..rows_out.min(first + ROWS)).zip(&sums) {
                    let out = &mut self.out[row * outputs + start..][..width];
                    for (out, &sum) in out.iter_mut().zip(sums) {
                        // Not `max`: NaN must stay NaN. An overflow to minus infinity stays too,
                        // or the layers after it would answer as if it were a 0.
                        let clear = self.relu && sum < 0.0 && sum > f32::NEG_INFINITY;
                        *out = if clear { 0.0 } else { sum };
                    }
                }
            }
        }
    }
}

/// One group of outputs for the rows of one tile, in `R` registers a row.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn product<S: pulp::Simd, const R: usize>(
    simd: S,
    tile: &[[f32; ROWS]],
    panel: &[[f32; LANES]],
    bias: &[f32; LANES],
) -> [[f32; LANES]; ROWS] {
    let start: [S::f32s; R] = std::array::from_fn(|c| S::as_simd_f32s(bias).0[c]);
    let mut sums = [start; ROWS];
    for (x, weights) in tile.iter().zip(panel) {
        let weights = S::as_simd_f32s(weights).0;
        for r in 0..ROWS {
            let x = simd.splat_f32s(x[r]);
            for c in 0..R {
                sums[r][c] = simd.mul_add_f32s(x, weights[c], sums[r][c]);
            }
        }
    }
    // By index, here and above: a reference to the sums would keep them out of registers.
    let mut out = [[0.0; LANES]; ROWS];
    for r in 0..ROWS {
        for c in 0..R {
            S::as_mut_simd_f32s(&mut out[r]).0[c] = sums[r][c];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Philox;

    fn draw(rng: &mut Philox, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Each element is the chain of fused multiply-adds that the module's comment states, bit
        /// for bit, whatever the number of rows.
        #[test]
        fn is_the_stated_chain(seed: u64, rows in 1usize..20, inputs in 1usize..70,
                               outputs in 1usize..40, relu: bool) {
            let mut rng = Philox::new(seed, 0);
            let (x, w) = (draw(&mut rng, rows * inputs), draw(&mut rng, outputs * inputs));
            let bias = draw(&mut rng, outputs);
            let out = PackedLinear::new(&w, Some(&bias), outputs, inputs).apply(&x, relu);
            for (i, &found) in out.iter().enumerate() {
                let (row, j) = (i / outputs, i % outputs);
                let terms = x[row * inputs..][..inputs].iter().zip(&w[j * inputs..]);
                let sum = terms.fold(bias[j], |sum, (&x, &w)| x.mul_add(w, sum));
                let expected = if relu && sum < 0.0 { 0.0 } else { sum };
                prop_assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
    }

    #[test]
    fn nothing_that_is_not_finite_is_swallowed_by_relu() {
        let layer = PackedLinear::new(&[1.0], None, 1, 1);
        let found = layer.apply(&[f32::NAN, f32::NEG_INFINITY, -1.0, f32::INFINITY], true);
        assert!(found[0].is_nan());
        assert_eq!(found[1..], [f32::NEG_INFINITY, 0.0, f32::INFINITY]);
    }
}
