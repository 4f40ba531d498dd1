//! Students that read text, language models and classifiers: from files to a trained model.
//!
//! ```text
//! files -> documents -> tokens -> sequences -> batches of a token budget -> steps
//!                                                    |                        ^
//!                                                    v                        |
//!                                          label client -> teacher -> labels of the same tokens
//! ```
//!
//! * [`recipe`]: what to do, as a TOML file.
//! * [`corpus`]: text as tokens, tokenised once and kept.
//! * [`packing`]: sequences, and which of them make a step: an order that can be entered anywhere.
//! * [`run`]: sets everything up, trains, writes the report.

mod classes;
pub mod corpus;
mod on_policy;
pub mod packing;
mod prepared;
pub mod recipe;
mod report;
mod run;
mod session;
mod student;
mod teacher;

pub use classes::Classes;
pub use run::{TextOutcome, output_folder, run};
