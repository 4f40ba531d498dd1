//! The LeNet-style network: its graph for training.

use std::sync::Arc;

use candle_core::Tensor;

use super::config::LeNetConfig;
use crate::error::ModelError;
use crate::kernel::conv::{pack, unpack};
use crate::layers::image::{ConvRelu, Images, Pool, max_pool, max_pool_gradient, node};
use crate::layers::{Linear, Parameter, dropout};
use crate::rng::Philox;

/// Convolutions with ReLU and max pooling, then linear layers with ReLU between them.
#[derive(Clone, Debug)]
pub(crate) struct LeNet {
    config: LeNetConfig,
    convolutions: Arc<Vec<ConvRelu>>,
    linear: Vec<Linear>,
    pool: Pool,
}

impl LeNet {
    /// Random weights as PyTorch draws them, layer by layer, each weight before its bias.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub(crate) fn new(config: &LeNetConfig, rng: &mut Philox) -> Result<Self, ModelError> {
        let convolutions = config.convolutions().into_iter().zip(1..);
        let convolutions = convolutions
            .map(|(conv, i)| ConvRelu::new(&format!("conv{i}"), conv, rng))
            .collect::<Result<_, _>>()?;
        let linear = config.linear_sizes().into_iter().zip(1..);
        let linear = linear
            .map(|((inputs, outputs), i)| Linear::new(&format!("fc{i}"), inputs, outputs, rng))
            .collect::<Result<_, _>>()?;
        let (config, convolutions) = (config.clone(), Arc::new(convolutions));
        Ok(Self { config, convolutions, linear, pool: Pool::default() })
    }

    /// Every parameter, layer by layer.
    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let convolutions = self.convolutions.iter().flat_map(ConvRelu::parameters);
        let linear = self.linear.iter().flat_map(|layer| [layer.weight(), layer.bias()]);
        convolutions.chain(linear).collect()
    }

    /// Logits [rows, classes] of `input` [rows, channels, height, width] as a graph, with dropout from
    /// `rng`.
    ///
    /// # Errors
    ///
    /// If candle refuses an operation.
    pub(super) fn forward(
        &self,
        input: &[f32],
        rows: usize,
        rng: &mut Philox,
    ) -> Result<Tensor, ModelError> {
        let mut x = self.body(input, rows)?;
        let last = self.linear.len() - 1;
        for (i, layer) in self.linear.iter().enumerate() {
            x = dropout(&x, self.config.dropout, rng)?;
            x = layer.forward(&x, i < last)?;
        }
        Ok(x)
    }

    /// The pooled output of the last convolution, in planes: [rows, features].
    fn body(&self, input: &[f32], rows: usize) -> Result<Tensor, ModelError> {
        let (config, pool) = (&self.config, &self.pool);
        let (mean, std) = (&config.image_mean, &config.image_std);
        let input = Images::normalized(pool, input, config.input(), mean, std);
        // The output of each convolution and of the pooling after it.
        let mut layers: Vec<(Images, Images)> = vec![];
        for conv in self.convolutions.iter() {
            let seen = layers.last().map_or(&input, |(_, pooled)| pooled);
            let out = conv.forward(pool, seen)?;
            let pooled = max_pool(pool, &out);
            layers.push((out, pooled));
        }
        let features = config.pooled().features();
        let mut values = vec![0.0; rows * features];
        let last = layers.last().map_or(&input, |(_, pooled)| pooled);
        for (values, image) in
            values.chunks_exact_mut(features).zip(last.data.chunks_exact(last.shape.len()))
        {
            unpack(image, last.shape, values);
        }
        let (convolutions, pool) = (Arc::clone(&self.convolutions), pool.clone());
        let backward = move |grad: &[f32]| {
            let last = layers.last().map_or(&input, |(_, pooled)| pooled);
            let mut images = pool.take(last.count(), last.shape);
            for (image, grad) in
                images.data.chunks_exact_mut(last.shape.len()).zip(grad.chunks_exact(features))
            {
                image.fill(Default::default());
                pack(grad, last.shape, image, |_, g| g);
            }
            for (i, (conv, (out, pooled))) in convolutions.iter().zip(&layers).enumerate().rev() {
                let grad = max_pool_gradient(&pool, out, pooled, &images);
                let seen = if i == 0 { &input } else { &layers[i - 1].1 };
                match conv.backward(&pool, seen, out, grad, i > 0)? {
                    Some(to_input) => images = to_input,
                    None => break,
                }
            }
            Ok(())
        };
        let [first, _] = self.convolutions[0].parameters();
        Ok(node(first, values, (rows, features), backward)?)
    }
}
