//! Pooling of images in blocks of channels.

use super::conv::{LANES, Lanes, Shape};

/// The size after [`max_pool`]: an odd last row or column is left out.
pub(crate) fn halved(shape: Shape) -> Shape {
    Shape::new(shape.channels, shape.height / 2, shape.width / 2)
}

/// The largest of each 2 x 2 pixels of one image; NaN where one of them is NaN.
#[inline(always)]
pub(crate) fn max_pool(image: &[Lanes], shape: Shape, out: &mut [Lanes]) {
    for_each_pixel(shape, |at, to| {
        let mut largest = image[at[0]];
        for &at in &at[1..] {
            for (largest, &x) in largest.iter_mut().zip(&image[at]) {
                // The first of equal ones; a NaN is larger than all.
                *largest = if x > *largest || x.is_nan() { x } else { *largest };
            }
        }
        out[to] = largest;
    });
}

/// The gradient of [`max_pool`]: to the first of the largest, as PyTorch has it. `to_input` is
/// overwritten.
#[inline(always)]
pub(crate) fn max_pool_gradient(
    image: &[Lanes],
    shape: Shape,
    out: &[Lanes],
    grad: &[Lanes],
    to_input: &mut [Lanes],
) {
    to_input.fill([0.0; LANES]);
    for_each_pixel(shape, |at, to| {
        let (largest, grad) = (&out[to], &grad[to]);
        let mut taken = [false; LANES];
        for at in at {
            for l in 0..LANES {
                let chosen = !taken[l] && image[at][l] == largest[l];
                taken[l] |= chosen;
                to_input[at][l] = if chosen { grad[l] } else { 0.0 };
            }
        }
    });
}

/// Calls `body` with the indices of each 2 x 2 pixels, row by row, and of the pixel they become.
#[inline(always)]
fn for_each_pixel(shape: Shape, mut body: impl FnMut([usize; 4], usize)) {
    let Shape { height, width, .. } = halved(shape);
    for block in 0..shape.blocks() {
        for row in 0..height {
            for column in 0..width {
                let at = (block * shape.height + 2 * row) * shape.width + 2 * column;
                let below = at + shape.width;
                body([at, at + 1, below, below + 1], (block * height + row) * width + column);
            }
        }
    }
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
        max_pool(&x, shape, &mut out);
        assert_eq!(
            (out[0][..2].to_vec(), out[1][..2].to_vec()),
            (vec![2.0, -0.5], vec![5.0, -4.0])
        );
        let mut to_input = vec![[7.0; LANES]; 15];
        max_pool_gradient(&x, shape, &out, &[[3.0; LANES], [4.0; LANES]], &mut to_input);
        let of = |lane: usize| -> Vec<(usize, f32)> {
            let values = to_input.iter().map(|lanes| lanes[lane]).enumerate();
            values.filter(|(_, g)| *g != 0.0).collect()
        };
        // Three pixels are 5: the first of them gets it.
        assert_eq!(of(0), [(1, 3.0), (2, 4.0)]);
        assert_eq!(of(1), [(5, 3.0), (8, 4.0)]);
    }

    #[test]
    fn a_nan_is_not_passed_over() {
        for at in 0..4 {
            let mut x = image(&[1.0, 2.0, 3.0, 4.0]);
            x[at][0] = f32::NAN;
            let mut out = vec![[0.0; LANES]; 1];
            max_pool(&x, Shape::new(1, 2, 2), &mut out);
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
