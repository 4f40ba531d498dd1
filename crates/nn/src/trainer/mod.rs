//! Training, one step at a time.
//!
//! A trainer is a function of its configuration and the batches it was given: the same ones give
//! the same bytes, and a trainer restored from a saved state goes on as the one that saved it.
//!
//! candle adds up the gradients between layers on threads of its own, which wait for each other
//! spinning. Where the cores are shared with other work, `CANDLE_NUM_THREADS=1` in the environment
//! makes a step faster, and changes nothing else: products run on rayon's threads.

mod config;
mod evaluate;
mod state;
mod step;
mod text;

pub use config::TrainerConfig;
pub use evaluate::{Evaluation, evaluate_logits};
pub use step::{Batch, StepReport, Trainer};
pub use text::{Agreement, TextBatch, TextTrainer, TextTrainerConfig, UpdateReport};
