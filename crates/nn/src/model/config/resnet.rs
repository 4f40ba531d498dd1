//! The configuration of the residual networks that He et al. built for CIFAR-10.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Architecture, check, default_rescale_factor};
use crate::error::ModelError;
use crate::kernel::conv::{Conv, Shape};

/// A residual network of 6n + 2 layers (He et al., 2016, "Deep Residual Learning for Image
/// Recognition", section 4.2): a 3 x 3 convolution, three stages of n blocks of two 3 x 3
/// convolutions each, global average pooling and one fully connected layer. Every convolution is
/// followed by batch normalisation. Where a stage begins with another size, the shortcut takes
/// every other pixel and fills up with channels of zeros, half before and half after (option A).
///
/// `depths` [3, 3, 3] is ResNet-20; [5, 5, 5], [7, 7, 7] and [9, 9, 9] are ResNet-32, 44 and 56.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResNetConfig {
    /// Channels of the input.
    #[serde(default = "default_channels")]
    pub num_channels: usize,
    /// Height and width of the input, in pixels.
    #[serde(default = "default_image_size")]
    pub image_size: usize,
    /// Channels of each stage.
    #[serde(default = "default_hidden_sizes")]
    pub hidden_sizes: Vec<usize>,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Classes.
    pub num_labels: usize,
    /// Added to a variance before its root is taken.
    #[serde(default = "default_eps")]
    pub batch_norm_eps: f64,
    /// Weight of a new batch in the running mean and variance.
    #[serde(default = "default_momentum")]
    pub batch_norm_momentum: f64,
    /// What u8 input is multiplied by before it reaches the model; the caller does so.
    #[serde(default = "default_rescale_factor")]
    pub rescale_factor: f64,
    /// Subtracted from every (rescaled) channel by the model itself; none: 0.
    #[serde(default)]
    pub image_mean: Vec<f32>,
    /// What the model then divides every channel by; none: 1.
    #[serde(default)]
    pub image_std: Vec<f32>,
}

fn default_channels() -> usize {
    3
}

fn default_image_size() -> usize {
    32
}

fn default_hidden_sizes() -> Vec<usize> {
    vec![16, 32, 64]
}

fn default_eps() -> f64 {
    1e-5
}

fn default_momentum() -> f64 {
    0.1
}

/// One block: two convolutions, and the size that its input has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockShape {
    pub(crate) first: Conv,
    pub(crate) second: Conv,
}

impl ResNetConfig {
    /// A network of these depths for CIFAR-10's 32 x 32 pixels of three channels.
    pub fn new(depths: Vec<usize>, num_labels: usize) -> Self {
        Self {
            num_channels: default_channels(),
            image_size: default_image_size(),
            hidden_sizes: default_hidden_sizes(),
            depths,
            num_labels,
            batch_norm_eps: default_eps(),
            batch_norm_momentum: default_momentum(),
            rescale_factor: default_rescale_factor(),
            image_mean: vec![],
            image_std: vec![],
        }
    }

    /// The input's size.
    pub(crate) fn input(&self) -> Shape {
        Shape::new(self.num_channels, self.image_size, self.image_size)
    }

    /// The first convolution of a valid configuration.
    pub(crate) fn stem(&self) -> Conv {
        let outputs = self.hidden_sizes.first().copied().unwrap_or(1);
        Conv { input: self.input(), outputs, kernel: 3, stride: 1, padding: 1 }
    }

    /// Every block with its name, first to last.
    pub(crate) fn blocks(&self) -> Vec<(String, BlockShape)> {
        let mut input = self.stem().output();
        let mut blocks = vec![];
        for (stage, (&outputs, &depth)) in self.hidden_sizes.iter().zip(&self.depths).enumerate() {
            for block in 0..depth {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let first = Conv { input, outputs, kernel: 3, stride, padding: 1 };
                let second = Conv { input: first.output(), stride: 1, ..first };
                input = second.output();
                blocks.push((format!("layer{}.{block}.", stage + 1), BlockShape { first, second }));
            }
        }
        blocks
    }

    /// What is averaged: the last block's output.
    pub(crate) fn last(&self) -> Shape {
        self.blocks().last().map_or(self.stem().output(), |(_, block)| block.second.output())
    }
}

impl Architecture for ResNetConfig {
    fn input_width(&self) -> usize {
        self.input().features()
    }

    fn image_shape(&self) -> Option<[usize; 3]> {
        Some([self.num_channels, self.image_size, self.image_size])
    }

    fn classes(&self) -> usize {
        self.num_labels
    }

    fn hidden_size(&self) -> usize {
        self.hidden_sizes.last().copied().unwrap_or(1)
    }

    fn rescale_factor(&self) -> f64 {
        self.rescale_factor
    }

    fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = BTreeMap::new();
        let mut add = |prefix: &str, number: usize, conv: &Conv| {
            let weight = vec![conv.outputs, conv.input.channels, conv.kernel, conv.kernel];
            tensors.insert(format!("{prefix}conv{number}.weight"), weight);
            for kind in ["weight", "bias", "running_mean", "running_var"] {
                tensors.insert(format!("{prefix}bn{number}.{kind}"), vec![conv.outputs]);
            }
        };
        add("", 1, &self.stem());
        for (prefix, block) in self.blocks() {
            add(&prefix, 1, &block.first);
            add(&prefix, 2, &block.second);
        }
        tensors.insert("linear.weight".to_owned(), vec![self.num_labels, self.hidden_size()]);
        tensors.insert("linear.bias".to_owned(), vec![self.num_labels]);
        tensors
    }

    fn head(&self) -> String {
        "linear".to_owned()
    }

    fn validate(&self) -> Result<(), ModelError> {
        check::within("num_channels", self.num_channels, 1..=4096)?;
        check::within("image_size", self.image_size, 1..=4096)?;
        check::within("number of hidden_sizes", self.hidden_sizes.len(), 1..=8)?;
        if self.depths.len() != self.hidden_sizes.len() {
            let expected = format!("{}, one for each of hidden_sizes", self.hidden_sizes.len());
            return check::refuse("number of depths", self.depths.len(), &expected);
        }
        for (i, &depth) in self.depths.iter().enumerate() {
            check::within(&format!("depths[{i}]"), depth, 1..=1000)?;
        }
        for (i, &size) in self.hidden_sizes.iter().enumerate() {
            let field = format!("hidden_sizes[{i}]");
            check::within(&field, size, 1..=65_536)?;
            let before = self.hidden_sizes[i.saturating_sub(1)];
            if size < before || !(size - before).is_multiple_of(2) {
                // The shortcut fills up with as many channels before as after.
                let expected = format!("{before}, or more by an even number");
                return check::refuse(&field, size, &expected);
            }
        }
        check::size("num_labels", self.num_labels, 2)?;
        let weights = |shape: Vec<usize>| shape.into_iter().fold(1usize, usize::saturating_mul);
        check::parameters(self.tensors().into_values().map(weights))?;
        let convolutions = self.blocks().into_iter().flat_map(|(_, b)| [b.first, b.second]);
        let convolutions = convolutions.chain([self.stem()]);
        let shapes = convolutions.flat_map(|conv| [conv.padded(), conv.output()]);
        check::images("image_size", self.image_size, shapes)?;
        if !(1e-12..=1e12).contains(&self.batch_norm_eps) {
            return check::refuse("batch_norm_eps", self.batch_norm_eps, "1e-12 to 1e12");
        }
        if !(self.batch_norm_momentum > 0.0 && self.batch_norm_momentum <= 1.0) {
            let expected = "above 0, and 1 at most";
            return check::refuse("batch_norm_momentum", self.batch_norm_momentum, expected);
        }
        check::rescale_factor(self.rescale_factor)?;
        check::normalization(self.num_channels, &self.image_mean, &self.image_std)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_papers() {
        // He et al., table 6: 0.27, 0.46, 0.66 and 0.85 million parameters.
        for (depth, millions) in [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85")] {
            let config = ResNetConfig::new(vec![(depth - 2) / 6; 3], 10);
            config.validate().unwrap();
            let trained = |name: &String| !name.contains("running");
            let tensors = config.tensors();
            let count: usize = tensors
                .iter()
                .filter(|(name, _)| trained(name))
                .map(|(_, shape)| shape.iter().product::<usize>())
                .sum();
            assert_eq!(format!("{:.2}", count as f64 / 1e6), millions);
            let layers = tensors.keys().filter(|name| name.contains("conv")).count() + 1;
            assert_eq!(layers, depth);
        }
        let config = ResNetConfig::new(vec![3; 3], 10);
        assert_eq!((config.last().channels, config.last().pixels()), (64, 64));
        assert_eq!(config.blocks()[3].0, "layer2.0.");
    }

    #[test]
    fn faults_name_field_value_and_range() {
        let base = ResNetConfig::new(vec![1; 3], 10);
        for (config, words) in [
            (
                ResNetConfig { depths: vec![1, 1], ..base.clone() },
                "number of depths is 2; expected 3",
            ),
            (
                ResNetConfig { depths: vec![1, 0, 1], ..base.clone() },
                "depths[1] is 0; expected 1 to 1000",
            ),
            (
                ResNetConfig { hidden_sizes: vec![16, 31, 64], ..base.clone() },
                "hidden_sizes[1] is 31; expected 16, or more by an even number",
            ),
            (
                ResNetConfig { hidden_sizes: vec![16, 8, 64], ..base.clone() },
                "hidden_sizes[1] is 8; expected 16, or more",
            ),
            (
                ResNetConfig { hidden_sizes: vec![], depths: vec![], ..base.clone() },
                "number of hidden_sizes is 0",
            ),
            (ResNetConfig { batch_norm_eps: 0.0, ..base.clone() }, "batch_norm_eps is 0"),
            (
                ResNetConfig { image_size: 4096, hidden_sizes: vec![32, 32, 32], ..base.clone() },
                "image_size is 4096; expected a size whose images have at most 67108864 elements",
            ),
            (
                ResNetConfig { batch_norm_momentum: 1.5, ..base.clone() },
                "batch_norm_momentum is 1.5",
            ),
            (ResNetConfig { image_mean: vec![0.1], ..base }, "number of values in image_mean is 1"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
