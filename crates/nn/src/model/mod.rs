//! Architectures: their configuration, their graph for training, and inference.
//!
//! A model is a directory of `config.json` and `model.safetensors`, with tensors named as a
//! PyTorch module of the same structure names them. [`Mlp`]: `layers.{i}.weight` [outputs, inputs]
//! and `layers.{i}.bias` \[outputs\], i counting from the input: an `nn.ModuleList` of `nn.Linear`
//! loads them as they are. [`LeNetConfig`]: `conv{i}` and `fc{i}`, i from 1, each with `.weight` and
//! `.bias`. [`ResNetConfig`]: `conv1`, `bn1`, `layer{stage}.{block}.conv1`, `.bn1`, `.conv2`, `.bn2` and
//! `linear`, as in the implementation for CIFAR-10 that most published weights come from.

mod any;
mod classifier;
mod config;
#[cfg(test)]
mod equals_pytorch;
mod fingerprint;
mod frozen;
mod head;
mod lenet;
mod mlp;
mod network;
mod resnet;
mod shortcut;

pub use any::AnyConfig;
pub use classifier::{Classifier, Inference};
pub(crate) use config::check;
pub use config::{Activation, LeNetConfig, MlpConfig, ModelConfig, ResNetConfig};
pub(crate) use fingerprint::hash_model;
pub(crate) use frozen::Frozen;
pub use head::{Head, PackedHead};
pub(crate) use lenet::LeNet;
pub use mlp::Mlp;
pub(crate) use network::{Forward, Network};
pub(crate) use resnet::ResNet;

/// File with the [`ModelConfig`] in a model's directory.
pub const CONFIG_FILE: &str = "config.json";
/// File with the weights in a model's directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
