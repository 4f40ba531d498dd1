//! Answers that count as held until the connection has taken them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::{Frame, SizeHint};
use tokio_stream::Stream;
use tonic::body::Body;

use crate::held::Held;

/// What one answer keeps up until it is taken: its bytes in the ledger, and the server's drain.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    _held: Arc<Held>,
    _open: Arc<()>,
}

impl Keep {
    pub(super) fn new(held: Held, open: &Arc<()>) -> Self {
        Self { _held: Arc::new(held), _open: Arc::clone(open) }
    }
}

/// The answers of a stream, each kept until the connection asks for the next: by then it has taken
/// the one before, but for what fits its buffer. The stream itself keeps the server's drain up.
pub(crate) struct Taken<S> {
    inner: S,
    last: Option<Keep>,
    _open: Arc<()>,
}

impl<S> Taken<S> {
    pub(super) fn new(inner: S, open: Arc<()>) -> Self {
        Self { inner, last: None, _open: open }
    }
}

impl<T, S: Stream<Item = (T, Option<Keep>)> + Unpin> Stream for Taken<S> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.last = None;
        let next = Pin::new(&mut self.inner).poll_next(context);
        next.map(|next| {
            next.map(|(answer, keep)| {
                self.last = keep;
                answer
            })
        })
    }
}

/// The body of a unary answer, which keeps what the response's extensions name until the
/// connection drops it.
struct Kept {
    body: Body,
    _keep: Keep,
}

impl http_body::Body for Kept {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Moves what a unary answer keeps from the response's extensions into its body.
pub(crate) fn keep_in_body(mut response: http::Response<Body>) -> http::Response<Body> {
    match response.extensions_mut().remove::<Keep>() {
        Some(keep) => response.map(|body| Body::new(Kept { body, _keep: keep })),
        None => response,
    }
}
