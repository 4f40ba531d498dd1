//! The convolution with kernels of 3 x 3 and stride 1 by Winograd's minimal filtering F(2 x 2, 3 x 3)
//! (Lavin and Gray, 2016, section 4.1): sixteen products for four outputs where the definition takes
//! thirty-six.
//!
//! A tile of 4 x 4 inputs d becomes B^T d B, which is multiplied with the transformed weights element by
//! element and summed over the input channels in ascending order; A^T m A of the sums are 2 x 2
//! outputs. An output's value depends on its own tile alone.

use std::cell::Cell;

use super::forward::relu;
use super::{Conv, Job, LANES, Lanes, Shape};

/// Elements of a transformed tile.
const POINTS: usize = 16;

/// Whether a convolution is computed here.
pub(super) fn fits(conv: &Conv) -> bool {
    conv.kernel == 3 && conv.stride == 1
}

/// The input size that whole tiles read, for an output of `shape`.
pub(super) fn covered(shape: Shape) -> (usize, usize) {
    let even = |n: usize| n.next_multiple_of(2) + 2;
    (even(shape.height), even(shape.width))
}

/// G g G^T of every kernel, for each block of output channels [points, input channels, 16].
#[derive(Clone, Debug)]
pub(crate) struct Transformed {
    panels: Vec<Lanes>,
}

impl Transformed {
    /// `weight` gives the weight of an output and an input channel at a row and a column.
    pub(super) fn new(conv: &Conv, weight: impl Fn(usize, usize, usize, usize) -> f64) -> Self {
        let inputs = conv.input.channels;
        let mut panels = vec![[0.0; LANES]; conv.output_blocks() * POINTS * inputs];
        for output in 0..conv.outputs {
            for input in 0..inputs {
                let g: [[f64; 3]; 3] =
                    std::array::from_fn(|i| std::array::from_fn(|j| weight(output, input, i, j)));
                let columns: [[f64; 4]; 3] = g.map(transform_row);
                for i in 0..4 {
                    for (j, column) in transform_columns(&columns, i).into_iter().enumerate() {
                        let point = output / LANES * POINTS + 4 * i + j;
                        panels[point * inputs + input][output % LANES] = column as f32;
                    }
                }
            }
        }
        Self { panels }
    }
}

/// g G^T of one row.
fn transform_row([a, b, c]: [f64; 3]) -> [f64; 4] {
    [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c]
}

/// Row `i` of G times three rows.
fn transform_columns(rows: &[[f64; 4]; 3], i: usize) -> [f64; 4] {
    std::array::from_fn(|j| transform_row([rows[0][j], rows[1][j], rows[2][j]])[i])
}

thread_local! {
    /// Transformed inputs and their products, kept from call to call.
    static SCRATCH: Cell<Vec<Lanes>> = const { Cell::new(Vec::new()) };
}

