//! `FetchHead`: the output projection in pieces.

use std::{future::ready, sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use stillhouse_nn::Head;
use stillhouse_proto::{
    dtype::extend_from_f32,
    v1::{DType, FetchHeadRequest, FetchHeadResponse},
};
use stillhouse_runtime::clock;
use tokio::sync::OnceCell;
use tonic::Status;

use super::{Core, taken::Keep, turn::in_time};
use crate::{
    access::{Caller, EncodingName},
    error::ServeError,
    model::AnyModel,
    validate::label_dtype,
};

/// Bytes in one piece, where messages may be as large.
const PIECE: usize = 1 << 20;
/// Bytes of a message beside its piece, at most; the smallest limit on messages is far above.
const BESIDE: usize = 1024;

/// The pieces of one head.
pub(crate) type Pieces = BoxStream<'static, Piece>;
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
    /// 0: none.
    logit_softcap: f32,
    whole: Bytes,
    sha256: Bytes,
}

impl Heads {
    async fn get(&self, model: &AnyModel, dtype: DType) -> Result<Encoded, ServeError> {
        let cell = match dtype {
            DType::F16 => &self.f16,
            DType::Bf16 => &self.bf16,
            _ => &self.f32,
        };
        let encoded = cell.get_or_try_init(|| async {
            let model = model.clone();
            let encoded = tokio::task::spawn_blocking(move || encode(&model.head(), dtype)).await;
            encoded.map_err(|error| ServeError::Forward(error.to_string()))
        });
        encoded.await.cloned()
    }
}

/// Counts as one request of one row for the client's quotas. What is asked for after the deadline is not sent.
pub(super) async fn pieces(
    core: Arc<Core>,
    caller: &Caller,
    deadline: Option<Instant>,
    request: &FetchHeadRequest,
) -> Result<Pieces, ServeError> {
    let client = core.access.identify(caller)?;
    // Without hidden states nobody needs it, and it is a part of the model.
    if let Some(client) = client.as_deref().filter(|own| !own.may_have(EncodingName::Hidden)) {
        let what = format!("client {:?} may not have hidden states, nor the head", client.name);
        return Err(ServeError::Denied { reason: "encoding", what });
    }
    let client = &caller.name(client.as_deref(), String::new());
    let Some(model) = core.ensemble.only().cloned() else {
        return Err(ServeError::NoHead { members: core.ensemble.len() });
    };
    let dtype = label_dtype("dtype", request.dtype)?;
    let note = |error: &ServeError| {
        if matches!(error, ServeError::Exhausted { .. }) {
            core.status.refused(client);
        }
    };
    let under_way = core.quotas.take(client, 1, clock::now()).inspect_err(note)?;
    // A task of its own: it is not done again if the first client goes away meanwhile.
    let shared = Arc::clone(&core);
    let encoded = tokio::spawn(async move { shared.heads.get(&model, dtype).await });
    let encoded = in_time(deadline, async {
        encoded.await.map_err(|error| ServeError::Forward(error.to_string()))?
    });
    let encoded = encoded.await?;
    let whole = &encoded.whole;
    let piece = PIECE.min(core.contract.limits.max_message_bytes as usize - BESIDE);
    // The head is shared; what a client that does not read leaves behind is a piece of its own.
    let held = core.ledger.take(client, piece as u64).inspect_err(|error| {
        note(error);
        core.give_back(client, 1, error);
    });
    let held = held?.with(under_way);
    let keep = Keep::new(Arc::new(held), &core.open);
    let first = FetchHeadResponse {
        fingerprint: core.fingerprint(core.contract.default_rule),
        weight_shape: encoded.weight_shape.to_vec(),
        has_bias: encoded.has_bias,
        logit_softcap: encoded.logit_softcap,
        dtype: dtype.into(),
        total_bytes: whole.len() as u64,
        ..FetchHeadResponse::default()
    };
    let mut pieces: Vec<_> = (0..whole.len())
        .step_by(piece)
        .map(|offset| FetchHeadResponse {
            offset: offset as u64,
            data: whole.slice(offset..whole.len().min(offset + piece)),
            ..first.clone()
        })
        .collect();
    if let Some(last) = pieces.last_mut() {
        last.sha256 = encoded.sha256.clone();
    }
    let pieces: Vec<Piece> =
        pieces.into_iter().map(|piece| (Ok(piece), Some(keep.clone()))).collect();
    Ok(until(deadline, pieces))
}

/// The pieces that are asked for before a deadline, and then its error.
fn until(deadline: Option<Instant>, pieces: Vec<Piece>) -> Pieces {
    let is_late = move || deadline.is_some_and(|deadline| clock::now() >= deadline);
    let next = move |ended: &mut bool, piece| {
        ready(if *ended {
            None
        } else if is_late() {
            *ended = true;
            Some((Err(ServeError::Deadline.into()), None))
        } else {
            Some(piece)
        })
    };
    stream::iter(pieces).scan(false, next).boxed()
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
        logit_softcap: head.softcap.unwrap_or(0.0),
        whole: whole.into(),
        sha256,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn pieces_end_with_the_deadline_and_its_error() {
        let pieces = || (0..3).map(|_| (Ok(FetchHeadResponse::default()), None)).collect();
        let past = Some(clock::now());
        for (deadline, expected) in
            [(None, [Code::Ok; 3].as_slice()), (past, &[Code::DeadlineExceeded])]
        {
            let sent: Vec<Piece> = until(deadline, pieces()).collect().await;
            let code = |(piece, _): &Piece| piece.as_ref().map_or_else(Status::code, |_| Code::Ok);
            assert_eq!(sent.iter().map(code).collect::<Vec<_>>(), expected);
        }
        let mut rest = until(Some(clock::now() + Duration::from_millis(500)), pieces());
        assert!(rest.next().await.is_some_and(|(piece, _)| piece.is_ok()));
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert!(rest.next().await.is_some_and(|(piece, _)| piece.is_err()));
        assert!(rest.next().await.is_none());
    }
}
