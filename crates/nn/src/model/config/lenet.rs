//! The configuration of a small convolutional network in the manner of LeNet-5.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Architecture, check, default_rescale_factor};
use crate::error::ModelError;
use crate::kernel::conv::{Conv, Shape};
use crate::kernel::pool::halved;

/// Convolutions, each followed by ReLU and 2 x 2 max pooling, then fully connected layers with ReLU
/// between them (LeCun et al., 1998, figure 2; ReLU and max pooling as it is built today). The
/// defaults are LeNet-5 on MNIST: 61,706 parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeNetConfig {
    /// Channels of the input.
    #[serde(default = "default_channels")]
    pub num_channels: usize,
    /// Height and width of the input, in pixels.
    #[serde(default = "default_image_size")]
    pub image_size: usize,
    /// Channels that each convolution gives.
    #[serde(default = "default_conv_channels")]
    pub conv_channels: Vec<usize>,
    /// Height and width of every kernel.
    #[serde(default = "default_kernel_size")]
    pub kernel_size: usize,
    /// Zeros around the input of each convolution, in pixels.
    #[serde(default = "default_conv_padding")]
    pub conv_padding: Vec<usize>,
    /// Width of each hidden layer after the convolutions.
    #[serde(default = "default_hidden_sizes")]
    pub hidden_sizes: Vec<usize>,
    /// Classes.
    pub num_labels: usize,
    /// Probability that an input of a fully connected layer is dropped in training, in [0, 1).
    #[serde(default)]
    pub dropout: f32,
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
    1
}

fn default_image_size() -> usize {
    28
}

fn default_conv_channels() -> Vec<usize> {
    vec![6, 16]
}

fn default_kernel_size() -> usize {
    5
}

fn default_conv_padding() -> Vec<usize> {
    vec![2, 0]
}

fn default_hidden_sizes() -> Vec<usize> {
    vec![120, 84]
}

impl LeNetConfig {
    /// LeNet-5 for 28 x 28 pixels of one channel.
    pub fn new(num_labels: usize) -> Self {
        Self {
            num_channels: default_channels(),
            image_size: default_image_size(),
            conv_channels: default_conv_channels(),
            kernel_size: default_kernel_size(),
            conv_padding: default_conv_padding(),
            hidden_sizes: default_hidden_sizes(),
            num_labels,
            dropout: 0.0,
            rescale_factor: default_rescale_factor(),
            image_mean: vec![],
            image_std: vec![],
        }
    }

    /// The input's size.
    pub(crate) fn input(&self) -> Shape {
        Shape::new(self.num_channels, self.image_size, self.image_size)
    }

    /// The convolutions of a valid configuration, first to last; pooling lies between.
    pub(crate) fn convolutions(&self) -> Vec<Conv> {
        let mut input = self.input();
        let layers = self.conv_channels.iter().zip(&self.conv_padding);
        let conv = |(&outputs, &padding): (&usize, &usize)| {
            let conv = Conv { input, outputs, kernel: self.kernel_size, stride: 1, padding };
            input = halved(conv.output());
            conv
        };
        layers.map(conv).collect()
    }

    /// What the fully connected layers see, as an image.
    pub(crate) fn pooled(&self) -> Shape {
        self.convolutions().last().map_or(self.input(), |conv| halved(conv.output()))
    }

    /// (inputs, outputs) of each fully connected layer, first to last.
    pub(crate) fn linear_sizes(&self) -> Vec<(usize, usize)> {
        let inputs =
            std::iter::once(self.pooled().features()).chain(self.hidden_sizes.iter().copied());
        inputs.zip(self.hidden_sizes.iter().copied().chain([self.num_labels])).collect()
    }
}

