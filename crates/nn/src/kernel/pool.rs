//! Pooling of images in blocks of channels.

use super::conv::{LANES, Lanes, Shape};

/// The size after [`max_pool`]: an odd last row or column is left out.
pub(crate) fn halved(shape: Shape) -> Shape {
    Shape::new(shape.channels, shape.height / 2, shape.width / 2)
}

/// The largest of each 2 x 2 pixels of one image; NaN where one of them is NaN, or minus infinity,
/// which would be passed over without a trace of the overflow.
#[inline(always)]
fn max_pool<S: pulp::Simd>(simd: S, image: &[Lanes], shape: Shape, out: &mut [Lanes]) {
    let to = halved(shape);
    for row in 0..shape.blocks() * to.height {
        let out = &mut out[row * to.width..][..to.width];
        let [above, below] = rows(shape, row).map(|at| &image[at..][..2 * to.width]);
        for ((above, below), out) in above.chunks_exact(2).zip(below.chunks_exact(2)).zip(out) {
            let others = [&above[1], &below[0], &below[1]];
            let out = S::as_mut_simd_f32s(out).0;
            for (r, out) in out.iter_mut().enumerate() {
                let mut largest = visible(simd, S::as_simd_f32s(&above[0]).0[r]);
                for other in others {
                    let x = visible(simd, S::as_simd_f32s(other).0[r]);
                    // A NaN is not equal to itself, and larger than all.
                    let smaller = simd.less_than_f32s(x, largest);
                    let number = simd.equal_f32s(x, x);
                    let known_nan = simd.not_m32s(simd.equal_f32s(largest, largest));
                    let keep = simd.or_m32s(simd.and_m32s(smaller, number), known_nan);
                    largest = simd.select_f32s(keep, largest, x);
                }
                *out = largest;
            }
        }
    }
}

/// NaN in the place of minus infinity.
#[inline(always)]
fn visible<S: pulp::Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = simd.equal_f32s(x, simd.splat_f32s(f32::NEG_INFINITY));
    simd.select_f32s(least, simd.splat_f32s(f32::NAN), x)
}

/// [`max_pool`] as a job of its own.
pub(crate) struct MaxPool<'a> {
    pub(crate) image: &'a [Lanes],
    pub(crate) shape: Shape,
    pub(crate) out: &'a mut [Lanes],
}

impl pulp::WithSimd for MaxPool<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        max_pool(simd, self.image, self.shape, self.out);
    }
}

/// The gradient of [`max_pool`]: to the first of the largest, as PyTorch has it. `to_input` is
/// overwritten.
#[inline(always)]
pub(crate) fn max_pool_gradient<S: pulp::Simd>(
    simd: S,
    image: &[Lanes],
    shape: Shape,
    out: &[Lanes],
    grad: &[Lanes],
    to_input: &mut [Lanes],
) {
    let (to, zero) = (halved(shape), simd.splat_f32s(0.0));
    to_input.fill([0.0; LANES]);
    for row in 0..shape.blocks() * to.height {
        let [above, below] = rows(shape, row);
        for column in 0..to.width {
            let at = row * to.width + column;
            let largest = S::as_simd_f32s(&out[at]).0;
            let grad = S::as_simd_f32s(&grad[at]).0;
            let (above, below) = (above + 2 * column, below + 2 * column);
            for (r, &largest) in largest.iter().enumerate() {
                let mut left = grad[r];
                for from in [above, above + 1, below, below + 1] {
                    let chosen = simd.equal_f32s(S::as_simd_f32s(&image[from]).0[r], largest);
                    let share = simd.select_f32s(chosen, left, zero);
                    left = simd.select_f32s(chosen, zero, left);
                    S::as_mut_simd_f32s(&mut to_input[from]).0[r] = share;
                }
            }
        }
    }
}

/// Where the two rows begin that become one: `row` is counted over all blocks.
#[inline(always)]
fn rows(shape: Shape, row: usize) -> [usize; 2] {
    let (block, row) = (row / (shape.height / 2), row % (shape.height / 2));
    let at = (block * shape.height + 2 * row) * shape.width;
    [at, at + shape.width]
}

