//! Architectures: their configuration, their graph for training, and inference.
//!
//! A model is a directory of `config.json` and `model.safetensors`, with tensors named as a
//! PyTorch module of the same structure names them. [`Mlp`]: `layers.{i}.weight` [outputs, inputs]
//! and `layers.{i}.bias` \[outputs\], i counting from the input: an `nn.ModuleList` of `nn.Linear`
//! loads them as they are.

mod classifier;
mod config;
mod fingerprint;
mod frozen;
mod head;
mod mlp;

pub use classifier::{Classifier, Inference};
pub use config::{Activation, MlpConfig, ModelConfig};
pub(crate) use frozen::FrozenMlp;
pub use head::{Head, PackedHead};
pub use mlp::Mlp;

/// File with the [`ModelConfig`] in a model's directory.
pub const CONFIG_FILE: &str = "config.json";
/// File with the weights in a model's directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
