//! The residual network in a fixed order, each normalisation folded into its convolution.

use super::super::classifier::Inference;
use super::super::config::ResNetConfig;
use super::super::shortcut::Shortcut;
use super::image::{FrozenConv, infer_rows, normalize};
use super::values;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::conv::{Conv, LANES, Lanes, Shape};
use crate::kernel::packed::PackedLinear;
use crate::kernel::pool::average;

/// The weights of a [`ResNetConfig`].
#[derive(Clone, Debug)]
pub(crate) struct FrozenResNet {
    config: ResNetConfig,
    stem: FrozenConv,
    blocks: Vec<(FrozenConv, FrozenConv, Shortcut)>,
    linear: PackedLinear,
    /// What is averaged.
    last: Shape,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    image: Vec<Lanes>,
    middle: Vec<Lanes>,
    residual: Vec<Lanes>,
    canvas: Vec<Lanes>,
    out: Vec<Lanes>,
}

impl FrozenResNet {
    pub(super) fn new(config: &ResNetConfig, tensors: &Tensors) -> Result<Self, ModelError> {
        let layer = |prefix: &str, number, conv| fold(config, tensors, prefix, number, conv);
        let stem = layer("", 1, config.stem())?;
        let blocks = config.blocks().into_iter().map(|(prefix, shape)| {
            let first = layer(&prefix, 1, shape.first)?;
            let second = layer(&prefix, 2, shape.second)?;
            Ok((first, second, Shortcut::new(shape)))
        });
        let blocks = blocks.collect::<Result<_, ModelError>>()?;
        let (classes, width) = (config.num_labels, config.last().channels);
        let weight = values(tensors, "linear.weight", &[classes, width])?;
        let bias = values(tensors, "linear.bias", &[classes])?;
        let linear = PackedLinear::new(weight, Some(bias), classes, width);
        Ok(Self { config: config.clone(), stem, blocks, linear, last: config.last() })
    }

    pub(super) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        let sizes = (self.config.input().features(), self.last.channels);
        let body =
            |scratch: &mut Scratch, row: &[f32], out: &mut [f32]| self.row(scratch, row, out);
        infer_rows(input, rows, sizes, body, std::slice::from_ref(&self.linear))
    }

    /// One row through the convolutions and the pooling; false if it is not finite to begin with.
    fn row(&self, scratch: &mut Scratch, row: &[f32], pooled: &mut [f32]) -> bool {
        let Self { config, stem, blocks, last, .. } = self;
        let Scratch { image, middle, residual, canvas, out } = scratch;
        let finite = normalize(row, config.input(), &config.image_mean, &config.image_std, out);
        stem.apply(out, None, canvas, image);
        for (first, second, shortcut) in blocks {
            first.apply(image, None, canvas, middle);
            if !shortcut.is_identity() {
                residual.resize(shortcut.output().len(), [0.0; LANES]);
                shortcut.shrink(image, residual);
                std::mem::swap(image, residual);
            }
            second.apply(middle, Some(image), canvas, out);
            std::mem::swap(image, out);
        }
        average(image, *last, pooled);
        finite
    }
}

/// gamma (conv(x) - m) / sqrt(v + eps) + beta is a convolution with other weights and a bias.
fn fold(
    config: &ResNetConfig,
    tensors: &Tensors,
    prefix: &str,
    number: usize,
    conv: Conv,
) -> Result<FrozenConv, ModelError> {
    let channels = conv.outputs;
    let shape = [channels, conv.input.channels, conv.kernel, conv.kernel];
    let weight = values(tensors, &format!("{prefix}conv{number}.weight"), &shape)?;
    let norm = |kind: &str| values(tensors, &format!("{prefix}bn{number}.{kind}"), &[channels]);
    let (gamma, beta) = (norm("weight")?, norm("bias")?);
    let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
    if let Some(index) = variance.iter().position(|&v| v < 0.0) {
        let tensor = format!("{prefix}bn{number}.running_var");
        return Err(ModelError::Variance { tensor, index, value: variance[index] });
    }
    let scale =
        |c: usize| f64::from(gamma[c]) / (f64::from(variance[c]) + config.batch_norm_eps).sqrt();
    let bias = |c: usize| f64::from(beta[c]) - f64::from(mean[c]) * scale(c);
    Ok(FrozenConv::new(conv, weight, scale, bias))
}