/// The mean of each channel of one image.
#[inline(always)]
pub(crate) fn average(image: &[Lanes], shape: Shape, out: &mut [f32]) {
    let pixels = shape.pixels();
    for (block, out) in image.chunks_exact(pixels).zip(out.chunks_mut(LANES)) {
        let mut sum = [0f32; LANES];
        for lanes in block {
            sum.iter_mut().zip(lanes).for_each(|(sum, x)| *sum += x);
        }
        out.iter_mut().zip(sum).for_each(|(out, sum)| *out = sum / pixels as f32);
    }
}

/// The gradient of [`average`].
pub(crate) fn average_gradient(grad: &[f32], shape: Shape, to_input: &mut [Lanes]) {
    let pixels = shape.pixels();
    for (block, grad) in to_input.chunks_exact_mut(pixels).zip(grad.chunks(LANES)) {
        let mut lanes = [0.0; LANES];
        lanes.iter_mut().zip(grad).for_each(|(lane, g)| *lane = g / pixels as f32);
        block.fill(lanes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Both<'a>(&'a [Lanes], Shape, &'a mut [Lanes], Option<(&'a [Lanes], &'a mut [Lanes])>);

    impl pulp::WithSimd for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            max_pool(simd, self.0, self.1, self.2);
            if let Some((grad, to_input)) = self.3 {
                max_pool_gradient(simd, self.0, self.1, self.2, grad, to_input);
            }
        }
    }

    fn image(values: &[f32]) -> Vec<Lanes> {
        values
            .iter()
            .map(|&x| std::array::from_fn(|l| x * if l == 1 { -1.0 } else { 1.0 }))
            .collect()
    }

    #[test]
    fn the_largest_of_four_passes_and_gets_the_gradient() {
        let shape = Shape::new(2, 3, 5);
        #[rustfmt::skip]
        let x = image(&[
            1.0, 2.0, 5.0, 5.0, 9.0,
            0.5, 1.5, 5.0, 4.0, 9.0,
            9.0, 9.0, 9.0, 9.0, 9.0,
        ]);
        let mut out = vec![[0.0; LANES]; 2];
        let mut to_input = vec![[7.0; LANES]; 15];
        let grad = [[3.0; LANES], [4.0; LANES]];
        pulp::Arch::new().dispatch(Both(&x, shape, &mut out, Some((&grad, &mut to_input))));
        assert_eq!(
            (out[0][..2].to_vec(), out[1][..2].to_vec()),
            (vec![2.0, -0.5], vec![5.0, -4.0])
        );
        let of = |lane: usize| -> Vec<(usize, f32)> {
            let values = to_input.iter().map(|lanes| lanes[lane]).enumerate();
            values.filter(|(_, g)| *g != 0.0).collect()
        };
        // Three pixels are 5: the first of them gets it.
        assert_eq!(of(0), [(1, 3.0), (2, 4.0)]);
        assert_eq!(of(1), [(5, 3.0), (8, 4.0)]);
    }

    #[test]
    fn neither_nan_nor_minus_infinity_is_passed_over() {
        for (at, bad) in (0..8).map(|i| (i % 4, [f32::NAN, f32::NEG_INFINITY][i / 4])) {
            let mut x = image(&[1.0, 2.0, 3.0, 4.0]);
            x[at][0] = bad;
            let mut out = vec![[0.0; LANES]; 1];
            pulp::Arch::new().dispatch(Both(&x, Shape::new(1, 2, 2), &mut out, None));
            assert!(out[0][0].is_nan(), "{at}");
        }
    }

    #[test]
    fn the_average_and_its_gradient() {
        let shape = Shape::new(17, 1, 4);
        let x: Vec<Lanes> = (0..8).map(|i| [i as f32; LANES]).collect();
        let mut out = vec![0.0; 17];
        average(&x, shape, &mut out);
        assert_eq!((out[0], out[16]), (1.5, 5.5));
        let mut to_input = vec![[9.0; LANES]; 8];
        average_gradient(&[8.0; 17], shape, &mut to_input);
        assert_eq!((to_input[0], to_input[7][0], to_input[7][1]), ([2.0; LANES], 2.0, 0.0));
    }
}
