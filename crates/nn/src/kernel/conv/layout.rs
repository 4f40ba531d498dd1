//! Between planes and blocks of channels.

use super::{LANES, Lanes, Shape};

/// Planes [channels, height, width] into blocks; `convert` is applied to each element.
pub(crate) fn pack(
    planes: &[f32],
    shape: Shape,
    image: &mut [Lanes],
    convert: impl Fn(usize, f32) -> f32,
) {
    let pixels = shape.pixels();
    for (channel, plane) in planes.chunks_exact(pixels).enumerate() {
        let block = &mut image[channel / LANES * pixels..][..pixels];
        for (lanes, &x) in block.iter_mut().zip(plane) {
            lanes[channel % LANES] = convert(channel, x);
        }
    }
}

/// Planes into a whole image of blocks, less `mean` and over `std` of each channel (none: 0 and 1).
/// Channels that do not exist are 0.
pub(crate) fn pack_normalized(
    planes: &[f32],
    shape: Shape,
    (mean, std): (&[f32], &[f32]),
    image: &mut [Lanes],
) {
    image.fill([0.0; LANES]);
    let of = |values: &[f32], channel: usize| values.get(channel).copied();
    pack(planes, shape, image, |channel, x| {
        (x - of(mean, channel).unwrap_or(0.0)) / of(std, channel).unwrap_or(1.0)
    });
}

/// Blocks into planes.
pub(crate) fn unpack(image: &[Lanes], shape: Shape, planes: &mut [f32]) {
    let pixels = shape.pixels();
    for (channel, plane) in planes.chunks_exact_mut(pixels).enumerate() {
        let block = &image[channel / LANES * pixels..][..pixels];
        for (x, lanes) in plane.iter_mut().zip(block) {
            *x = lanes[channel % LANES];
        }
    }
}

/// Writes an image into a larger one: pixel (r, c) to (offset + r * step, offset + c * step). What
/// lies between and around keeps its value.
pub(crate) fn place(
    image: &[Lanes],
    shape: Shape,
    canvas: &mut [Lanes],
    within: Shape,
    offset: usize,
    step: usize,
) {
    for (row, pixels) in image.chunks_exact(shape.width).enumerate() {
        let (block, row) = (row / shape.height, row % shape.height);
        let at = (block * within.height + offset + row * step) * within.width + offset;
        if step == 1 {
            canvas[at..][..shape.width].copy_from_slice(pixels);
        } else {
            for (to, from) in canvas[at..].iter_mut().step_by(step).zip(pixels) {
                *to = *from;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_come_back_and_the_rest_of_a_block_is_zero() {
        let shape = Shape::new(18, 2, 3);
        let planes: Vec<f32> = (0..shape.features()).map(|i| i as f32 + 1.0).collect();
        let mut image = vec![[0.0; LANES]; shape.len()];
        pack(&planes, shape, &mut image, |_, x| x);
        assert_eq!(image[6][..2], [97.0, 103.0]);
        assert!(image[6..].iter().all(|lanes| lanes[2..] == [0.0; LANES - 2]));
        let mut back = vec![0.0; planes.len()];
        unpack(&image, shape, &mut back);
        assert_eq!(back, planes);
        pack(&planes, shape, &mut image, |channel, x| x - channel as f32);
        assert_eq!(image[7][1], 104.0 - 17.0);
    }

    #[test]
    fn pixels_are_spread_over_the_canvas() {
        let (shape, within) = (Shape::new(1, 2, 2), Shape::new(1, 5, 5));
        let image: Vec<Lanes> = (1..=4).map(|i| [i as f32; LANES]).collect();
        let mut canvas = vec![[0.0; LANES]; within.len()];
        place(&image, shape, &mut canvas, within, 1, 2);
        let found: Vec<(usize, f32)> =
            canvas.iter().map(|lanes| lanes[0]).enumerate().filter(|(_, x)| *x != 0.0).collect();
        assert_eq!(found, [(6, 1.0), (8, 2.0), (16, 3.0), (18, 4.0)]);
        let mut canvas = vec![[0.0; LANES]; within.len()];
        place(&image, shape, &mut canvas, within, 1, 1);
        assert_eq!((canvas[6][0], canvas[7][0], canvas[12][0]), (1.0, 2.0, 4.0));
    }
}
