//! Two-dimensional convolution (cross-correlation, as in PyTorch) of images in blocks of channels.
//!
//! An image of C channels is [C / 16, height, width, 16]: sixteen channels of one pixel lie
//! together, the last block filled up with zeros. Vectors run over the channels of the output; a
//! tile of pixels is summed in registers, each step one broadcast element of the input against one
//! vector of weights. oneDNN calls the layout nChw16c.
//!
//! Kernels of 3 x 3 at stride 1 go by Winograd's algorithm ([`winograd`]); in all others every output
//! element is its bias followed by one fused multiply-add per weight in the order (block of input
//! channels, row, column, channel). Either way the number of images, the threads and the width of the
//! vector registers cannot change a bit.

mod filters;
mod forward;
mod layout;
#[cfg(test)]
pub(crate) mod reference;
mod weight;
mod winograd;

pub(crate) use filters::{Filters, Prepared};
pub(crate) use forward::{Epilogue, Job, relu};
pub(crate) use layout::{pack, pack_normalized, place, unpack};
pub(crate) use weight::add_weight_gradient;

/// Channels in a block: one AVX-512 register or two AVX ones.
pub(crate) const LANES: usize = 16;
/// A block's channels at one pixel.
pub(crate) type Lanes = [f32; LANES];

/// Size of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Shape {
    pub(crate) fn new(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, height, width }
    }

    /// Blocks of channels.
    pub(crate) fn blocks(self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// Pixels.
    pub(crate) fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Elements of the blocked image, in [`Lanes`].
    pub(crate) fn len(self) -> usize {
        self.blocks() * self.pixels()
    }

    /// Elements of the planar image, channel by channel.
    pub(crate) fn features(self) -> usize {
        self.channels * self.pixels()
    }
}

/// A convolution of square kernels, the same step and zero padding in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conv {
    pub(crate) input: Shape,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    /// 1 or 2.
    pub(crate) stride: usize,
    /// Below `kernel`.
    pub(crate) padding: usize,
}

impl Conv {
    /// The output's size.
    pub(crate) fn output(&self) -> Shape {
        let size = |n: usize| (n + 2 * self.padding - self.kernel) / self.stride + 1;
        Shape::new(self.outputs, size(self.input.height), size(self.input.width))
    }

    /// What a [`Job`] reads: the input with its border of zeros, and at the end of an odd number
    /// of rows or columns another one where whole tiles are read.
    pub(crate) fn padded(&self) -> Shape {
        let Shape { channels, height, width } = self.input;
        if winograd::fits(self) {
            let (height, width) = winograd::covered(self.output());
            return Shape::new(channels, height, width);
        }
        Shape::new(channels, height + 2 * self.padding, width + 2 * self.padding)
    }

    /// The convolution that turns the output's gradient, spread out by the stride and padded as
    /// [`Self::spread`] says, into the input's.
    pub(crate) fn transposed(&self) -> Conv {
        let Shape { height, width, .. } = self.input;
        let input = Shape::new(self.outputs, height + self.kernel - 1, width + self.kernel - 1);
        let outputs = self.input.channels;
        Conv { input, outputs, kernel: self.kernel, stride: 1, padding: 0 }
    }

    /// Where pixel 0 of the output's gradient lies in the input of [`Self::transposed`]; the next
    /// one is a stride further.
    pub(crate) fn spread(&self) -> usize {
        self.kernel - 1 - self.padding
    }
}