impl Architecture for LeNetConfig {
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
        self.hidden_sizes.last().copied().unwrap_or_else(|| self.pooled().features())
    }

    fn rescale_factor(&self) -> f64 {
        self.rescale_factor
    }

    fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let named = |name: String, weight: Vec<usize>| {
            let bias = vec![weight[0]];
            [(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]
        };
        let convolutions = self.convolutions().into_iter().zip(1..).flat_map(|(conv, i)| {
            let kernel = conv.kernel;
            named(format!("conv{i}"), vec![conv.outputs, conv.input.channels, kernel, kernel])
        });
        let linear = self.linear_sizes().into_iter().zip(1..);
        let linear = linear
            .flat_map(|((inputs, outputs), i)| named(format!("fc{i}"), vec![outputs, inputs]));
        convolutions.chain(linear).collect()
    }

    fn head(&self) -> String {
        format!("fc{}", self.hidden_sizes.len() + 1)
    }

    fn validate(&self) -> Result<(), ModelError> {
        check::within("num_channels", self.num_channels, 1..=4096)?;
        check::within("image_size", self.image_size, 1..=4096)?;
        check::within("kernel_size", self.kernel_size, 1..=31)?;
        check::within("number of conv_channels", self.conv_channels.len(), 1..=16)?;
        if self.conv_padding.len() != self.conv_channels.len() {
            let expected = format!("{}, one for each of conv_channels", self.conv_channels.len());
            return check::refuse("number of conv_padding", self.conv_padding.len(), &expected);
        }
        let mut size = self.image_size;
        for (i, (&channels, &padding)) in
            self.conv_channels.iter().zip(&self.conv_padding).enumerate()
        {
            check::within(&format!("conv_channels[{i}]"), channels, 1..=65_536)?;
            check::within(&format!("conv_padding[{i}]"), padding, 0..=self.kernel_size - 1)?;
            let padded = size + 2 * padding;
            if padded <= self.kernel_size {
                let expected = format!(
                    "a size that leaves more than kernel_size = {} for convolution {i}, which is \
                     left {padded}",
                    self.kernel_size
                );
                return check::refuse("image_size", self.image_size, &expected);
            }
            size = (padded + 1 - self.kernel_size) / 2;
        }
        for (i, &hidden) in self.hidden_sizes.iter().enumerate() {
            check::size(&format!("hidden_sizes[{i}]"), hidden, 1)?;
        }
        check::size("num_labels", self.num_labels, 2)?;
        let weights = |shape: Vec<usize>| shape.into_iter().fold(1usize, usize::saturating_mul);
        check::parameters(self.tensors().into_values().map(weights))?;
        let shapes =
            self.convolutions().into_iter().flat_map(|conv| [conv.padded(), conv.output()]);
        check::images("image_size", self.image_size, shapes)?;
        check::dropout("dropout", self.dropout)?;
        check::rescale_factor(self.rescale_factor)?;
        check::normalization(self.num_channels, &self.image_mean, &self.image_std)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_lenet_5() {
        let config = LeNetConfig::new(10);
        config.validate().unwrap();
        let tensors = config.tensors();
        assert_eq!(tensors["conv1.weight"], [6, 1, 5, 5]);
        assert_eq!(tensors["conv2.weight"], [16, 6, 5, 5]);
        assert_eq!(tensors["fc1.weight"], [120, 400]);
        assert_eq!(tensors["fc3.bias"], [10]);
        let count: usize = tensors.values().map(|shape| shape.iter().product::<usize>()).sum();
        assert_eq!(count, 61_706);
        assert_eq!(
            (config.input_width(), config.hidden_size(), config.head().as_str()),
            (784, 84, "fc3")
        );
    }

    #[test]
    fn faults_name_field_value_and_range() {
        let base = LeNetConfig::new(10);
        for (config, words) in [
            (LeNetConfig { image_size: 0, ..base.clone() }, "image_size is 0; expected 1 to 4096"),
            (
                LeNetConfig { kernel_size: 40, ..base.clone() },
                "kernel_size is 40; expected 1 to 31",
            ),
            (
                LeNetConfig { conv_padding: vec![2], ..base.clone() },
                "number of conv_padding is 1; expected 2",
            ),
            (
                LeNetConfig { conv_padding: vec![2, 5], ..base.clone() },
                "conv_padding[1] is 5; expected 0 to 4",
            ),
            (LeNetConfig { image_size: 8, ..base.clone() }, "image_size is 8; expected a size"),
            (LeNetConfig { conv_channels: vec![], ..base.clone() }, "number of conv_channels is 0"),
            (LeNetConfig { num_labels: 1, ..base.clone() }, "num_labels is 1"),
            (
                LeNetConfig { image_size: 4096, hidden_sizes: vec![], ..base.clone() },
                "image_size is 4096; expected a size whose images have at most",
            ),
            (
                LeNetConfig { image_std: vec![1.0, 2.0], ..base.clone() },
                "number of values in image_std is 2; expected one for each of the 1 channels",
            ),
            (LeNetConfig { image_std: vec![0.0], ..base }, "image_std[0] is 0"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
