//! The LeNet-style network in a fixed order.

use super::super::classifier::Inference;
use super::super::config::LeNetConfig;
use super::image::{FrozenConv, infer_rows, normalize};
use super::values;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::conv::{LANES, Lanes, unpack};
use crate::kernel::packed::PackedLinear;
use crate::kernel::pool::{halved, max_pool};

/// The weights of a [`LeNetConfig`].
#[derive(Clone, Debug)]
pub(crate) struct FrozenLeNet {
    config: LeNetConfig,
    convolutions: Vec<FrozenConv>,
    linear: Vec<PackedLinear>,
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
        Ok(Self { config: config.clone(), convolutions, linear })
    }

    pub(super) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        let sizes = (self.config.input().features(), self.config.pooled().features());
        let body = |scratch: &mut Scratch, row: &[f32], out: &mut [f32]| {
            pulp::Arch::new().dispatch(Row { model: self, scratch, row, out });
        };
        infer_rows(input, rows, sizes, body, &self.linear)
    }
}

/// One row through the convolutions.
struct Row<'a> {
    model: &'a FrozenLeNet,
    scratch: &'a mut Scratch,
    row: &'a [f32],
    out: &'a mut [f32],
}

impl pulp::WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let LeNetConfig { image_mean, image_std, .. } = &self.model.config;
        let Scratch { image, canvas, out } = self.scratch;
        normalize(self.row, self.model.config.input(), image_mean, image_std, image);
        for layer in &self.model.convolutions {
            layer.apply(simd, image, None, canvas, out);
            let shape = layer.conv.output();
            image.resize(halved(shape).len(), [0.0; LANES]);
            max_pool(simd, out, shape, image);
        }
        unpack(image, self.model.config.pooled(), self.out);
    }
}
