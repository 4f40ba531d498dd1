//! Training, one step at a time.
//!
//! A trainer is a function of its configuration and the batches it was given: the same ones give
//! the same bytes, and a trainer restored from a saved state goes on as the one that saved it.

mod config;
mod evaluate;
mod state;
mod step;

pub use config::TrainerConfig;
pub use evaluate::Evaluation;
pub use step::{Batch, StepReport, Trainer};
