//! The HTTP listener that metrics are scraped from, `GET /metrics`, and that shows pages beside them.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderMap, HeaderValue, header},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use crate::telemetry::Metrics;

/// Connections at the same time; more are closed as they come, so that they take no file descriptors from what
/// the process is for.
const CONNECTIONS: usize = 256;
/// A connection on which nothing was said for so long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// Something to look at, made whenever it is asked for.
#[derive(Clone)]
pub struct Page {
    /// Where, such as `/`.
    pub path: &'static str,
    /// What it is, such as `text/html; charset=utf-8`.
    pub content_type: &'static str,
    /// Whether pages of other origins may read it.
    pub shared: bool,
    /// Makes it.
    pub body: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A bound listener, not yet served.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Takes the port.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the task is dropped.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(self, metrics: Metrics, pages: Vec<Page>) -> io::Result<()> {
        let scrape = move || {
            let text = metrics.render();
            async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
        };
        let mut router = Router::new().route("/metrics", get(scrape));
        for Page { path, content_type, shared, body } in pages {
            let show = move || {
                let text = body();
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                if shared {
                    let any = HeaderValue::from_static("*");
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
                }
                async move { (headers, text) }
            };
            router = router.route(path, get(show));
        }
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let bounded = Bounded { listener: self.listener, places, idle: IDLE };
        axum::serve(bounded, router).await
    }
}

/// A listener with so many connections at most.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// How long nothing may be said on one.
    idle: Duration,
}

impl Listener for Bounded {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                let idle = (self.idle, Box::pin(sleep(self.idle)));
                return (Placed { stream, idle, _place: place }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection, and its place.
struct Placed {
    stream: TcpStream,
    /// How long, and until when, nothing may be said.
    idle: (Duration, Pin<Box<Sleep>>),
    _place: OwnedSemaphorePermit,
}

impl Placed {
    /// What was done with it, or that nothing was for too long.
    fn unless_idle<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            let (idle, until) = &mut self.idle;
            until.as_mut().reset(Instant::now() + *idle);
        } else if self.idle.1.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        done
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.unless_idle(context, done)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_idle(context, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn with_one_place(idle: Duration) -> (Bounded, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Bounded { listener, places: Arc::new(Semaphore::new(1)), idle }, address)
    }

    #[tokio::test]
    async fn who_says_nothing_for_long_is_let_go() {
        let idle = Duration::from_millis(200);
        let (mut bounded, address) = with_one_place(idle).await;
        let begun = Instant::now();
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut placed, _) = bounded.accept().await;
        client.write_all(b"a").await.unwrap();
        assert_eq!(placed.read(&mut [0; 1]).await.unwrap(), 1);
        let silent = placed.read(&mut [0; 1]).await;
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= idle);
    }

    #[tokio::test]
    async fn connections_are_bounded_and_a_place_comes_back() {
        let (mut bounded, address) = with_one_place(IDLE).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let (placed, _) = bounded.accept().await;
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0; 1];
        tokio::select! {
            _ = bounded.accept() => panic!("there is no place for a second"),
            read = second.read(&mut byte) => assert_eq!(read.unwrap(), 0, "it is closed"),
        }
        drop(placed);
        let third = TcpStream::connect(address).await.unwrap();
        let (_placed, from) = bounded.accept().await;
        assert_eq!(from, third.local_addr().unwrap());
    }
}
