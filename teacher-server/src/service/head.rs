//! `FetchHead`: the output projection in pieces.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stillhouse_nn::Head;
use stillhouse_proto::{
    dtype::extend_from_f32,
    v1::{DType, FetchHeadRequest, FetchHeadResponse},
};
use tokio::sync::OnceCell;
use tonic::Status;

use super::{Core, taken::Keep};
use crate::{error::ServeError, validate::label_dtype};

/// Bytes in one piece.
const PIECE: usize = 1 << 20;

/// The pieces of one head.
pub(crate) type Pieces = tokio_stream::Iter<std::vec::IntoIter<Piece>>;
type Piece = (Result<FetchHeadResponse, Status>, Option<Keep>);

/// The head as it travels, for each element type that was asked for: hundreds of megabytes for a
/// language model, so all clients share one copy.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    f32: OnceCell<Encoded>,
    f16: OnceCell<Encoded>,
    bf16: OnceCell<Encoded>,
}

#[derive(Clone, Debug)]
struct Encoded {
    weight_shape: [u64; 2],
    has_bias: bool,
    whole: Bytes,
    sha256: Bytes,
}

impl Heads {
    fn of(&self, dtype: DType) -> &OnceCell<Encoded> {
        match dtype {
            DType::F16 => &self.f16,
            DType::Bf16 => &self.bf16,
            _ => &self.f32,
        }
    }
}

pub(super) async fn pieces(
    core: Arc<Core>,
    request: &FetchHeadRequest,
) -> Result<Pieces, ServeError> {
    let dtype = label_dtype("dtype", request.dtype)?;
    let model = Arc::clone(&core.model);
    let encoded = core.heads.of(dtype).get_or_try_init(|| async {
        // Not on the async threads.
        let encoded = tokio::task::spawn_blocking(move || encode(&model.head(), dtype)).await;
        encoded.map_err(|error| ServeError::Forward(error.to_string()))
    });
    let encoded = encoded.await?;
    let whole = &encoded.whole;
    let first = FetchHeadResponse {
        fingerprint: core.fingerprint.clone(),
        weight_shape: encoded.weight_shape.to_vec(),
        has_bias: encoded.has_bias,
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
        last.sha256 = encoded.sha256.clone();
    }
    let pieces: Vec<Piece> = pieces.into_iter().map(|piece| (Ok(piece), None)).collect();
    Ok(tokio_stream::iter(pieces))
}

fn encode(head: &Head, dtype: DType) -> Encoded {
    let mut whole = Vec::new();
    extend_from_f32(&mut whole, dtype, &head.weight);
    if let Some(bias) = &head.bias {
        extend_from_f32(&mut whole, dtype, bias);
    }
    let sha256 = Bytes::copy_from_slice(&Sha256::digest(&whole));
    Encoded {
        weight_shape: [head.classes as u64, head.hidden_size as u64],
        has_bias: head.bias.is_some(),
        whole: whole.into(),
        sha256,
    }
}
