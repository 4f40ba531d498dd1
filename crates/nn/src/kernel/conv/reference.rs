//! The definition, element by element, for tests.

use proptest::prelude::*;

use super::{Conv, LANES, Shape};
use crate::rng::Philox;

/// A convolution and its operands, in planes.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) conv: Conv,
    pub(crate) input: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

pub(crate) fn normals(rng: &mut Philox, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.normal() as f32).collect()
}

/// Every size that the kernels tell apart, and some that they do not.
pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1usize..36, 1usize..36, 1usize..36, 1usize..18);
    (sizes, 1usize..6, 1usize..3, 0usize..6, any::<u64>()).prop_map(
        |((inputs, outputs, width, height), kernel, stride, padding, seed)| {
            let padding = padding % kernel;
            let least = |n: usize| n.max(kernel.saturating_sub(2 * padding));
            let input = Shape::new(inputs, least(height), least(width));
            let conv = Conv { input, outputs, kernel, stride, padding };
            Case::new(conv, &mut Philox::new(seed, 0))
        },
    )
}

impl Case {
    pub(crate) fn new(conv: Conv, rng: &mut Philox) -> Self {
        let weights = conv.outputs * conv.input.channels * conv.kernel * conv.kernel;
        Self {
            conv,
            input: normals(rng, conv.input.features()),
            weight: normals(rng, weights),
            bias: normals(rng, conv.outputs),
        }
    }

    /// The input at a place of the kernel for an output pixel, counted from the border: 0 outside.
    fn input_at(&self, channel: usize, row: usize, column: usize) -> f32 {
        let Shape { height, width, .. } = self.conv.input;
        let within =
            |at: usize, size: usize| at.checked_sub(self.conv.padding).filter(|&at| at < size);
        match (within(row, height), within(column, width)) {
            (Some(row), Some(column)) => self.input[(channel * height + row) * width + column],
            _ => 0.0,
        }
    }

    /// One element of the output, as the kernels add it up.
    pub(crate) fn chain(&self, index: usize) -> f32 {
        let Conv { input, kernel, stride, .. } = self.conv;
        let out = self.conv.output();
        let (output, row, column) =
            (index / out.pixels(), index / out.width % out.height, index % out.width);
        let mut sum = self.bias[output];
        for block in 0..input.blocks() {
            for i in 0..kernel {
                for j in 0..kernel {
                    for channel in block * LANES..input.channels.min((block + 1) * LANES) {
                        let at = (output * input.channels + channel) * kernel + i;
                        let x = self.input_at(channel, row * stride + i, column * stride + j);
                        sum = x.mul_add(self.weight[at * kernel + j], sum);
                    }
                }
            }
        }
        sum
    }

    /// Gradients of input, weight and bias by the definition, in f64.
    pub(crate) fn gradients(&self, grad: &[f32]) -> [Vec<f64>; 3] {
        let Conv { input, kernel, stride, padding, .. } = self.conv;
        let out = self.conv.output();
        let mut to_input = vec![0.0; self.input.len()];
        let mut to_weight = vec![0.0; self.weight.len()];
        let mut to_bias = vec![0.0; self.bias.len()];
        for (index, &g) in grad.iter().enumerate() {
            let g = f64::from(g);
            let (output, row, column) =
                (index / out.pixels(), index / out.width % out.height, index % out.width);
            to_bias[output] += g;
            for channel in 0..input.channels {
                for i in 0..kernel {
                    for j in 0..kernel {
                        let w = ((output * input.channels + channel) * kernel + i) * kernel + j;
                        let (r, c) = (row * stride + i, column * stride + j);
                        to_weight[w] += g * f64::from(self.input_at(channel, r, c));
                        let (r, c) = (r.wrapping_sub(padding), c.wrapping_sub(padding));
                        if r < input.height && c < input.width {
                            let at = (channel * input.height + r) * input.width + c;
                            to_input[at] += g * f64::from(self.weight[w]);
                        }
                    }
                }
            }
        }
        [to_input, to_weight, to_bias]
    }
}
