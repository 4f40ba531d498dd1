//! Layers of image models, with forward and backward on plain buffers.
//!
//! They are not operations of candle's graph: a whole body of convolutions becomes one node of it
//! ([`node`]), whose backward fills the parameters' gradient buffers. candle would start every
//! gradient between two layers from zeros and add to it.

mod batch;
mod conv;
mod conv_norm;
mod node;
mod pool;
mod shares;

pub(crate) use batch::{Images, Pool};
pub(crate) use conv::ConvRelu;
pub(crate) use conv_norm::{ConvNorm, Normalized, RunningUpdate};
pub(crate) use node::node;
pub(crate) use pool::{average_pool, average_pool_gradient, max_pool, max_pool_gradient};
