//! The shortcut of a residual block without weights (option A of He et al., 2016, section 4.1).

use super::config::BlockShape;
use crate::kernel::conv::{LANES, Lanes, Shape};

/// The identity, or every other pixel with channels of zeros before and after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortcut {
    input: Shape,
    output: Shape,
    stride: usize,
}

impl Shortcut {
    pub(super) fn new(block: BlockShape) -> Self {
        let (input, output) = (block.first.input, block.second.output());
        Self { input, output, stride: block.first.stride }
    }

    pub(super) fn is_identity(&self) -> bool {
        self.input == self.output
    }

    pub(super) fn output(&self) -> Shape {
        self.output
    }

    /// One image.
    pub(super) fn shrink(&self, image: &[Lanes], out: &mut [Lanes]) {
        out.fill([0.0; LANES]);
        self.for_each(|from, from_lane, to, to_lane| out[to][to_lane] = image[from][from_lane]);
    }

    /// The gradient of [`Self::shrink`], added to what is there.
    pub(super) fn add_grown(&self, grad: &[Lanes], to_input: &mut [Lanes]) {
        self.for_each(|from, from_lane, to, to_lane| {
            to_input[from][from_lane] += grad[to][to_lane];
        });
    }

    /// Calls `body` with pixel and lane of every element that is passed on, there and here.
    fn for_each(&self, mut body: impl FnMut(usize, usize, usize, usize)) {
        let (input, output) = (self.input, self.output);
        let before = (output.channels - input.channels) / 2;
        for channel in 0..input.channels {
            let from = channel / LANES * input.pixels();
            let moved = channel + before;
            let to = moved / LANES * output.pixels();
            for row in 0..output.height {
                for column in 0..output.width {
                    let at = row * self.stride * input.width + column * self.stride;
                    let (to, lane) = (to + row * output.width + column, moved % LANES);
                    body(from + at, channel % LANES, to, lane);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ResNetConfig;
    use super::*;

    #[test]
    fn takes_every_other_pixel_and_centres_the_channels() {
        let config = ResNetConfig {
            image_size: 5,
            hidden_sizes: vec![10, 34],
            ..ResNetConfig::new(vec![1, 1], 2)
        };
        let blocks = config.blocks();
        assert!(Shortcut::new(blocks[0].1).is_identity());
        let shortcut = Shortcut::new(blocks[1].1);
        assert_eq!(shortcut.output(), Shape::new(34, 3, 3));
        let image: Vec<Lanes> = (0..25)
            .map(|p| std::array::from_fn(|l| if l < 10 { (100 * l + p + 1) as f32 } else { 0.0 }))
            .collect();
        let mut out = vec![[9.0; LANES]; 27];
        shortcut.shrink(&image, &mut out);
        for channel in 0..48 {
            for (to, from) in [0, 2, 4, 10, 12, 14, 20, 22, 24].into_iter().enumerate() {
                let expected = match channel {
                    12..22 => (100 * (channel - 12) + from + 1) as f32,
                    _ => 0.0,
                };
                assert_eq!(out[channel / LANES * 9 + to][channel % LANES], expected);
            }
        }
        // <shrink x, y> = <x, grow y>.
        let grad: Vec<Lanes> =
            (0..27).map(|p| std::array::from_fn(|l| ((p * 7 + l * 3) % 11) as f32)).collect();
        let mut grown = vec![[0.0; LANES]; 25];
        shortcut.add_grown(&grad, &mut grown);
        let dot = |a: &[Lanes], b: &[Lanes]| -> f64 {
            let pairs = a.as_flattened().iter().zip(b.as_flattened());
            pairs.map(|(a, b)| f64::from(a * b)).sum()
        };
        assert_eq!(dot(&out, &grad), dot(&image, &grown));
    }
}
