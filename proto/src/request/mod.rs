//! What a request carries besides tensors: id lists and token sequences.

mod ids;
mod sequences;

pub use ids::pack_ids;
pub use sequences::SequencesView;

use crate::labels::{CodecError, refuse};

fn byte_length(field: &str, bytes: usize, expected: u128, of: &str) -> Result<(), CodecError> {
    if bytes as u128 == expected {
        return Ok(());
    }
    Err(refuse(format!("length of {field}"), format!("{bytes} bytes"), format!("{expected}: {of}")))
}
