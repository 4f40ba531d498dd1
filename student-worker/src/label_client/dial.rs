//! Connections over something else than the system's sockets: a simulated network, say.

use std::{fmt, io, sync::Arc};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::Uri;
use tower::util::ServiceFn;

/// A connection's two directions.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Open = BoxFuture<'static, io::Result<TokioIo<Box<dyn Wire>>>>;

/// Makes a connection to an address.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(Uri) -> Open + Send + Sync>);

impl Dial {
    /// Connects with `open`.
    pub fn new<F>(open: impl Fn(Uri) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Box<dyn Wire>>> + Send + 'static,
    {
        Self(Arc::new(move |address| {
            let opening = open(address);
            Box::pin(async move { Ok(TokioIo::new(opening.await?)) })
        }))
    }

    /// As tonic takes it.
    pub(super) fn connector(&self) -> ServiceFn<impl FnMut(Uri) -> Open + Send + use<>> {
        let open = Arc::clone(&self.0);
        tower::service_fn(move |address| open(address))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Dial")
    }
}
