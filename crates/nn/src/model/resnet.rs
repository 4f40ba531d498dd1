//! The residual network: its graph for training.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::config::ResNetConfig;
use super::shortcut::Shortcut;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::layers::image::{
    ConvNorm, Images, Normalized, Pool, RunningUpdate, average_pool, average_pool_gradient, node,
};
use crate::layers::{Linear, Parameter};
use crate::rng::Philox;

/// A stem, blocks of two convolutions with a shortcut, global average pooling and a linear layer.
#[derive(Clone, Debug)]
pub(crate) struct ResNet {
    config: ResNetConfig,
    body: Arc<Body>,
    linear: Linear,
    pool: Pool,
}

/// All but the last layer.
#[derive(Debug)]
struct Body {
    stem: ConvNorm,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Shortcut,
}

/// A forward pass: every layer's output.
struct Pass {
    input: Images,
    stem: Normalized,
    blocks: Vec<[Normalized; 2]>,
}

impl ResNet {
    /// Random weights, layer by layer: those of convolutions as [`ConvNorm::new`] draws them, the
    /// last layer's as PyTorch's `nn.Linear` does.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub(crate) fn new(
        config: &ResNetConfig,
        rng: &mut Philox,
    ) -> std::result::Result<Self, ModelError> {
        let norm = (config.batch_norm_eps, config.batch_norm_momentum);
        let stem = ConvNorm::new("", 1, config.stem(), norm, rng)?;
        let blocks = config
            .blocks()
            .into_iter()
            .map(|(prefix, shape)| {
                Ok(Block {
                    first: ConvNorm::new(&prefix, 1, shape.first, norm, rng)?,
                    second: ConvNorm::new(&prefix, 2, shape.second, norm, rng)?,
                    shortcut: Shortcut::new(shape),
                })
            })
            .collect::<Result<_>>()?;
        let width = config.last().channels;
        let linear = Linear::new("linear", width, config.num_labels, rng)?;
        let (config, body) = (config.clone(), Arc::new(Body { stem, blocks }));
        Ok(Self { config, body, linear, pool: Pool::default() })
    }

    /// Every parameter, layer by layer.
    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let convolutions = self.body.layers().flat_map(ConvNorm::parameters);
        convolutions.chain([self.linear.weight(), self.linear.bias()]).collect()
    }

    /// The running statistics.
    pub(super) fn buffers(&self) -> Tensors {
        let buffers = self.body.layers().flat_map(ConvNorm::buffers);
        buffers.map(|(name, values)| (name, (vec![values.len()], values))).collect()
    }

    /// Overwrites the running statistics that `tensors` names.
    pub(super) fn set_buffers(&self, tensors: &Tensors) -> Result<()> {
        for layer in self.body.layers() {
            let [mean, variance] = layer.buffers();
            let [mean, variance] =
                [mean, variance].map(|(name, old)| tensors.get(&name).map_or(old, |t| t.1.clone()));
            layer.set_running(&mean, &variance)?;
        }
        Ok(())
    }

    /// Logits [rows, classes] of `input` [rows, channels, height, width] as a graph, normalised over
    /// this batch, and what the running statistics become by it.
    pub(super) fn forward(
        &self,
        input: &[f32],
        rows: usize,
    ) -> std::result::Result<(Tensor, Vec<RunningUpdate>), ModelError> {
        let (mean, std) = (&self.config.image_mean, &self.config.image_std);
        let input = Images::normalized(&self.pool, input, self.config.input(), mean, std);
        let pass = self.body.forward(&self.pool, input)?;
        let updates = self.body.running_updates(&pass);
        let values = average_pool(pass.last());
        let width = self.config.last().channels;
        let (body, pool) = (Arc::clone(&self.body), self.pool.clone());
        let backward = move |grad: &[f32]| body.backward(&pool, &pass, grad);
        let [first, ..] = self.body.stem.parameters();
        let hidden = node(first, values, (rows, width), backward)?;
        Ok((self.linear.forward(&hidden, false)?, updates))
    }
}

impl Pass {
    fn last(&self) -> &Images {
        self.blocks.last().map_or(&self.stem.out, |[_, second]| &second.out)
    }
}

impl Body {
    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        let blocks = self.blocks.iter().flat_map(|block| [&block.first, &block.second]);
        std::iter::once(&self.stem).chain(blocks)
    }

    fn forward(&self, pool: &Pool, input: Images) -> Result<Pass> {
        let stem = self.stem.forward(pool, &input, None)?;
        let mut pass = Pass { input, stem, blocks: vec![] };
        for block in &self.blocks {
            let seen = pass.last();
            let first = block.first.forward(pool, seen, None)?;
            let shrunk = block.shortcut.forward(pool, seen);
            let residual = shrunk.as_ref().unwrap_or(seen);
            let second = block.second.forward(pool, &first.out, Some(residual))?;
            pass.blocks.push([first, second]);
        }
        Ok(pass)
    }

    fn running_updates(&self, pass: &Pass) -> Vec<RunningUpdate> {
        let outputs = std::iter::once(&pass.stem).chain(pass.blocks.iter().flatten());
        self.layers().zip(outputs).map(|(layer, out)| layer.running_update(out)).collect()
    }

    /// Fills every gradient from that of the pooled output, [rows, width].
    fn backward(&self, pool: &Pool, pass: &Pass, grad: &[f32]) -> Result<()> {
        let mut grad = average_pool_gradient(pool, grad, pass.last().shape);
        for (i, (block, [first, second])) in self.blocks.iter().zip(&pass.blocks).enumerate().rev()
        {
            let seen = if i == 0 { &pass.stem.out } else { &pass.blocks[i - 1][1].out };
            let (masked, to_first) =
                block.second.backward(pool, &first.out, second, grad, None, true)?;
            let Some(to_first) = to_first else { return Ok(()) };
            let direct = block.shortcut.is_identity().then_some(&masked);
            let (_, to_seen) = block.first.backward(pool, seen, first, to_first, direct, true)?;
            let Some(mut to_seen) = to_seen else { return Ok(()) };
            block.shortcut.add_gradient(&masked, &mut to_seen);
            grad = to_seen;
        }
        self.stem.backward(pool, &pass.input, &pass.stem, grad, None, false)?;
        Ok(())
    }
}

impl Shortcut {
    /// The smaller image with more channels; none where the shortcut is the identity.
    fn forward(&self, pool: &Pool, input: &Images) -> Option<Images> {
        if self.is_identity() {
            return None;
        }
        let mut out = pool.take(input.count(), self.output());
        let images = out.data.par_chunks_mut(self.output().len()).zip(input.par_images());
        images.for_each(|(out, image)| self.shrink(image, out));
        Some(out)
    }

    /// Adds the gradient of [`Self::forward`]; nothing where the shortcut is the identity.
    fn add_gradient(&self, grad: &Images, to_input: &mut Images) {
        if self.is_identity() {
            return;
        }
        let length = to_input.shape.len();
        let images = to_input.data.par_chunks_mut(length).zip(grad.par_images());
        images.for_each(|(to_input, grad)| self.add_grown(grad, to_input));
    }
}
