//! Serves a trained model's soft labels over gRPC (`distill.v1.TeacherService`).
//!
//! ```text
//! listener (TLS) -> access -> tonic -> service (validate) -> cache -> scheduler (batcher) -> device thread -> encode -> reply
//! ```
//!
//! * [`settings`]: what a server is told, with defaults and ranges.
//! * [`server`]: binding, serving and draining; start here.
//! * [`model`]: what can be served; [`ensemble`]: one model or several as one teacher.
//! * [`metrics`]: the catalogue of what a server measures.
//!
//! Temperature and encoding never split a batch: the device computes logits and hidden states, and
//! everything that depends on a request comes after.

pub mod ensemble;
pub mod metrics;
pub mod model;
pub mod server;
pub mod settings;
#[doc(hidden)]
pub mod simulated;

mod access;
mod cache;
mod device;
mod encode;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gathering;
mod held;
mod hex;
mod listener;
mod output;
mod quota;
mod rows;
mod scheduler;
mod service;
mod status;
mod turns;
mod units;
mod validate;

pub use access::new_token;
pub use cache::DiskError;
pub use server::{Running, Server, StartError};
pub use settings::Settings;
pub use status::PAGE as STATUS_PAGE;
