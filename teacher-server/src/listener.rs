//! Connections: accepted, encrypted, and bounded in number.
//!
//! A peer that has not finished its handshake has no place among the connections yet: with client
//! certificates required, strangers never do. Of too many handshakes the oldest is given up, so that
//! peers that begin them and say no more keep nobody out.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use stillhouse_runtime::{
    tls::{self, Handshakes},
    watched::Watched,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::metrics as names;

/// Handshakes under way at the same time.
const HANDSHAKES: usize = 512;
/// For one handshake, and for the first byte after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are read of a connection before it has a place: HTTP/2's preface, at most.
const PREFACE: usize = 24;
/// After a failure to accept, which may be for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection, as far as the connection itself tells.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address without the port, so that one host is one client however many connections it
    /// opens.
    pub(crate) host: Arc<str>,
    /// The certificate that it has shown.
    pub(crate) certificate: Option<Arc<Certificate>>,
}

/// A client's certificate, verified.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// DNS names, in lower case.
    pub(crate) dns: Vec<String>,
    pub(crate) uris: Vec<String>,
    /// Of its DER.
    pub(crate) sha256: [u8; 32],
}

/// An accepted connection.
pub(crate) struct Connection {
    stream: Stream,
    /// What was read before it had its place.
    first: Vec<u8>,
    peer: Peer,
    _place: Place,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One of the connections that there may be.
struct Place {
    port: &'static str,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(port: &'static str, permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(names::CONNECTIONS, "port" => port).increment(1.0);
        Self { port, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(names::CONNECTIONS, "port" => self.port).decrement(1.0);
    }
}

/// What every connection of a listener goes by.
struct Terms {
    port: &'static str,
    tls: Option<Arc<Watched<Handshakes>>>,
    places: Arc<Semaphore>,
    most: usize,
}

/// Accepts connections to a port, at most `most` at a time, until the stream is dropped.
pub(crate) fn incoming(
    (port, listener): (&'static str, TcpListener),
    tls: Option<Arc<Watched<Handshakes>>>,
    most: usize,
) -> ReceiverStream<io::Result<Connection>> {
    let (out, connections) = mpsc::channel(1);
    let terms = Arc::new(Terms { port, tls, places: Arc::new(Semaphore::new(most)), most });
    tokio::spawn(accept(listener, terms, out));
    ReceiverStream::new(connections)
}

async fn accept(
    listener: TcpListener,
    terms: Arc<Terms>,
    out: mpsc::Sender<io::Result<Connection>>,
) {
    let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = out.closed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let (terms, out, port) = (Arc::clone(&terms), out.clone(), terms.port);
                let greeting = tokio::spawn(async move {
                    if let Some(connection) = terms.greet(stream, address).await {
                        // Otherwise the server has ended.
                        drop(out.send(Ok(connection)).await);
                    }
                });
                if handshakes.len() >= HANDSHAKES {
                    handshakes.retain(|handshake| !handshake.is_finished());
                }
                if handshakes.len() >= HANDSHAKES
                    && let Some(oldest) = handshakes.pop_front()
                {
                    oldest.abort();
                    metrics::counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => "crowd")
                        .increment(1);
                }
                handshakes.push_back(greeting.abort_handle());
            }
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Terms {
    /// The handshake, and a place; none if either is refused.
    async fn greet(&self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        // It only costs time where it cannot be set.
        drop(stream.set_nodelay(true));
        let host = Arc::from(address.ip().to_string());
        let (mut stream, certificate) = match &self.tls {
            None => (Stream::Plain(stream), None),
            Some(tls) => {
                let handshake = TlsAcceptor::from(Arc::clone(&tls.current().config)).accept(stream);
                match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates();
                        let certificate = shown.and_then(<[_]>::first).map(|der| {
                            let (dns, uris) = tls::names(der);
                            Arc::new(Certificate { dns, uris, sha256: Sha256::digest(der).into() })
                        });
                        (Stream::Tls(Box::new(stream)), certificate)
                    }
                    Ok(Err(error)) => {
                        return self.refused("handshake", &host, &error.to_string());
                    }
                    Err(_) => return self.refused("timeout", &host, "the handshake took too long"),
                }
            }
        };
        // Who says nothing has no place: nobody would notice that it is gone.
        let mut first = vec![0; PREFACE];
        let read = match &mut stream {
            Stream::Plain(stream) => timeout(HANDSHAKE_TIMEOUT, stream.read(&mut first)).await,
            Stream::Tls(stream) => timeout(HANDSHAKE_TIMEOUT, stream.read(&mut first)).await,
        };
        match read {
            Ok(Ok(count)) if count > 0 => first.truncate(count),
            Ok(Ok(_)) => return self.refused("handshake", &host, "it is closed"),
            Ok(Err(error)) => return self.refused("handshake", &host, &error.to_string()),
            Err(_) => return self.refused("timeout", &host, "it says nothing"),
        }
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            let reason = format!("{} connections are open, the most of this port", self.most);
            return self.refused("limit", &host, &reason);
        };
        let place = Place::new(self.port, permit);
        Some(Connection { stream, first, peer: Peer { host, certificate }, _place: place })
    }

    fn refused(&self, label: &'static str, host: &str, reason: &str) -> Option<Connection> {
        let port = self.port;
        debug!(port, host, reason, "a connection is refused");
        metrics::counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => label)
            .increment(1);
        None
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() && buffer.remaining() > 0 {
            let count = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
