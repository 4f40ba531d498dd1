//! Trains a student on soft labels pulled from a teacher over gRPC.
//!
//! ```text
//! dataset -> sampler -> label client (retry, prefetch, order) -> forward, loss, backward, step
//!                                                             -> checkpoints, metrics, report
//! ```
//!
//! * [`recipe`]: what to do, as a TOML file.
//! * [`data`]: rows and their order.
//! * [`label_client`]: soft labels, in order, whatever happens to the teachers.
//! * [`train`]: a run, from a recipe to a trained student.
//! * [`capture`]: soft labels in a folder, and back, with no teacher about.
//! * [`run_folder`]: what a run leaves behind; [`plot`] draws its charts.
//! * [`progress`]: how a run is shown.
//! * [`metrics`]: the catalogue of what a run measures, for Prometheus.
//! * [`eval`]: tests a trained model.
//! * [`quickstart`]: the whole, small.
//! * [`sweep`]: many runs, and one table of what came out.
//! * [`text`]: the same for language models.
//! * [`cli`]: the command line.

pub mod capture;
pub mod cli;
pub mod data;
pub mod eval;
mod flags;
#[doc(hidden)]
pub mod fuzzing;
pub mod label_client;
mod load;
pub mod metrics;
mod planner;
pub mod plot;
pub mod progress;
pub mod quickstart;
mod random;
pub mod recipe;
pub mod run_folder;
pub mod sweep;
pub mod text;
mod top;
pub mod train;
