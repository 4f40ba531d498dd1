//! Weights in the order that the kernels read them in.

use super::winograd::{self, Transformed};
use super::{Conv, LANES, Lanes};

/// Weights as a [`super::Job`] takes them.
#[derive(Clone, Debug)]
pub(crate) enum Prepared {
    Direct(Filters),
    Winograd(Transformed),
}

impl Prepared {
    /// Of a weight [outputs, inputs, kernel, kernel], each output channel times its `scale`.
    pub(crate) fn new(conv: &Conv, weight: &[f32], scale: impl Fn(usize) -> f64) -> Self {
        let (k, inputs) = (conv.kernel, conv.input.channels);
        Self::of(conv, |output, input, row, column| {
            f64::from(weight[((output * inputs + input) * k + row) * k + column]) * scale(output)
        })
    }

    /// Of [`Conv::transposed`]: input and output channels change places, and the kernel is turned
    /// by half a circle.
    pub(crate) fn transposed(conv: &Conv, weight: &[f32]) -> Self {
        let (k, inputs) = (conv.kernel, conv.input.channels);
        Self::of(&conv.transposed(), |input, output, row, column| {
            let (row, column) = (k - 1 - row, k - 1 - column);
            f64::from(weight[((output * inputs + input) * k + row) * k + column])
        })
    }

    fn of(conv: &Conv, weight: impl Fn(usize, usize, usize, usize) -> f64) -> Self {
        if winograd::fits(conv) {
            return Self::Winograd(Transformed::new(conv, weight));
        }
        let mut filters = Filters::zeros(conv);
        for output in 0..conv.outputs {
            for input in 0..conv.input.channels {
                for row in 0..conv.kernel {
                    for column in 0..conv.kernel {
                        let at = panel(conv, output, input, row, column);
                        let w = weight(output, input, row, column);
                        filters.panels[at][output % LANES] = w as f32;
                    }
                }
            }
        }
        Self::Direct(filters)
    }
}

/// Weights of a convolution, for each block of output channels and each of input channels
/// [kernel, kernel, input channel, output channel], both last ones 16 long and filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) struct Filters {
    pub(super) panels: Vec<Lanes>,
}

impl Filters {
    /// A sum to start from, for [`super::add_weight_gradient`].
    pub(crate) fn zeros(conv: &Conv) -> Self {
        Self { panels: vec![[0.0; LANES]; Self::len(conv)] }
    }

    /// Adds `other`, element by element.
    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = self.panels.as_flattened_mut().iter_mut().zip(other.panels.as_flattened());
        pairs.for_each(|(sum, x)| *sum += x);
    }

    /// Back to [outputs, inputs, kernel, kernel].
    pub(crate) fn weight(&self, conv: &Conv) -> Vec<f32> {
        let count = conv.outputs * conv.input.channels * conv.kernel * conv.kernel;
        let element = |index| {
            let Place { output, input, row, column } = Place::of(conv, index);
            self.panels[panel(conv, output, input, row, column)][output % LANES]
        };
        (0..count).map(element).collect()
    }

    fn len(conv: &Conv) -> usize {
        let blocks = conv.output_blocks() * conv.input.blocks();
        blocks * conv.kernel * conv.kernel * LANES
    }
}

impl Conv {
    pub(super) fn output_blocks(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }
}

/// Where an element of a row-major weight belongs.
struct Place {
    output: usize,
    input: usize,
    row: usize,
    column: usize,
}

impl Place {
    fn of(conv: &Conv, index: usize) -> Self {
        let (k, inputs) = (conv.kernel, conv.input.channels);
        Self {
            output: index / (k * k * inputs),
            input: index / (k * k) % inputs,
            row: index / k % k,
            column: index % k,
        }
    }
}

/// Index of the lanes for one input channel at one place of the kernel.
fn panel(conv: &Conv, output: usize, input: usize, row: usize, column: usize) -> usize {
    let blocks = output / LANES * conv.input.blocks() + input / LANES;
    ((blocks * conv.kernel + row) * conv.kernel + column) * LANES + input % LANES
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    #[test]
    fn weights_come_back_scaled_and_added() {
        let conv =
            Conv { input: Shape::new(19, 5, 5), outputs: 33, kernel: 2, stride: 1, padding: 1 };
        let weight: Vec<f32> = (0..19 * 33 * 4).map(|i| i as f32).collect();
        let of = |scale: fn(usize) -> f64| match Prepared::new(&conv, &weight, scale) {
            Prepared::Direct(filters) => filters,
            Prepared::Winograd(_) => unreachable!("a kernel of 2 x 2"),
        };
        assert_eq!(of(|_| 1.0).weight(&conv), weight);
        let scaled = of(|output| output as f64).weight(&conv);
        assert_eq!(scaled[19 * 4 * 32 + 3], weight[19 * 4 * 32 + 3] * 32.0);
        let mut sum = of(|_| 1.0);
        sum.add(&of(|_| 2.0));
        assert_eq!(sum.weight(&conv)[7], 21.0);
    }
}