impl Job<'_, Transformed> {
    /// Tiles multiplied at once: as many as registers hold sums of, if there are as many.
    #[inline(always)]
    pub(super) fn by_count<S: pulp::Simd, const R: usize>(self, simd: S) {
        let shape = self.conv.output();
        let count = shape.height.div_ceil(2) * shape.width.div_ceil(2);
        match (R, count) {
            (1, 16..) => self.strips::<S, R, 16>(simd, count),
            (1, 8..) => self.strips::<S, R, 8>(simd, count),
            (1 | 2, 4..) => self.strips::<S, R, 4>(simd, count),
            _ => self.strips::<S, R, 1>(simd, count),
        }
    }

    #[inline(always)]
    fn strips<S: pulp::Simd, const R: usize, const TILES: usize>(mut self, simd: S, count: usize) {
        let blocks = self.conv.input.blocks();
        let mut scratch = SCRATCH.take();
        scratch.resize((blocks + 1) * POINTS * TILES, [0.0; LANES]);
        let (inputs, products) = scratch.split_at_mut(blocks * POINTS * TILES);
        let mut next = 0;
        while next < count {
            // The last strip begins early rather than late: some tiles are computed twice.
            let first = next.min(count - TILES);
            self.transform::<S, R, TILES>(simd, first, inputs);
            for block in 0..self.conv.output_blocks() {
                self.multiply::<S, R, TILES>(simd, block, inputs, products);
                self.finish::<S, R, TILES>(simd, block, first, products);
            }
            next = first + TILES;
        }
        SCRATCH.set(scratch);
    }

    /// Row and column of a tile's first output.
    #[inline(always)]
    fn place(&self, tile: usize) -> (usize, usize) {
        let across = self.conv.output().width.div_ceil(2);
        (tile / across * 2, tile % across * 2)
    }

    /// B^T d B: [blocks, points, tiles].
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn transform<S: pulp::Simd, const R: usize, const TILES: usize>(
        &self,
        simd: S,
        first: usize,
        inputs: &mut [Lanes],
    ) {
        let within = self.conv.padded();
        for (block, inputs) in inputs.chunks_exact_mut(POINTS * TILES).enumerate() {
            for tile in 0..TILES {
                let (row, column) = self.place(first + tile);
                let at = (block * within.height + row) * within.width + column;
                let padded = &self.padded[at..][..3 * within.width + 4];
                for r in 0..R {
                    let d =
                        |i: usize, j: usize| S::as_simd_f32s(&padded[i * within.width + j]).0[r];
                    let mut columns = [[simd.splat_f32s(0.0); 4]; 4];
                    for j in 0..4 {
                        columns[j] = difference(simd, [d(0, j), d(1, j), d(2, j), d(3, j)]);
                    }
                    let [a, b, c, d] = columns;
                    for i in 0..4 {
                        let row = difference(simd, [a[i], b[i], c[i], d[i]]);
                        for j in 0..4 {
                            let to = &mut inputs[(4 * i + j) * TILES + tile];
                            S::as_mut_simd_f32s(to).0[r] = row[j];
                        }
                    }
                }
            }
        }
    }

    /// Sums over the input channels: [points, tiles].
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn multiply<S: pulp::Simd, const R: usize, const TILES: usize>(
        &self,
        simd: S,
        block: usize,
        inputs: &[Lanes],
        products: &mut [Lanes],
    ) {
        let channels = self.conv.input.channels;
        let panels = self.filters.panels[block * POINTS * channels..].chunks_exact(channels);
        for (point, (panel, products)) in panels.zip(products.chunks_exact_mut(TILES)).enumerate() {
            let mut sums = [[simd.splat_f32s(0.0); R]; TILES];
            for (from, panel) in panel.chunks(LANES).enumerate() {
                let tiles = &inputs[(from * POINTS + point) * TILES..][..TILES];
                for (channel, weights) in panel.iter().enumerate() {
                    // Says that it is below LANES.
                    let channel = channel % LANES;
                    let weights = S::as_simd_f32s(weights).0;
                    // By index: a reference to the sums would keep them out of registers.
                    for t in 0..TILES {
                        let x = simd.splat_f32s(tiles[t][channel]);
                        for r in 0..R {
                            sums[t][r] = simd.mul_add_f32s(x, weights[r], sums[t][r]);
                        }
                    }
                }
            }
            for (products, sums) in products.iter_mut().zip(&sums) {
                S::as_mut_simd_f32s(products).0[..R].copy_from_slice(sums);
            }
        }
    }

    /// A^T m A, bias and epilogue.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn finish<S: pulp::Simd, const R: usize, const TILES: usize>(
        &mut self,
        simd: S,
        block: usize,
        first: usize,
        products: &[Lanes],
    ) {
        let shape = self.conv.output();
        for tile in 0..TILES {
            let (row, column) = self.place(first + tile);
            for r in 0..R {
                let bias = S::as_simd_f32s(&self.bias[block]).0[r];
                let m = |i: usize, j: usize| {
                    S::as_simd_f32s(&products[(4 * i + j) * TILES + tile]).0[r]
                };
                let mut columns = [[bias; 2]; 4];
                for j in 0..4 {
                    columns[j] = sum(simd, [m(0, j), m(1, j), m(2, j), m(3, j)]);
                }
                let [a, b, c, d] = columns;
                for i in 0..2.min(shape.height - row) {
                    let outputs = sum(simd, [a[i], b[i], c[i], d[i]]);
                    for j in 0..2.min(shape.width - column) {
                        let at = (block * shape.height + row + i) * shape.width + column + j;
                        let mut value = simd.add_f32s(outputs[j], bias);
                        if let Some(residual) = self.epilogue.residual {
                            value = simd.add_f32s(value, S::as_simd_f32s(&residual[at]).0[r]);
                        }
                        if self.epilogue.relu {
                            value = relu(simd, value);
                        }
                        S::as_mut_simd_f32s(&mut self.out[at]).0[r] = value;
                    }
                }
            }
        }
    }
}

/// B^T d.
#[inline(always)]
fn difference<S: pulp::Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
}

/// A^T m.
#[inline(always)]
fn sum<S: pulp::Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
    let first = simd.add_f32s(simd.add_f32s(a, b), c);
    [first, simd.sub_f32s(simd.sub_f32s(b, c), d)]
}
