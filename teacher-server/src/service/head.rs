//! `FetchHead`: the output projection in pieces.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stillhouse_proto::{
    dtype::extend_from_f32,
    v1::{FetchHeadRequest, FetchHeadResponse},
};
use tonic::Status;

use super::Core;
use crate::{error::ServeError, validate::label_dtype};

/// Bytes in one piece.
const PIECE: usize = 1 << 20;

/// The pieces of one head.
pub(crate) type Pieces = tokio_stream::Iter<std::vec::IntoIter<Result<FetchHeadResponse, Status>>>;

pub(super) async fn pieces(
    core: Arc<Core>,
    request: &FetchHeadRequest,
) -> Result<Pieces, ServeError> {
    let dtype = label_dtype("dtype", request.dtype)?;
    // Hundreds of megabytes for a language model: not on the async threads.
    let cut = tokio::task::spawn_blocking(move || {
        let head = core.model.head();
        let mut whole = Vec::new();
        extend_from_f32(&mut whole, dtype, &head.weight);
        if let Some(bias) = &head.bias {
            extend_from_f32(&mut whole, dtype, bias);
        }
        let whole = Bytes::from(whole);
        let sha256 = Bytes::copy_from_slice(&Sha256::digest(&whole));
        let first = FetchHeadResponse {
            fingerprint: core.fingerprint.clone(),
            weight_shape: vec![head.classes as u64, head.hidden_size as u64],
            has_bias: head.bias.is_some(),
            dtype: dtype.into(),
            total_bytes: whole.len() as u64,
            ..FetchHeadResponse::default()
        };
        let mut pieces: Vec<_> = (0..whole.len())
            .step_by(PIECE)
            .map(|offset| FetchHeadResponse {
                offset: offset as u64,
                data: whole.slice(offset..whole.len().min(offset + PIECE)),
                ..first.clone()
            })
            .collect();
        if let Some(last) = pieces.last_mut() {
            last.sha256 = sha256;
        }
        pieces.into_iter().map(Ok).collect::<Vec<_>>()
    });
    let pieces = cut.await.map_err(|error| ServeError::Forward(error.to_string()))?;
    Ok(tokio_stream::iter(pieces))
}
