//! What a request carries besides tensors: id lists and token sequences.

mod ids;
mod sequences;

use std::fmt::Display;

pub use ids::pack_ids;
pub use sequences::SequencesView;

/// Why ids or sequences are refused. Fields are named by their path from the message at hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; must be {accepted}")]
pub struct RequestError {
    /// The field, with an index where it is an array.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub accepted: String,
}

fn refuse(
    field: impl Into<String>,
    value: impl Display,
    accepted: impl Into<String>,
) -> RequestError {
    RequestError { field: field.into(), value: value.to_string(), accepted: accepted.into() }
}

fn byte_length(field: &str, bytes: usize, expected: u128, of: &str) -> Result<(), RequestError> {
    if bytes as u128 == expected {
        return Ok(());
    }
    Err(refuse(format!("length of {field}"), format!("{bytes} bytes"), format!("{expected}: {of}")))
}
