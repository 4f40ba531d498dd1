//! Answers that count as held until the connection has taken them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Frame;
use tokio_stream::Stream;
use tonic::{Status, body::Body};

use crate::held::Held;

/// Most bytes that the connection is given at a time.
const SLICE: usize = 64 << 10;

/// What one answer keeps up until it is taken: its bytes in the ledger, and the server's drain.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    _held: Arc<Held>,
    _open: Arc<()>,
}

impl Keep {
    pub(super) fn new(held: Arc<Held>, open: &Arc<()>) -> Self {
        Self { _held: held, _open: Arc::clone(open) }
    }
}

/// The answers of a stream, each kept until the next is asked for: [`Sliced`] asks when the
/// connection has taken the one before, but for small answers, which tonic joins to 32 KiB. The
/// stream itself keeps the server's drain up.
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

/// A body whose data leaves in slices. The connection asks for a frame before it knows whether the
/// peer has room, and then buffers it whole, however large: of a body in slices it buffers one, and
/// what the body keeps lasts until the last has been taken.
struct Sliced {
    body: Body,
    /// Data of the body that the connection has not taken.
    rest: Bytes,
    _keep: Option<Keep>,
}

impl http_body::Body for Sliced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

/// Slices the body of an answer; a unary one keeps what its extensions hold.
pub(crate) fn slice_body(mut response: http::Response<Body>) -> http::Response<Body> {
    let keep = response.extensions_mut().remove::<Keep>();
    response.map(|body| Body::new(Sliced { body, rest: Bytes::new(), _keep: keep }))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Body as _;

    use super::*;

    /// Two frames of data, then trailers.
    struct Frames(Vec<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready((!self.0.is_empty()).then(|| Ok(self.0.remove(0))))
        }
    }

    #[tokio::test]
    async fn data_and_trailers_come_in_order_and_no_frame_exceeds_a_slice() {
        let data: Bytes = (0..3 * SLICE + 5).map(|at| (at % 251) as u8).collect();
        let (first, second) = (data.slice(..SLICE + 1), data.slice(SLICE + 1..));
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let frames = [first, second].map(Frame::data).into_iter();
        let frames = frames.chain([Frame::trailers(trailers.clone())]).collect();
        let mut body = slice_body(http::Response::new(Body::new(Frames(frames)))).into_body();

        let (mut found, mut end) = (Vec::new(), None);
        while let Some(frame) =
            std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            match frame.unwrap().into_data() {
                Ok(data) => {
                    assert!(data.len() <= SLICE && end.is_none());
                    found.extend_from_slice(&data);
                }
                Err(frame) => end = frame.into_trailers().ok(),
            }
        }
        assert_eq!(found, data);
        assert_eq!(end, Some(trailers));
    }
}
