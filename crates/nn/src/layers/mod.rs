//! Differentiable layers.
//!
//! They run on candle's autograd, as custom operations with a backward of their own: candle's
//! stock path computes gradients nobody asked for and starts every one from zeros.

mod dropout;
pub(crate) mod image;
mod init;
mod linear;
mod parameter;

pub use dropout::dropout;
pub use init::uniform_fan_in;
pub use linear::Linear;
pub use parameter::Parameter;
pub(crate) use parameter::{SharedGradient, lock, shared_gradient};
