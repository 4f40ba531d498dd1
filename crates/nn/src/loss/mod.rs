//! Losses of knowledge distillation, on every form that soft labels come in.
//!
//! With q the student, p the teacher, z logits, y the hard label, and subscript T for
//! softmax(z / T):
//!
//! ```text
//! loss = (1 - alpha) * CE + alpha * T^2 * D(p_T, q_T)        CE = -log q_1[y]
//! ```
//!
//! as means over rows. T^2 (Hinton, Vinyals and Dean, 2015) multiplies the distillation term only,
//! its gradient as well as its value. A divergence D is written over *outcomes*: the V classes of
//! dense labels; of top-k labels the k classes and one more for all the others together. The
//! student's probability of that last outcome is the mass of its own tail, so the k + 1 outcomes
//! are a distribution on both sides, every divergence between them is a lower bound of the dense
//! one, and it is 0 when the student matches the teacher on what was sent.
//!
//! Rows are computed in f64 from logits in f32 or f64, shifted by their maximum.

mod batch;
mod ce;
mod config;
mod dense;
mod fused;
mod graph;
mod jsd;
mod kl;
mod mse;
mod outcomes;
mod reverse_kl;
mod sampled;
mod skew;
mod target;
mod top_k;
mod tv;

pub use batch::LossParts;
pub(crate) use ce::hard as hard_cross_entropy;
pub use config::{Divergence, LossConfig, TopKForm};
pub(crate) use fused::{Gradients, argmax, fused_loss};
pub use fused::{LossSums, OutputGradients, OutputLayer, SoftLabels, output_loss};
pub use graph::loss;
pub use target::SoftTarget;
