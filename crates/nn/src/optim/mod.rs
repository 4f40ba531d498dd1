//! Optimizers that change weights in place, and the learning rate over time.

mod adamw;
mod clip;
mod config;
#[cfg(test)]
mod fixtures;
mod max_norm;
mod optimizer;
mod schedule;
mod sgd;

pub(crate) use clip::{clip_scale, global_norm};
pub use config::OptimizerConfig;
pub(crate) use config::{FITS, fits};
pub(crate) use max_norm::limit_rows;
pub(crate) use optimizer::{Optimizer, Update};
pub use schedule::{ScheduleConfig, ScheduleKind};
