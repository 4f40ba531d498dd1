//! The LeNet-style network in a fixed order.

use super::super::classifier::Inference;
use super::super::config::LeNetConfig;
use super::image::{FrozenConv, infer_rows, normalize};
use super::values;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::conv::{LANES, Lanes, Shape, unpack};
use crate::kernel::packed::PackedLinear;
use crate::kernel::pool::{MaxPool, halved};

/// The weights of a [`LeNetConfig`].
#[derive(Clone, Debug)]
pub(crate) struct FrozenLeNet {
    config: LeNetConfig,
    convolutions: Vec<FrozenConv>,
    linear: Vec<PackedLinear>,
    /// The last pooling's output.
    pooled: Shape,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    image: Vec<Lanes>,
    canvas: Vec<Lanes>,
    out: Vec<Lanes>,
}

impl FrozenLeNet {
    pub(super) fn new(config: &LeNetConfig, tensors: &Tensors) -> Result<Self, ModelError> {
        let convolutions = config.convolutions().into_iter().zip(1..).map(|(conv, i)| {
            let shape = [conv.outputs, conv.input.channels, conv.kernel, conv.kernel];
            let weight = values(tensors, &format!("conv{i}.weight"), &shape)?;
            let bias = values(tensors, &format!("conv{i}.bias"), &shape[..1])?;
            Ok(FrozenConv::new(conv, weight, |_| 1.0, |channel| f64::from(bias[channel])))
        });
        let convolutions = convolutions.collect::<Result<_, ModelError>>()?;
        let linear = config.linear_sizes().into_iter().zip(1..).map(|((inputs, outputs), i)| {
            let weight = values(tensors, &format!("fc{i}.weight"), &[outputs, inputs])?;
            let bias = values(tensors, &format!("fc{i}.bias"), &[outputs])?;
            Ok(PackedLinear::new(weight, Some(bias), outputs, inputs))
        });
        let linear = linear.collect::<Result<_, ModelError>>()?;
        Ok(Self { config: config.clone(), convolutions, linear, pooled: config.pooled() })
    }

    pub(super) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        let sizes = (self.config.input().features(), self.pooled.features());
        let body =
            |scratch: &mut Scratch, row: &[f32], out: &mut [f32]| self.row(scratch, row, out);
        infer_rows(input, rows, sizes, body, &self.linear)
    }

    /// One row through the convolutions; false if it is not finite to begin with.
    fn row(&self, scratch: &mut Scratch, row: &[f32], pooled: &mut [f32]) -> bool {
        let LeNetConfig { image_mean, image_std, .. } = &self.config;
        let Scratch { image, canvas, out } = scratch;
        let finite = normalize(row, self.config.input(), image_mean, image_std, image);
        for layer in &self.convolutions {
            layer.apply(image, None, canvas, out);
            let shape = layer.conv.output();
            image.resize(halved(shape).len(), [0.0; LANES]);
            pulp::Arch::new().dispatch(MaxPool { image: out, shape, out: image });
        }
        unpack(image, self.pooled, pooled);
        finite
    }
}
